"""Admission on an event loop: who waits, who is woken, whose lease ends when.

Knows: asyncio, and the calls of `AdmissionCore`. Does not know: how a verdict is reached,
engines, HTTP. One event loop only.

While the engine is down nothing starts: who waits goes on waiting, until it is back or its own
time is up. Whether it is down is asked whenever something could start, and, while somebody waits
for it to come back, every `RESUME_POLL_S`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from gpt_oss_server.admission.capacity import Capacity
from gpt_oss_server.admission.core import AdmissionCore, AdmissionSnapshot
from gpt_oss_server.admission.offers import (
    Admission,
    AdmissionRequest,
    Changes,
    Departure,
    Verdict,
)
from gpt_oss_server.errors import ContextTooLong, NotReady, Overloaded, ServerError

RESUME_POLL_S = 0.1


class Held:
    """An admitted request's hold on KV. `output_tokens` is what it has produced so far, kept by
    the stream's reader; it is what the guard learns from when the lease ends."""

    __slots__ = ("admission", "jobs", "output_tokens")

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.output_tokens = 0
        self.jobs = 1

    @property
    def taught_tokens(self) -> int:
        """The mean answer of all its jobs, for as many as ran at once: what `release` wants."""
        return -(-self.output_tokens // self.jobs) * self.admission.request.sequences


class AdmissionGate:
    """Waits, wakes and releases. Every lease is given back exactly once: by the `async with` block
    that holds it, however that block ends."""

    def __init__(
        self,
        core: AdmissionCore,
        clock: Callable[[], float],
        pools: Callable[[], Capacity | None] | None = None,
    ) -> None:
        """`clock` is monotonic seconds, the same for every call on `core`. `pools` is what the
        engine has now, None while it is down; left out, it is always up with those of `core`."""
        self._core = core
        self._clock = clock
        self._pools = pools or (lambda: core.capacity)
        self._waiting: dict[int, asyncio.Future[Admission]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def snapshot(self) -> AdmissionSnapshot:
        """Admission now, in the pools that the engine has now."""
        self._look()
        return self._core.snapshot()

    def blocks_used(self) -> dict[str, int]:
        """Blocks reserved now, per group name, in the pools that the engine has now. Asked for
        every decision, where a snapshot would cost more than the decision."""
        self._look()
        return self._core.blocks_used

    @asynccontextmanager
    async def lease(self, request: AdmissionRequest) -> AsyncIterator[Held]:
        """Hold KV for `request` while the block runs, after waiting for it where need be.

        Raises:
            Overloaded: no place in the queue, or not in time; with `retry_after_s`.
            NotReady: the same, where it is the engine's being down that it waited for.
            ContextTooLong: it can never fit this pool.
        """
        self._look()
        verdict = self._core.offer(request, self._clock())
        self._carry_out(verdict.changes)
        admission = verdict.admission
        if admission is None:
            admission = await self._wait(verdict)
        held = Held(admission)
        finished = False
        try:
            yield held
            finished = True
        finally:
            # A cut answer says nothing about how long answers are.
            taught = held.taught_tokens if finished else None
            self._look()
            self._carry_out(self._core.release(admission.ticket, taught, self._clock()))

    def progress(self, held: Held, longest_tokens: int) -> None:
        """A running request's longest job has come this far: what it outgrew its reservation by
        counts."""
        self._core.progress(held.admission.ticket, longest_tokens)

    def preempted(self, held: Held) -> None:
        """The engine had to put one of the request's jobs back."""
        self._carry_out(self._core.preempted(held.admission.ticket, self._clock()))

    async def _wait(self, verdict: Verdict) -> Admission:
        if verdict.action == "never_fits":
            raise ContextTooLong(
                f"The request can never run here: {verdict.message}.", param="max_tokens"
            )
        if verdict.action != "queue":
            raise self._refusal(verdict.message, verdict.retry_after_s)
        ticket = verdict.ticket
        future: asyncio.Future[Admission] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = future
        self._set_timer()
        try:
            return await future
        except BaseException:
            # Cancelled while it waited, or at the very moment it was admitted: either way the
            # core frees what it holds. After a departure there is nothing left to cancel.
            self._look()
            self._waiting.pop(ticket, None)
            self._carry_out(self._core.cancel(ticket, self._clock()))
            raise

    def _carry_out(self, changes: Changes) -> None:
        for admission in changes.admitted:
            future = self._waiting.pop(admission.ticket)
            if not future.done():  # else: cancelled in this very tick; its waiter cancels
                future.set_result(admission)
        for departure in changes.departed:
            future = self._waiting.pop(departure.ticket)
            if not future.done():
                future.set_exception(self._why(departure))
        self._set_timer()

    def _why(self, departure: Departure) -> ServerError:
        """What a request is told that waited in vain."""
        if departure.reason == "never_fits":
            return ContextTooLong(
                f"The engine was restarted with less memory: {departure.message}.",
                param="max_tokens",
            )
        error = self._refusal(
            f"waited {departure.waited_s:.1f} s without a place ({departure.reason})",
            departure.retry_after_s,
        )
        error.reason = departure.reason
        return error

    def _refusal(self, why: str, retry_after_s: float | None) -> NotReady | Overloaded:
        if self._core.on_hold:
            return NotReady(f"The engine is being restarted: {why}.", retry_after_s=retry_after_s)
        return Overloaded(f"Too many requests: {why}.", retry_after_s=retry_after_s)

    def _look(self) -> None:
        """Follow the engine, down and up again."""
        pools = self._pools()
        if pools is None:
            if not self._core.on_hold:
                self._core.hold()
                self._set_timer()
        elif self._core.on_hold or pools is not self._core.capacity:
            self._carry_out(self._core.resume(pools, self._clock()))

    def _set_timer(self) -> None:
        """One timer: for the earliest deadline among those who wait, and for the next look at an
        engine that is down."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due_s = self._core.next_deadline_s()
        if due_s is None:
            return
        delay_s = max(0.0, due_s - self._clock())
        if self._core.on_hold:
            delay_s = min(delay_s, RESUME_POLL_S)
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self._look()
        self._carry_out(self._core.expire(self._clock()))
