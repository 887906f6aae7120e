"""A rank that follows: loads its part, then computes what the leader's steps say.

Run as `python -m gpt_oss_server.engine.ranks.follower FD` by `crew`, FD being one end of a socket
pair. The main thread computes; another (`liveness.Lifeline`) listens, and ends the process at once
when the leader is gone. Nothing that takes long is imported before that thread runs.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, TypeVar

import msgspec

from gpt_oss_server.engine.ranks.faults import EXIT_BROKEN, mishap, places
from gpt_oss_server.engine.ranks.liveness import Activity, Lifeline, Link, end_with_parent
from gpt_oss_server.engine.ranks.messages import (
    Allocate,
    Begin,
    Broken,
    Failed,
    Meet,
    Ready,
    Step,
)
from gpt_oss_server.engine.ranks.place import Place
from gpt_oss_server.engine.threads import set_threads
from gpt_oss_server.errors import StartupError
from gpt_oss_server.heap import settle_heap

if TYPE_CHECKING:
    from gpt_oss_server.engine.ranks.rank import Rank

Order = TypeVar("Order")


class Follower:
    """One follower's life: `prepare`, then `work` until the process ends."""

    def __init__(self, link: Link, lifeline: Lifeline, activity: Activity) -> None:
        self._link = link
        self._orders = lifeline.orders
        self._lifeline = lifeline
        self._activity = activity

    def prepare(self) -> Rank:
        """From nothing to allocated pools. Raises StartupError."""
        begin = self._next(Begin)
        spec = begin.spec
        self._lifeline.keep_time(spec.rank_timeout_s)
        place = Place(begin.rank, begin.tp, begin.pp)

        from gpt_oss_server.engine.ranks import outfit
        from gpt_oss_server.engine.ranks.comms import Comms
        from gpt_oss_server.engine.ranks.loading import rank_device

        set_threads(spec)
        device = rank_device(spec, place)
        comms = Comms.open(place, device, self._next(Meet).port, outfit.CALL_TIMEOUT_S)
        self._activity.calls = lambda: (comms.entered, comms.left)
        mine = outfit.load(spec, place, comms, lambda _: None)
        self._link.send(mine.report())
        pools = self._next(Allocate)
        rank = mine.allocate(pools.blocks, pools.members, self._activity)
        settle_heap()
        self._link.send(Ready(rank.kv_bytes))
        return rank

    def work(self, rank: Rank) -> None:
        """Compute steps for ever, in order. What the next ones need from the stage before comes
        meanwhile."""
        from gpt_oss_server.engine.ranks.packing import unpack

        ahead = [rank.expect(unpack(self._next(Step)))]
        while True:
            while not self._orders.empty():
                ahead.append(rank.expect(unpack(self._next(Step))))
            rank.compute(ahead.pop(0))
            self._activity.steps_done += 1
            if not ahead:
                ahead.append(rank.expect(unpack(self._next(Step))))

    def _next(self, kind: type[Order]) -> Order:
        order = self._orders.get()
        if not isinstance(order, kind):
            raise RuntimeError(f"expected {kind.__name__}, got {type(order).__name__}")
        return order


def serve(sock: socket.socket) -> int:
    """The follower's life. Returns its exit status."""
    link, activity = Link(sock), Activity()
    lifeline = Lifeline(link, activity)
    lifeline.start()
    follower = Follower(link, lifeline, activity)
    last_words: msgspec.Struct
    try:
        rank = follower.prepare()
    except StartupError as error:
        last_words = Failed(str(error), error.exit_status)
    except Exception as error:  # noqa: BLE001 - whatever it was, it is one line to the operator
        last_words = Failed(f"a rank cannot start: {mishap(error)}", 1)
    else:
        try:
            follower.work(rank)
        except Exception as error:  # noqa: BLE001 - the process ends, whatever it was
            last_words = Broken(mishap(error), places(error))
    try:
        link.send(last_words)
    except OSError:
        return 0
    return EXIT_BROKEN


def main() -> None:
    end_with_parent(int(sys.argv[2]))
    # The front decides what they mean, see `engine.worker`.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as sock:
        status = serve(sock)
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
