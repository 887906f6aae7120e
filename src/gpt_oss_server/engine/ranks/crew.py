"""The other ranks' processes, as the leader has them: started, told, heard, ended.

Knows: follower processes, the messages, how a lost rank ends all. Does not know: torch, how a
part computes, what is in a step.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from gpt_oss_server.engine.ranks.faults import EXIT_BROKEN, ending
from gpt_oss_server.engine.ranks.liveness import Activity, Link, Member, Watch
from gpt_oss_server.engine.ranks.messages import Allocate, Begin, Broken, Failed, Meet, Step
from gpt_oss_server.engine.ranks.place import Place
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.nccl import nccl_environment

FOLLOWER = "gpt_oss_server.engine.ranks.follower"
REAP_S = 2.0
# A lost rank is noticed by its socket, in milliseconds.
NOTICE_S = 0.5

Said = TypeVar("Said")


@dataclass(frozen=True)
class Front:
    """What a crew needs of its front: the socket whose end ends all, a sign of life, and last
    words (a line, the exit status of a start that failed, and `faults.places` for the log). Called
    by another thread."""

    sock: socket.socket
    alive: Callable[[], None]
    last_words: Callable[[str, int, str], None]


def place_of(spec: EngineSpec, rank: int) -> Place:
    """Where a rank of this spec stands."""
    tensor = spec.gpu_mode == "tensor"
    return Place(rank, tp=spec.gpus if tensor else 1, pp=1 if tensor else spec.gpus)


class Crew:
    """A leader's followers. Made by the process's main thread: the kernel ends followers with the
    thread that started them. Whichever rank is lost, the process ends, in another thread."""

    def __init__(self, spec: EngineSpec, front: Front) -> None:
        """Start the followers. Raises OSError for want of processes or files."""
        self.spec = spec
        self.place = place_of(spec, place_of(spec, 0).leader)
        self.activity = Activity()
        self._front = front
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._members: list[Member] = []
        self._closing = False
        self._noticed = threading.Event()
        if spec.device != "cpu":  # before any communicator exists, here or in a follower
            nccl_environment(spec.world, spec.gpu_mode, os.environ).apply(os.environ)
        try:
            for rank in range(spec.world):
                if rank != self.place.rank:
                    self._start(rank)
        except BaseException:
            self.close()
            raise
        Watch(
            self._members,
            self.activity,
            spec.rank_timeout_s,
            lost=self._lost,
            abandoned=self._abandoned,
            beat=front.alive,
            front=front.sock,
        ).start()

    @property
    def pids(self) -> dict[int, int]:
        """Every rank's process."""
        return {
            self.place.rank: os.getpid(),
            **{rank: process.pid for rank, process in self._processes.items()},
        }

    def tell(self, message: Meet | Step) -> None:
        """Send all followers the same."""
        for member in self._members:
            member.link.send(message)

    def allocate(self, pools: Callable[[int], Allocate]) -> None:
        """Send each follower its pools."""
        for member in self._members:
            member.link.send(pools(member.rank))

    def hear(self, kind: type[Said]) -> dict[int, Said]:
        """What every follower says next, by rank. Does not return if one is lost."""
        said: dict[int, Said] = {}
        for member in self._members:
            message = member.said.get()
            if not isinstance(message, kind):
                raise RuntimeError(f"{member} said {type(message).__name__}")
            said[member.rank] = message
        return said

    def await_end(self) -> None:
        """After a call to another rank failed: another thread notices that it is lost, ends this
        process and says why. Returns if that does not happen soon."""
        if self._noticed.wait(NOTICE_S):
            time.sleep(2 * REAP_S)  # it waits for the rank's end, and for that of the others

    def close(self) -> None:
        """End the followers, and wait until they are gone."""
        self._closing = True
        for process in self._processes.values():
            with contextlib.suppress(OSError):
                process.kill()
        deadline_s = time.monotonic() + REAP_S
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline_s - time.monotonic()))

    def _start(self, rank: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", FOLLOWER, str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self._processes[rank] = process
        member = Member(rank, process.pid, Link(ours), time.monotonic())
        self._members.append(member)
        place = place_of(self.spec, rank)
        member.link.send(Begin(self.spec, rank, place.tp, place.pp))

    def _lost(self, member: Member | None, what: Failed | Broken | str) -> None:
        """Another thread's: a rank is lost, so all end."""
        if self._closing:
            return
        self._noticed.set()
        line, status, where = str(what), EXIT_BROKEN, ""
        if isinstance(what, Failed):
            line, status = what.message, what.exit_status
        elif isinstance(what, Broken):
            line, where = f"{member} {what.message}", what.places
        elif member is not None:
            process = self._processes[member.rank]
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(REAP_S)
            line = f"{member} {ending(process.returncode)}"
        self._front.last_words(line, status, where)
        self.close()
        os._exit(status)

    def _abandoned(self) -> None:
        """Another thread's: the front is gone."""
        if not self._closing:
            self.close()
            os._exit(0)
