"""A fleet of simulated replicas behind one dispatcher: plays a workload, deterministically.

Knows: pools, a ranking policy, failures, the order of events. Does not know: how a policy ranks or
how a replica computes. At equal moments a failure comes before an arrival, an arrival before a
replica's step, replicas by their place. The dispatcher sees each replica as it is at that moment,
its step under way counted as far as it is, or (`view_age_s`) as it last reported.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence

import numpy as np

from gpt_oss_server.routing.policies.expected import ExpectedOutputs
from gpt_oss_server.routing.policies.view import Ask, RankingPolicy
from gpt_oss_server.simulate.fleet.pools import Failure, Fleet, interruptions
from gpt_oss_server.simulate.fleet.roster import Member, Roster
from gpt_oss_server.simulate.replica.sequence import Sequence as Seq
from gpt_oss_server.simulate.results.outcome import (
    DROPPED,
    EXPIRED,
    FAILED,
    REFUSED,
    SERVED,
    Outcome,
    Samples,
)
from gpt_oss_server.simulate.results.slo import Slo
from gpt_oss_server.simulate.workload.requests import Request, Workload

MAX_ATTEMPTS = 3
MOST_LOOKS = 100_001
"""Of more looks at the fleet neighbours become one: how long a closed loop lasts shows only at its
end."""
_Looks = tuple[float, list[float], list[float], list[int], list[int]]
"""A moment; by replica busy, KV in use, waiting, decoding: the columns of `Samples`."""


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
    view_age_s: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Play the workload on the fleet.

    Args:
        slo: what requests are promised; policies may use it.
        clients: closed loop: so many requests are in flight, arrivals in the workload give only
            their order. Who is turned away asks something else when told to come again.
        clairvoyant: policies are told how long each answer will be, instead of what answers to
            such prompts have come to.
        view_age_s: how often each replica reports to the dispatcher; 0: its state is always known.
        progress: told (requests that came, all) now and then.

    Raises:
        ConfigError: a failure of a replica that does not exist, units that are no whole number of
            blocks, an age below 0.
    """
    hashed = any(request.units for request in workload.requests)
    roster = Roster(fleet, workload.unit_tokens, hashed=hashed, view_age_s=view_age_s)
    run = _Run(workload, roster, policy, slo or Slo(), failures, sample_every_s, clients)
    run.clairvoyant = clairvoyant
    return run.play(progress)


class _Run:
    """One run's state. `play` is the event loop."""

    def __init__(
        self,
        workload: Workload,
        roster: Roster,
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
        self.roster = roster
        self.members = roster.members
        self.expected = ExpectedOutputs()
        self.asked = 0
        # (moment, order, what): failures and recoveries before arrivals of the same moment.
        self.interruptions = sorted(interruptions(failures, len(self.members)))
        self.results: list[Seq | None] = [None] * len(workload.requests)
        self.ended = np.full(len(workload.requests), FAILED, dtype=np.int64)
        self.where = np.full(len(workload.requests), -1, dtype=np.int64)
        self.every_s = sample_every_s
        self.sampled: list[_Looks] = []
        self.next_sample_s = 0.0 if sample_every_s else math.inf
        self.busy_before = [0.0] * len(self.members)
        self.longest = max(member.facts.longest_tokens for member in self.members)
        self.now_s = 0.0

    def play(self, progress: Callable[[int, int], None] | None) -> Outcome:
        requests = self.workload.requests
        arrivals = self._arrivals()
        total = len(requests)
        place = 0
        servers = [member.server for member in self.members]
        events = [math.inf] * len(servers)
        while True:
            arrival_s = arrivals[place][0] if place < len(arrivals) else math.inf
            event_s = min(events)
            interrupt_s = self.interruptions[0][0] if self.interruptions else math.inf
            if min(arrival_s, event_s) == math.inf:
                break  # failures of an idle fleet concern nobody
            now_s = min(arrival_s, event_s, interrupt_s)
            if self.next_sample_s <= now_s:
                self._sample(self.next_sample_s)
                continue
            if self.roster.next_s <= now_s:
                self.roster.refresh(now_s)
            self.now_s = now_s
            if interrupt_s <= now_s:
                self._interrupt(now_s, arrivals)
                for index, server in enumerate(servers):
                    events[index] = server.next_s
            elif arrival_s <= now_s:
                index = arrivals[place][1]
                place += 1
                self._arrive(index, requests[index], now_s, events, arrivals)
                if progress is not None and place % 1000 == 0:
                    progress(place, total)
            else:
                index = events.index(event_s)
                server = servers[index]
                server.step()
                if server.begun:
                    self._first_tokens(self.members[index])
                if server.finished or server.expired or server.shed:
                    self._collect(self.members[index], arrivals)
                events[index] = server.next_s
        if progress is not None:
            progress(total, total)
        return self._outcome()

    def _arrivals(self) -> list[tuple[float, int]]:
        """(moment, index) by moment; in a closed loop those of the first clients only."""
        requests = self.workload.requests
        if self.clients is None:
            return [(request.arrival_s, index) for index, request in enumerate(requests)]
        self.asked = 0
        return [(0.0, index) for index in range(min(self.clients, len(requests)))]

    def _arrive(
        self,
        index: int,
        request: Request,
        now_s: float,
        events: list[float],
        arrivals: list[tuple[float, int]],
    ) -> None:
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
        self._dispatch(seq, request, now_s, events, arrivals)

    def _dispatch(
        self,
        seq: Seq,
        request: Request,
        now_s: float,
        events: list[float],
        arrivals: list[tuple[float, int]],
    ) -> None:
        """Send a sequence where the policy ranks first, or to the next that takes it."""
        bound = request.max_output_tokens
        needs = seq.input_tokens + max(bound, seq.output_tokens)
        if needs > self.longest:
            self._turn_away(seq, REFUSED, now_s, arrivals)
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
        end, again_s = FAILED, 0.0
        states = self.roster.states(seq, now_s)
        for ranked in self.policy.rank(ask, states):
            member = self.roster.by_id[ranked.id]
            # An answer that its client left open may outgrow what this replica can ever hold.
            answer = "too_large"
            if needs <= member.facts.longest_tokens:
                answer = member.server.enqueue(seq, request, now_s)
                if member.server.shed or member.server.expired:
                    self._collect(member, arrivals)
                events[member.server.index] = member.server.next_s
            if answer == "taken":
                cached = states[member.server.index].cached_tokens
                self.where[seq.index] = member.server.index
                self.roster.sent(member, seq, expected, cached)
                return
            if answer == "full":
                again_s = max(again_s, float(member.server.retry_after_s))
                end = DROPPED
            elif end == FAILED:
                end = REFUSED
        self._turn_away(seq, end, now_s + again_s, arrivals)

    def _turn_away(
        self, seq: Seq, end: int, again_s: float, arrivals: list[tuple[float, int]]
    ) -> None:
        """Nobody takes it. Its client, if it waits for each answer, goes on at `again_s`."""
        self.ended[seq.index] = end
        self._next_of_client(again_s, arrivals)

    def _next_of_client(self, moment_s: float, arrivals: list[tuple[float, int]]) -> None:
        """In a closed loop: a client whose request is over asks the next."""
        if self.clients is not None and len(arrivals) < len(self.results):
            _insert(arrivals, (max(moment_s, self.now_s), len(arrivals)))

    def _expect(self, seq: Seq, bound: int) -> float:
        """Tokens that the answer is taken to have."""
        if self.clairvoyant:
            return float(seq.output_tokens)
        expected = self.expected.predict(seq.input_tokens)
        return min(expected, float(bound)) if bound else expected

    def _first_tokens(self, member: Member) -> None:
        for seq in member.server.begun:
            self.roster.started(member, seq)
        member.server.begun.clear()

    def _collect(self, member: Member, arrivals: list[tuple[float, int]]) -> None:
        """Take what a replica finished, and whom it sent away."""
        server = member.server
        for seq in server.finished:
            self.ended[seq.index] = SERVED
            self.expected.observe(seq.input_tokens, seq.output_tokens)
            self.roster.over(member, seq)
            self._next_of_client(seq.finish_s, arrivals)
        for gone, end in ((server.expired, EXPIRED), (server.shed, DROPPED)):
            for seq in gone:
                self.ended[seq.index] = end
                self.roster.over(member, seq)
                self._next_of_client(self.now_s, arrivals)
            gone.clear()
        server.finished.clear()

    def _interrupt(self, now_s: float, arrivals: list[tuple[float, int]]) -> None:
        _, order, index = heapq.heappop(self.interruptions)
        member = self.members[index]
        if order:
            member.ready = True
            return
        self.roster.gone(member)
        events = [math.inf] * len(self.members)
        for seq in member.server.fail():
            self.roster.over(member, seq)
            self.where[seq.index] = -1
            if seq.first_token_s >= 0 or seq.attempts >= MAX_ATTEMPTS:
                seq.first_token_s = -1.0
                self._turn_away(seq, FAILED, now_s, arrivals)
            else:
                seq.computed = 0
                request = self.workload.requests[seq.index]
                self._dispatch(seq, request, now_s, events, arrivals)

    def _sample(self, at_s: float) -> None:
        """Note how the fleet is doing. Utilisation is of the time since the sample before."""
        every_s = self.every_s or 1.0
        busy, kv, waiting, decoding = [], [], [], []
        for place, member in enumerate(self.members):
            engine = member.server.engine
            spent_s = engine.busy_until(at_s)
            busy.append(min(1.0, (spent_s - self.busy_before[place]) / every_s))
            self.busy_before[place] = spent_s
            count, _, _, _, _, free_tokens, _ = engine.look(at_s)
            kv.append(1.0 - free_tokens / member.facts.kv_tokens)
            waiting.append(member.server.waiting)
            decoding.append(count)
        self.sampled.append((at_s, busy, kv, waiting, decoding))
        if len(self.sampled) >= MOST_LOOKS:
            self.sampled = _halved(self.sampled)
            self.every_s = every_s = 2 * every_s
        self.next_sample_s = at_s + every_s

    def _outcome(self) -> Outcome:
        requests = self.workload.requests
        count = len(requests)
        ttft, e2e = np.full(count, np.nan), np.full(count, np.nan)
        arrived = np.array([r.arrival_s for r in requests], dtype=np.float64)
        answered = np.array([r.output_tokens for r in requests], dtype=np.int64)
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
                answered[index] = seq.output_tokens
                end_s = max(end_s, seq.finish_s)
        cut = sum(member.server.cut for member in self.members)
        # Open: as long as so many take at their mean rate, so that goodput never exceeds it.
        came_s = end_s
        if self.clients is None:
            rate = self.workload.requests_per_s
            came_s = count / rate if rate > 0 else 0.0
        return Outcome(
            arrival_s=arrived,
            input_tokens=np.array([r.input_tokens for r in requests], dtype=np.int64),
            output_tokens=answered,
            ended=self.ended,
            ttft_s=ttft,
            e2e_s=e2e,
            cached_tokens=cached,
            preemptions=preempted,
            replica=self.where,
            replicas=tuple(member.record() for member in self.members),
            span_s=came_s,
            end_s=end_s,
            samples=_samples(self.sampled),
            notes=(f"{cut} answers were cut at the bound they were granted",) if cut else (),
        )


def _insert(arrivals: list[tuple[float, int]], entry: tuple[float, int]) -> None:
    """Keep a closed loop's arrivals sorted; a new one is nearly always the last."""
    place = len(arrivals)
    while place and arrivals[place - 1] > entry:
        place -= 1
    arrivals.insert(place, entry)


def _halved(rows: list[_Looks]) -> list[_Looks]:
    """An odd number of looks, of which the first is of the moment before anything happened: the
    others in pairs, as if looked at half as often."""
    halved = rows[:1]
    for before, (at_s, busy, kv, waiting, decoding) in zip(rows[1::2], rows[2::2], strict=True):
        means = [(one + other) / 2 for one, other in zip(before[1], busy, strict=True)]
        halved.append((at_s, means, kv, waiting, decoding))
    return halved


def _samples(rows: list[_Looks]) -> Samples | None:
    if not rows:
        return None
    return Samples(
        at_s=np.array([row[0] for row in rows]),
        utilization=np.array([row[1] for row in rows]),
        kv_share=np.array([row[2] for row in rows]),
        waiting=np.array([row[3] for row in rows], dtype=np.int64),
        decoding=np.array([row[4] for row in rows], dtype=np.int64),
    )
