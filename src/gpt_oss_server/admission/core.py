"""Admission of one replica: the guard, the queue and the ledger behind five calls.

Knows: the order of steps. Does not know: tasks, locks, HTTP; the moment is an argument of every
call and may not go back. Meant for one owner (an event loop); it is not thread-safe.

    verdict = core.offer(request, now_s)       # start, wait, go elsewhere or go away
    changes = core.release(ticket, n, now_s)   # finished: others may start
    changes = core.cancel(ticket, now_s)       # left, waiting or running: others may start
    changes = core.expire(now_s)               # on a timer, at `next_deadline_s()`
    changes = core.preempted(ticket, now_s)    # the engine ran dry under it (optimistic mode)
    core.hold()                                # the replica is down: nothing starts until
    changes = core.resume(capacity, now_s)     # it is back, perhaps with other pools

Each returns what it meant for those who waited: carry out all of `Changes`. Every ticket with
verdict `queue` is named there exactly once, unless it is cancelled first; every admitted one must
be released or cancelled exactly once.

Promises. Worst-case mode never holds more than the pool. Nobody waits while nothing runs and
nothing is on hold. A
blocked request is passed by at most `bypass_limit` later ones; then nothing starts before it.
"""

from __future__ import annotations

from itertools import islice
from typing import Literal

import msgspec

from gpt_oss_server.admission.capacity import Blocks, Capacity
from gpt_oss_server.admission.config import AdmissionConfig
from gpt_oss_server.admission.drain import DrainRate
from gpt_oss_server.admission.guard import Bounds, Guard, NeverFits
from gpt_oss_server.admission.ledger import LeaseError, LeaseLedger
from gpt_oss_server.admission.offers import (
    NO_CHANGES,
    Action,
    Admission,
    AdmissionRequest,
    Changes,
    Departure,
    Plan,
    Verdict,
)
from gpt_oss_server.admission.outputs import OutputLengths
from gpt_oss_server.admission.queue import Entry, FairQueue


class AdmissionCounts(msgspec.Struct):
    """Only growing. offered = accepted + shrunk + routed4 + queued + rejected + never_fits, and
    queued = started_from_queue + expired + shed + no_longer_fits + cancelled_waiting + waiting now.

    `no_longer_fits`: waited while the engine was restarted, and what it came back with can never
    hold them (400). `never_fits` were told so at the door.
    """

    offered: int = 0
    accepted: int = 0
    shrunk: int = 0
    routed4: int = 0
    queued: int = 0
    rejected: int = 0
    never_fits: int = 0
    started_from_queue: int = 0
    expired: int = 0
    shed: int = 0
    no_longer_fits: int = 0
    cancelled_waiting: int = 0
    cancelled_running: int = 0
    released: int = 0
    preemptions: int = 0
    overcommits: int = 0


class AdmissionSnapshot(msgspec.Struct, frozen=True):
    """Everything at one moment; blocks per group name."""

    counts: AdmissionCounts
    running: int
    waiting: int
    waiting_by_client: dict[str, int]
    blocks_total: dict[str, int]
    blocks_used: dict[str, int]
    blocks_peak: dict[str, int]
    drain_share_per_s: float | None


_COUNT_OF: dict[Action, str] = {
    "accept": "accepted",
    "shrink": "shrunk",
    "route4": "routed4",
    "queue": "queued",
    "reject": "rejected",
    "never_fits": "never_fits",
}


class AdmissionCore:
    """See the module's text. `outputs` may be handed in to keep what was learnt."""

    def __init__(
        self,
        capacity: Capacity,
        config: AdmissionConfig,
        outputs: OutputLengths | None = None,
    ) -> None:
        self._config = config
        self._capacity = capacity
        self._outputs = outputs or OutputLengths(config.output_quantile)
        self._guard = Guard(capacity, config, self._outputs)
        self._queue = FairQueue(config.ageing_s, len(capacity.groups))
        self._ledger = LeaseLedger(len(capacity.groups))
        self._drain = DrainRate(config.drain_half_life_s)
        self._running: dict[int, Admission] = {}
        self._counts = AdmissionCounts()
        self._last_ticket = 0
        self._on_hold = False

    @property
    def on_hold(self) -> bool:
        return self._on_hold

    @property
    def capacity(self) -> Capacity:
        return self._capacity

    @property
    def blocks_used(self) -> dict[str, int]:
        """Blocks reserved now, per group name; a fraction of what a snapshot costs."""
        groups, used = self._capacity.groups, self._ledger.used
        return {group.name: blocks for group, blocks in zip(groups, used, strict=True)}

    def offer(self, request: AdmissionRequest, now_s: float) -> Verdict:
        """Decide on one request. Never raises for what a client sent."""
        self._last_ticket += 1
        self._counts.offered += 1
        verdict = self._judge(request, self._last_ticket, now_s)
        name = _COUNT_OF[verdict.action]
        setattr(self._counts, name, getattr(self._counts, name) + 1)
        return verdict

    def release(self, ticket: int, output_tokens: int | None, now_s: float) -> Changes:
        """End an admitted request that ran. `output_tokens` is what all its sequences produced
        together; None teaches nothing. Raises LeaseError when the ticket holds nothing."""
        self._drain.advance(now_s, bool(self._running))
        request = self._give_back(ticket)
        self._counts.released += 1
        if output_tokens is not None:
            each = -(-output_tokens // request.sequences)
            self._outputs.observe(request.prompt_tokens, each)
        return self._settle(now_s)

    def cancel(self, ticket: int, now_s: float) -> Changes:
        """Withdraw a request, waiting or running. A ticket that is neither (it has just expired
        or ended) is none of its business and changes nothing about it."""
        self._drain.advance(now_s, bool(self._running))
        if ticket in self._running:
            self._give_back(ticket)
            self._counts.cancelled_running += 1
        elif self._queue.remove(ticket) is not None:
            self._counts.cancelled_waiting += 1
        return self._settle(now_s)

    def expire(self, now_s: float) -> Changes:
        """Send away those whose deadline has come."""
        self._drain.advance(now_s, bool(self._running))
        return self._settle(now_s)

    def progress(self, ticket: int, output_tokens: int) -> None:
        """Tell how many tokens the longest sequence of a running request has produced, so that
        one that outgrows its reservation counts in full. Needed in optimistic mode only, and not
        for every token. Raises LeaseError when the ticket holds nothing."""
        admission = self._held(ticket)
        self._grow(ticket, self._guard.need_for(admission.request, output_tokens))

    def preempted(self, ticket: int, now_s: float) -> Changes:
        """Tell that the engine had to put a running request back. From here on its whole bound
        is reserved: under trouble, what runs tends to worst-case reservations, under which no
        preemption happens, and nothing new starts while they exceed the pool."""
        self._drain.advance(now_s, bool(self._running))
        admission = self._held(ticket)
        self._counts.preemptions += 1
        self._grow(ticket, self._guard.need_for(admission.request, admission.plan.max_tokens))
        return self._settle(now_s)

    def hold(self) -> None:
        """Nothing starts until `resume`. Who comes meanwhile waits; deadlines go on."""
        self._on_hold = True

    def resume(self, capacity: Capacity, now_s: float) -> Changes:
        """The replica is up, with these pools: what still runs and who waits is measured anew by
        them. Who cannot fit them any more departs with reason `never_fits`."""
        self._drain.advance(now_s, bool(self._running))
        self._on_hold = False
        departed = () if capacity == self._capacity else self._reshape(capacity, now_s)
        changes = self._settle(now_s)
        return Changes(changes.admitted, (*departed, *changes.departed))

    def next_deadline_s(self) -> float | None:
        """When `expire` is next due; None when nobody waits."""
        return self._queue.next_deadline_s()

    def snapshot(self) -> AdmissionSnapshot:
        names = [group.name for group in self._capacity.groups]
        return AdmissionSnapshot(
            counts=msgspec.structs.replace(self._counts),
            running=len(self._running),
            waiting=len(self._queue),
            waiting_by_client=self._queue.waiting_by_client(),
            blocks_total=dict(zip(names, self._capacity.total, strict=True)),
            blocks_used=dict(zip(names, self._ledger.used, strict=True)),
            blocks_peak=dict(zip(names, self._ledger.peak, strict=True)),
            drain_share_per_s=self._drain.rate_per_s(),
        )

    def _judge(self, request: AdmissionRequest, ticket: int, now_s: float) -> Verdict:
        self._drain.advance(now_s, bool(self._running))
        bounds = self._guard.bounds(request)
        too_large = isinstance(bounds, NeverFits)
        if request.multi_gpu_elsewhere and (request.route == "multi_gpu" or too_large):
            return Verdict(action="route4", ticket=ticket)
        if isinstance(bounds, NeverFits):
            return Verdict(action="never_fits", ticket=ticket, message=bounds.message)
        if not self._queue and not self._on_hold:
            # Nobody to be fair to: what fits starts without passing through the queue.
            plan = self._guard.plan(request, bounds, self._free())
            if plan is not None:
                alone = self._hold_for(ticket, request, plan, 0.0)
                return Verdict(action=_started(plan), ticket=ticket, admission=alone)
        entry = self._entry(request, bounds, ticket, now_s)
        expired = self._expire(now_s)
        self._queue.push(entry)
        admitted = self._start_waiting(now_s)
        own = self._running.get(ticket)
        others = Changes(tuple([a for a in admitted if a.ticket != ticket]), expired)
        self._counts.started_from_queue += len(others.admitted)
        if own is not None:
            action = _started(own.plan)
            return Verdict(action=action, ticket=ticket, admission=own, changes=others)
        return self._keep_or_reject(entry, now_s, others)

    def _keep_or_reject(self, entry: Entry, now_s: float, changes: Changes) -> Verdict:
        """A request that cannot start: it waits if there is a place, else someone must go."""
        ticket = entry.ticket
        hopeless = entry.deadline_s <= now_s
        if not hopeless and len(self._queue) <= self._config.max_queue_length:
            return Verdict(action="queue", ticket=ticket, changes=changes)
        retry_after_s = self._retry_after_s()
        self._queue.remove(ticket)
        victim = None if hopeless else self._queue.victim_for(entry.request)
        if victim is None:
            return Verdict(
                action="reject",
                ticket=ticket,
                retry_after_s=retry_after_s,
                message=f"the server is full; retry after {retry_after_s} s",
                changes=changes,
            )
        self._queue.push(entry)
        self._counts.shed += 1
        shed = self._depart(victim, "shed", now_s)
        changes = Changes(changes.admitted, (*changes.departed, shed))
        return Verdict(action="queue", ticket=ticket, changes=changes)

    def _entry(self, request: AdmissionRequest, bounds: Bounds, ticket: int, now_s: float) -> Entry:
        deadline_s = now_s + self._config.max_wait_s
        if request.deadline_s is not None:
            deadline_s = min(deadline_s, request.deadline_s)
        return Entry(
            ticket=ticket,
            request=request,
            bounds=bounds,
            need=self._guard.need_on_empty_pool(request, bounds),
            cost_tokens=self._guard.expected_tokens(request, bounds),
            arrived_s=now_s,
            deadline_s=deadline_s,
        )

    def _reshape(self, capacity: Capacity, now_s: float) -> tuple[Departure, ...]:
        """Take over every lease and every waiting request into pools of another shape."""
        self._capacity = capacity
        self._guard = Guard(capacity, self._config, self._outputs)
        self._ledger = LeaseLedger(len(capacity.groups))
        for ticket, running in self._running.items():
            need = self._guard.need_for(running.request, running.plan.expected_tokens)
            self._ledger.reserve(ticket, running.request.client_id, need)
        waiting, self._queue = self._queue, FairQueue(self._config.ageing_s, len(capacity.groups))
        departed: list[Departure] = []
        for entry in waiting:
            request, bounds = self._fewer_at_once(entry.request)
            if isinstance(bounds, NeverFits):
                self._counts.no_longer_fits += 1
                waited_s = now_s - entry.arrived_s
                departed.append(
                    Departure(entry.ticket, request, "never_fits", waited_s, 0, bounds.message)
                )
                continue
            moved = self._entry(request, bounds, entry.ticket, entry.arrived_s)
            moved.passed_by = entry.passed_by
            self._queue.push(moved)
        return tuple(departed)

    def _fewer_at_once(
        self, request: AdmissionRequest
    ) -> tuple[AdmissionRequest, Bounds | NeverFits]:
        """The request with as many sequences at once as the pools can hold, at least one."""
        bounds = self._guard.bounds(request)
        while isinstance(bounds, NeverFits) and request.sequences > 1:
            request = msgspec.structs.replace(request, sequences=request.sequences - 1)
            bounds = self._guard.bounds(request)
        return request, bounds

    def _settle(self, now_s: float) -> Changes:
        """Expire, then start whoever now fits."""
        departed = self._expire(now_s)
        if not self._queue:
            return Changes((), departed) if departed else NO_CHANGES
        admitted = self._start_waiting(now_s)
        self._counts.started_from_queue += len(admitted)
        return Changes(admitted, departed)

    def _expire(self, now_s: float) -> tuple[Departure, ...]:
        if not self._queue:
            return ()
        due = self._queue.expired(now_s)
        self._counts.expired += len(due)
        return tuple([self._depart(entry, "deadline", now_s) for entry in due])

    def _depart(self, entry: Entry, reason: Literal["deadline", "shed"], now_s: float) -> Departure:
        retry_after_s = self._retry_after_s()
        self._queue.remove(entry.ticket)
        waited_s = now_s - entry.arrived_s
        return Departure(entry.ticket, entry.request, reason, waited_s, retry_after_s)

    def _start_waiting(self, now_s: float) -> tuple[Admission, ...]:
        """Start those that fit, in order, within the bypass limits."""
        admitted: list[Admission] = []
        while self._queue and not self._on_hold:
            passed: list[Entry] = []
            for entry in islice(self._queue.in_order(now_s), self._config.scan_limit):
                plan = self._guard.plan(entry.request, entry.bounds, self._free())
                if plan is not None:
                    admitted.append(self._start(entry, plan, passed, now_s))
                    break
                passed.append(entry)
                if entry.passed_by >= self._config.bypass_limit:
                    return tuple(admitted)
            else:
                break
        return tuple(admitted)

    def _start(self, entry: Entry, plan: Plan, passed: list[Entry], now_s: float) -> Admission:
        self._queue.start(entry.ticket, now_s, passed)
        return self._hold_for(entry.ticket, entry.request, plan, now_s - entry.arrived_s)

    def _hold_for(
        self, ticket: int, request: AdmissionRequest, plan: Plan, waited_s: float
    ) -> Admission:
        self._ledger.reserve(ticket, request.client_id, plan.blocks)
        admission = Admission(ticket, request, plan, waited_s)
        self._running[ticket] = admission
        return admission

    def _give_back(self, ticket: int) -> AdmissionRequest:
        blocks = self._ledger.release(ticket)
        self._drain.freed(self._capacity.share(blocks))
        return self._running.pop(ticket).request

    def _grow(self, ticket: int, need: Blocks) -> None:
        if self._ledger.grow(ticket, need) and min(self._free()) < 0:
            self._counts.overcommits += 1

    def _held(self, ticket: int) -> Admission:
        admission = self._running.get(ticket)
        if admission is None:
            raise LeaseError(f"ticket {ticket} holds no lease")
        return admission

    def _free(self) -> list[int]:
        total, used = self._capacity.total, self._ledger.used
        return [a - b for a, b in zip(total, used, strict=True)]

    def _retry_after_s(self) -> int:
        """When the drain will have made room for all that wait; ask before taking out the one
        that leaves, so that its own need counts."""
        short = [need - left for need, left in zip(self._queue.need, self._free(), strict=True)]
        return self._drain.retry_after_s(
            max(0.0, self._capacity.share(short)),
            fallback_s=self._config.retry_fallback_s,
            cap_s=self._config.retry_cap_s,
        )


def _started(plan: Plan) -> Action:
    return "shrink" if plan.shrunk else "accept"
