"""Whether ranks live: what each says of itself from a thread of its own, and who hears it.

Knows: sockets, end of file, counters of progress, the clock. Does not know: models, steps, or what
is to be done for a rank that is lost; that is the caller's.

A rank that is killed closes its socket. One that is stopped, or stuck, keeps it open and does
nothing: then, while a step is under way, sooner or later all ranks wait for it, and no counter of
any rank grows. That is the sign: no single rank's silence in between, since one that waits for
another rightly does nothing.
"""

from __future__ import annotations

import ctypes
import os
import queue
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from gpt_oss_server.engine import wire
from gpt_oss_server.engine.ranks.faults import EXIT_BROKEN, mishap
from gpt_oss_server.engine.ranks.messages import (
    Broken,
    Failed,
    Pulse,
    Step,
    ToFollower,
    ToLeader,
)

# A rank that has nothing to do and says nothing for so long is lost all the same. One that loads
# may be kept from speaking by a single large tensor that comes from a slow disk.
STILL_S = 60.0
LOADING_STILL_S = 300.0
_MAX_PULSE_S = 0.5
_PR_SET_PDEATHSIG = 1


def pulse_interval_s(timeout_s: float) -> float:
    """How often ranks speak, so that `timeout_s` is met closely."""
    return min(_MAX_PULSE_S, timeout_s / 8)


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends (Linux)."""
    try:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except (OSError, AttributeError):
        return  # then the end of the socket must do
    if os.getppid() != parent:  # it ended before the line above
        os._exit(0)


class Activity:
    """How far a rank has come. Written by the thread that computes, read by the one that tells.
    `loading` until steps may come."""

    def __init__(self) -> None:
        self.loading = True
        self.layers = 0
        self.steps_taken = 0
        self.steps_done = 0
        self.calls: Callable[[], tuple[int, int]] = lambda: (0, 0)

    @property
    def idle(self) -> bool:
        return self.steps_taken == self.steps_done

    def pulse(self) -> Pulse:
        entered, left = self.calls()
        progress = entered + left + self.layers + self.steps_taken + self.steps_done
        return Pulse(progress, entered > left, self.idle)


class Link:
    """One end of the socket between a leader and a follower. `send` may be called by any
    thread, `receive` by one."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._lock = threading.Lock()
        self._frames = wire.FrameBuffer()

    def send(self, message: msgspec.Struct) -> None:
        """Raises OSError when the other end is gone."""
        data = wire.frame(message)
        with self._lock:
            self.sock.sendall(data)

    def receive(self) -> list[bytes] | None:
        """Whole messages that have come, without waiting if the socket has something; None at
        its end."""
        try:
            data = self.sock.recv(1 << 20)
        except OSError:
            return None
        return list(self._frames.feed(data)) if data else None


class Lifeline(threading.Thread):
    """A follower's thread: hands on what the leader says, tells how far this rank is, and ends
    the process at once when the leader is gone."""

    def __init__(self, link: Link, activity: Activity) -> None:
        super().__init__(name="lifeline", daemon=True)
        self.orders: queue.SimpleQueue[ToFollower] = queue.SimpleQueue()
        self._link = link
        self._activity = activity
        self._decoder = msgspec.msgpack.Decoder(ToFollower)
        self._interval_s = _MAX_PULSE_S

    def keep_time(self, timeout_s: float) -> None:
        """Speak often enough for this timeout."""
        self._interval_s = pulse_interval_s(timeout_s)

    def run(self) -> None:
        try:
            self._run()
        finally:  # without this thread the process would outlive its leader
            os._exit(EXIT_BROKEN)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._link.sock, select.POLLIN)
        due_s = time.monotonic()
        while True:
            left_s = due_s - time.monotonic()
            if left_s <= 0:
                self._tell()
                due_s = time.monotonic() + self._interval_s
            elif poll.poll(left_s * 1000):
                messages = self._link.receive()
                if messages is None:
                    os._exit(0)
                for payload in messages:
                    order = self._decoder.decode(payload)
                    self._activity.steps_taken += isinstance(order, Step)
                    self.orders.put(order)

    def _tell(self) -> None:
        try:
            self._link.send(self._activity.pulse())
        except OSError:
            os._exit(0)


@dataclass
class Member:
    """A follower as the leader sees it. `said` is what it said, but for pulses."""

    rank: int
    pid: int
    link: Link
    heard_s: float
    pulse: Pulse = field(default_factory=lambda: Pulse(0, False, True))
    said: queue.SimpleQueue[ToLeader] = field(default_factory=queue.SimpleQueue)

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid})"


class Watch(threading.Thread):
    """The leader's thread: hears all followers and judges. It ends in one call, from this thread,
    of `lost` or, when the front is gone, of `abandoned`.

    `lost(member, what)`: a follower's last words; an empty line for one whose socket ended without
    any; with None, a line that says who is stuck.
    """

    def __init__(
        self,
        members: list[Member],
        activity: Activity,
        timeout_s: float,
        *,
        lost: Callable[[Member | None, Failed | Broken | str], None],
        abandoned: Callable[[], None] = lambda: None,
        beat: Callable[[], None] = lambda: None,
        front: socket.socket | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`beat` is called at every interval: a sign of life for the front."""
        super().__init__(name="watch", daemon=True)
        self._members = {member.link.sock.fileno(): member for member in members}
        self._activity = activity
        self._timeout_s = timeout_s
        self._lost = lost
        self._abandoned = abandoned
        self._beat = beat
        self._front = front
        self._clock = clock
        self._decoder = msgspec.msgpack.Decoder(ToLeader)
        self._seen: tuple[int, ...] = ()
        self._moved_s = self._judged_s = clock()

    def run(self) -> None:
        try:
            self._run()
        except Exception as error:  # noqa: BLE001 - without a watch nobody would notice anything
            self._lost(None, f"the watch over the ranks {mishap(error)}")

    def _run(self) -> None:
        poll = select.poll()
        for descriptor in self._members:
            poll.register(descriptor, select.POLLIN)
        if self._front is not None:
            poll.register(self._front, select.POLLRDHUP)
        interval_s = pulse_interval_s(self._timeout_s)
        due_s = self._clock()
        while True:
            for descriptor, _ in poll.poll(max(0.0, due_s - self._clock()) * 1000):
                member = self._members.get(descriptor)
                if member is None:
                    self._abandoned()
                    return
                last_words = self._hear(member)
                if last_words is not None:
                    self._lost(member, last_words)
                    return
            if self._clock() >= due_s:
                due_s = self._clock() + interval_s
                self._beat()
                if line := self.verdict():
                    self._lost(None, line)
                    return

    def _hear(self, member: Member) -> Failed | Broken | str | None:
        """Take what has come; what the member ended with, if it did."""
        messages = member.link.receive()
        if messages is None:
            return ""
        member.heard_s = self._clock()
        for payload in messages:
            message = self._decoder.decode(payload)
            if isinstance(message, (Failed, Broken)):
                return message
            if isinstance(message, Pulse):
                member.pulse = message
            else:
                member.said.put(message)
        return None

    def verdict(self) -> str:
        """Who is lost, as a line; empty while all is well. To be called at every interval."""
        now_s = self._clock()
        members = list(self._members.values())
        if now_s - self._judged_s > self._timeout_s / 2:  # this process was stopped itself
            self._moved_s = now_s
            for member in members:
                member.heard_s = now_s
        self._judged_s = now_s
        limit_s = LOADING_STILL_S if self._activity.loading else STILL_S
        for member in members:
            if now_s - member.heard_s >= limit_s:
                return f"{member} has said nothing for {now_s - member.heard_s:.0f} s"
        own = self._activity.pulse()
        seen = (own.progress, *(member.pulse.progress for member in members))
        if own.idle or seen != self._seen:
            self._seen, self._moved_s = seen, now_s
        still_s = now_s - self._moved_s
        return "" if still_s < self._timeout_s else self._accuse(members, own, now_s, still_s)

    def _accuse(self, members: list[Member], own: Pulse, now_s: float, still_s: float) -> str:
        quiet = [m for m in members if now_s - m.heard_s >= self._timeout_s / 2]
        if quiet:
            return f"{quiet[0]} does not respond: it is stopped, or this machine is overloaded"
        stuck = [str(m) for m in members if not m.pulse.idle and not m.pulse.waiting]
        if not own.waiting:
            stuck.append("the leading rank")
        who = " and ".join(stuck) or "each rank waits for another: the replica"
        return f"{who} has made no progress for {still_s:.0f} s"
