"""A fleet of simulated replicas behind one dispatcher: plays a workload, deterministically.

Knows: pools, a ranking policy, failures, the order of events. Does not know: how a policy ranks or
how a replica computes. At equal moments a failure comes before an arrival, an arrival before a
replica's step, replicas by their place. The dispatcher sees each replica as it is at that moment,
its step under way counted as far as it is.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.routing.policies.expected import ExpectedOutputs
from gpt_oss_server.routing.policies.view import Ask, PoolFacts, RankingPolicy, ReplicaState
from gpt_oss_server.simulate.engine import Engine
from gpt_oss_server.simulate.fleet import Failure, Fleet, interruptions
from gpt_oss_server.simulate.outcome import (
    DROPPED,
    EXPIRED,
    FAILED,
    REFUSED,
    SERVED,
    Outcome,
    ReplicaRecord,
    Samples,
)
from gpt_oss_server.simulate.sequence import Sequence as Seq
from gpt_oss_server.simulate.slo import Slo
from gpt_oss_server.simulate.workload import Request, Workload

MAX_ATTEMPTS = 3


@dataclass
class _Member:
    """A replica in the fleet, and what the dispatcher keeps of it."""

    id: str
    facts: PoolFacts
    engine: Engine
    ready: bool = True
    in_flight: int = 0
    assigned_tokens: float = 0.0
    requests: int = 0
    expected: dict[int, float] = field(default_factory=dict)


def simulate(
    workload: Workload,
    fleet: Fleet,
    policy: RankingPolicy,
    *,
    slo: Slo | None = None,
    failures: Sequence[Failure] = (),
    sample_every_s: float | None = None,
    clients: int | None = None,
    clairvoyant: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Play the workload on the fleet.

    Args:
        slo: what requests are promised; policies may use it.
        clients: closed loop: so many requests are in flight, arrivals in the workload give only
            their order.
        clairvoyant: policies are told how long each answer will be, instead of what answers to
            such prompts have come to.
        progress: told (requests that came, all) now and then.

    Raises:
        ConfigError: a failure of a replica that does not exist, units that are no whole number of
            blocks.
    """
    run = _Run(workload, fleet, policy, slo or Slo(), failures, sample_every_s, clients)
    run.clairvoyant = clairvoyant
    return run.play(progress)


class _Run:
    """One run's state. `play` is the event loop."""

    def __init__(
        self,
        workload: Workload,
        fleet: Fleet,
        policy: RankingPolicy,
        slo: Slo,
        failures: Sequence[Failure],
        sample_every_s: float | None,
        clients: int | None,
    ) -> None:
        self.workload = workload
        self.policy = policy
        self.slo = slo
        self.clients = clients
        self.clairvoyant = False
        self.holders: dict[int, int] = {}
        self.members = self._members(fleet)
        self.by_id = {member.id: member for member in self.members}
        self.expected = ExpectedOutputs()
        self.asked = 0
        # (moment, order, what): failures and recoveries before arrivals of the same moment.
        self.interruptions = sorted(interruptions(failures, len(self.members)))
        self.results: list[Seq | None] = [None] * len(workload.requests)
        self.ended = np.full(len(workload.requests), FAILED, dtype=np.int64)
        self.where = np.full(len(workload.requests), -1, dtype=np.int64)
        self.every_s = sample_every_s
        self.sampled: list[tuple[float, list[float], list[float], list[int]]] = []
        self.next_sample_s = 0.0 if sample_every_s else math.inf
        self.busy_before = [0.0] * len(self.members)
        self.longest = max(member.facts.longest_tokens for member in self.members)
        self.now_s = 0.0

    def play(self, progress: Callable[[int, int], None] | None) -> Outcome:
        requests = self.workload.requests
        arrivals = self._arrivals()
        total = len(requests)
        place = 0
        engines = [member.engine for member in self.members]
        events = [math.inf] * len(engines)
        while True:
            arrival_s = arrivals[place][0] if place < len(arrivals) else math.inf
            event_s = min(events)
            interrupt_s = self.interruptions[0][0] if self.interruptions else math.inf
            now_s = min(arrival_s, event_s, interrupt_s)
            if self.next_sample_s <= now_s < math.inf:
                self._sample(self.next_sample_s)
                continue
            if now_s == math.inf:
                break
            self.now_s = now_s
            if interrupt_s <= now_s:
                self._interrupt(now_s)
                for index, engine in enumerate(engines):
                    events[index] = engine.next_s
            elif arrival_s <= now_s:
                index = arrivals[place][1]
                place += 1
                self._arrive(index, requests[index], now_s, events)
                if progress is not None and place % 1000 == 0:
                    progress(place, total)
            else:
                index = events.index(event_s)
                engine = engines[index]
                engine.step()
                if engine.finished or engine.expired:
                    self._collect(self.members[index], arrivals)
                events[index] = engine.next_s
        if progress is not None:
            progress(total, total)
        return self._outcome()

    def _members(self, fleet: Fleet) -> list[_Member]:
        members: list[_Member] = []
        names: dict[str, int] = {}
        unit = self.workload.unit_tokens
        hashed = any(request.units for request in self.workload.requests)
        for pool in fleet.pools:
            replica = pool.replica
            name = pool.name or replica.shape.name
            names[name] = names.get(name, 0) + 1
            if names[name] > 1:
                name = f"{name}.{names[name]}"
            settings = replica.settings
            if hashed and unit % settings.block_size:
                raise ConfigError(
                    f"a unit of {unit} tokens is no whole number of blocks of {settings.block_size}"
                )
            facts = PoolFacts(
                name=name,
                gpus=replica.shape.gpus,
                speed=replica.time,
                kv_tokens=replica.kv_tokens,
                longest_tokens=replica.longest_tokens,
                step_prefill_s=replica.time.prefill_s(settings.max_batch_tokens, 0),
                max_num_seqs=settings.max_num_seqs,
                shortest_first=settings.prefill_order == "shortest",
            )
            for number in range(pool.count):
                engine = Engine(
                    replica,
                    unit_tokens=unit if hashed else 0,
                    holders=self.holders,
                    index=len(members),
                )
                members.append(_Member(f"{name}/{number:03d}", facts, engine))
        return members

    def _arrivals(self) -> list[tuple[float, int]]:
        """(moment, index) by moment; in a closed loop those of the first clients only."""
        requests = self.workload.requests
        if self.clients is None:
            return [(request.arrival_s, index) for index, request in enumerate(requests)]
        self.asked = 0
        return [(0.0, index) for index in range(min(self.clients, len(requests)))]

    def _arrive(self, index: int, request: Request, now_s: float, events: list[float]) -> None:
        seq = Seq(
            index,
            now_s,
            request.input_tokens,
            request.output_tokens,
            request.units[: request.input_tokens // self.workload.unit_tokens]
            if request.units
            else (),
            request.tail_units,
        )
        self.results[index] = seq
        self._dispatch(seq, request.max_output_tokens, now_s, events)

    def _dispatch(self, seq: Seq, bound: int, now_s: float, events: list[float]) -> None:
        """Send a sequence where the policy ranks first, or to the next that takes it."""
        needs = seq.input_tokens + max(bound, seq.output_tokens)
        if needs > self.longest:
            self.ended[seq.index] = REFUSED
            return
        promise = self.slo.class_of(seq.input_tokens)
        expected = self._expect(seq, bound)
        ask = Ask(
            number=self.asked,
            input_tokens=seq.input_tokens,
            expected_output_tokens=expected,
            max_output_tokens=bound,
            ttft_s=promise.ttft_s,
            tpot_s=promise.tpot_s,
            now_s=now_s,
        )
        self.asked += 1
        seq.attempts += 1
        up = False
        for ranked in self.policy.rank(ask, self._states(seq, now_s)):
            member = self.by_id[ranked.id]
            up = True
            # An answer that its client left open may outgrow what this replica can ever hold.
            if needs <= member.facts.longest_tokens and member.engine.enqueue(seq, now_s):
                self._assigned(member, seq, expected)
                events[member.engine.index] = member.engine.next_s
                return
        self.ended[seq.index] = DROPPED if up else FAILED

    def _expect(self, seq: Seq, bound: int) -> float:
        """Tokens that the answer is taken to have."""
        if self.clairvoyant:
            return float(seq.output_tokens)
        expected = self.expected.predict(seq.input_tokens)
        return min(expected, float(bound)) if bound else expected

    def _assigned(self, member: _Member, seq: Seq, expected: float) -> None:
        member.in_flight += 1
        member.requests += 1
        load = seq.input_tokens + expected
        member.expected[seq.index] = load
        member.assigned_tokens += load
        self.where[seq.index] = member.engine.index

    def _states(self, seq: Seq, now_s: float) -> list[ReplicaState]:
        cached = self._cached(seq) if seq.units else None
        states = []
        for place, member in enumerate(self.members):
            decoding, context, waiting, left, work, free, share = member.engine.look(now_s)
            states.append(
                ReplicaState(
                    id=member.id,
                    pool=member.facts,
                    decoding=decoding,
                    context_tokens=context,
                    waiting=waiting,
                    waiting_tokens=left,
                    waiting_work_s=work,
                    kv_free_tokens=free,
                    prefill_share=share,
                    in_flight=member.in_flight,
                    assigned_tokens=member.assigned_tokens,
                    cached_tokens=cached[place] if cached else 0,
                    ready=member.ready,
                )
            )
        return states

    def _cached(self, seq: Seq) -> list[int]:
        """Tokens of the longest prefix that each replica has: one walk over the hashes."""
        unit = self.workload.unit_tokens
        found = [0] * len(self.members)
        holders = self.holders
        most = (seq.length - 1) // unit
        alive = holders.get(seq.units[0], 0)
        depth = 0
        while alive and depth < most:
            depth += 1
            following = alive & holders.get(seq.units[depth], 0) if depth < len(seq.units) else 0
            gone = alive & ~following
            while gone:
                bit = gone & -gone
                found[bit.bit_length() - 1] = depth * unit
                gone ^= bit
            alive = following
        while alive:
            bit = alive & -alive
            found[bit.bit_length() - 1] = depth * unit
            alive ^= bit
        return found

    def _collect(self, member: _Member, arrivals: list[tuple[float, int]]) -> None:
        """Take what a replica finished."""
        engine = member.engine
        for seq in engine.finished:
            self.ended[seq.index] = SERVED
            self.expected.observe(seq.input_tokens, seq.output_tokens)
            self._over(member, seq)
        for seq in engine.expired:
            self.ended[seq.index] = EXPIRED
            self._over(member, seq)
        if self.clients is not None:
            for seq in (*engine.finished, *engine.expired):
                if len(arrivals) < len(self.results):
                    moment_s = seq.finish_s if seq.finish_s >= 0 else self.now_s
                    _insert(arrivals, (max(moment_s, self.now_s), len(arrivals)))
        engine.finished.clear()
        engine.expired.clear()

    def _over(self, member: _Member, seq: Seq) -> None:
        member.in_flight -= 1
        left = member.assigned_tokens - member.expected.pop(seq.index)
        member.assigned_tokens = left if member.in_flight else 0.0

    def _interrupt(self, now_s: float) -> None:
        _, order, index = heapq.heappop(self.interruptions)
        member = self.members[index]
        if order:
            member.ready = True
            return
        member.ready = False
        events = [math.inf] * len(self.members)
        for seq in member.engine.fail():
            self._over(member, seq)
            self.where[seq.index] = -1
            if seq.first_token_s >= 0 or seq.attempts >= MAX_ATTEMPTS:
                seq.first_token_s = -1.0
                self.ended[seq.index] = FAILED
            else:
                seq.computed = 0
                bound = self.workload.requests[seq.index].max_output_tokens
                self._dispatch(seq, bound, now_s, events)

    def _sample(self, at_s: float) -> None:
        """Note how the fleet is doing. Utilisation is of the time since the sample before."""
        every_s = self.every_s or 1.0
        busy, kv, waiting = [], [], []
        for place, member in enumerate(self.members):
            engine = member.engine
            spent_s = engine.busy_until(at_s)
            busy.append(min(1.0, (spent_s - self.busy_before[place]) / every_s))
            self.busy_before[place] = spent_s
            pool = engine.scheduler.pool
            kv.append(pool.referenced / pool.blocks)
            waiting.append(len(engine.scheduler.waiting))
        self.sampled.append((at_s, busy, kv, waiting))
        self.next_sample_s = at_s + every_s

    def _outcome(self) -> Outcome:
        requests = self.workload.requests
        count = len(requests)
        ttft, e2e = np.full(count, np.nan), np.full(count, np.nan)
        arrived = np.array([r.arrival_s for r in requests], dtype=np.float64)
        cached, preempted = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        end_s = 0.0
        for index, seq in enumerate(self.results):
            if seq is None:
                continue
            arrived[index] = seq.arrived_s
            preempted[index] = seq.preemptions
            if self.ended[index] == SERVED:
                ttft[index] = seq.first_token_s - seq.arrived_s
                e2e[index] = seq.finish_s - seq.arrived_s
                cached[index] = max(0, seq.cached_tokens)
                end_s = max(end_s, seq.finish_s)
        closed_s = end_s if self.clients is not None else self.workload.duration_s
        return Outcome(
            arrival_s=arrived,
            input_tokens=np.array([r.input_tokens for r in requests], dtype=np.int64),
            output_tokens=np.array([r.output_tokens for r in requests], dtype=np.int64),
            ended=self.ended,
            ttft_s=ttft,
            e2e_s=e2e,
            cached_tokens=cached,
            preemptions=preempted,
            replica=self.where,
            replicas=tuple(_record(member) for member in self.members),
            span_s=closed_s,
            end_s=end_s,
            samples=_samples(self.sampled),
        )


def _insert(arrivals: list[tuple[float, int]], entry: tuple[float, int]) -> None:
    """Keep a closed loop's arrivals sorted; a new one is nearly always the last."""
    place = len(arrivals)
    while place and arrivals[place - 1] > entry:
        place -= 1
    arrivals.insert(place, entry)


def _record(member: _Member) -> ReplicaRecord:
    engine = member.engine
    return ReplicaRecord(
        id=member.id,
        pool=member.facts.name,
        gpus=member.facts.gpus,
        requests=member.requests,
        busy_s=engine.busy_s,
        steps=engine.steps,
        prefill_tokens=engine.prefill_tokens,
        decode_tokens=engine.decode_tokens,
        preemptions=engine.scheduler.preemptions,
    )


def _samples(rows: list[tuple[float, list[float], list[float], list[int]]]) -> Samples | None:
    if not rows:
        return None
    return Samples(
        at_s=np.array([row[0] for row in rows]),
        utilization=np.array([row[1] for row in rows]),
        kv_share=np.array([row[2] for row in rows]),
        waiting=np.array([row[3] for row in rows], dtype=np.int64),
    )
