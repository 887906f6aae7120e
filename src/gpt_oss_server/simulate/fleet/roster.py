"""What a simulated dispatcher knows of its replicas: what they report, and what it sent them.

Knows: replicas' states at a moment, the age of reports, the dispatcher's own books, which prefix is
cached where. Does not know: policies, arrivals, how a replica works. Reports may be some time old,
as a live dispatcher's are: each replica makes one every `view_age_s`, at moments of its own. What
it sent since the report, whose first token came back and whose answer ended, the dispatcher knows
by itself, at once; so does it (as a router with an index of prefixes does) what is cached where.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.routing.policies.reports import (
    Report,
    Sent,
    with_ended,
    with_sent,
    with_started,
)
from gpt_oss_server.routing.policies.view import PoolFacts, ReplicaState
from gpt_oss_server.simulate.fleet.memory_facts import memory_facts
from gpt_oss_server.simulate.fleet.pools import Fleet
from gpt_oss_server.simulate.replica.sequence import Sequence as Seq
from gpt_oss_server.simulate.replica.server import Server
from gpt_oss_server.simulate.results.outcome import ReplicaRecord


@dataclass
class Member:
    """A replica in the fleet, and what the dispatcher keeps of it."""

    id: str
    facts: PoolFacts
    server: Server
    ready: bool = True
    in_flight: int = 0
    assigned_tokens: float = 0.0
    requests: int = 0
    expected: dict[int, float] = field(default_factory=dict)
    sent: dict[int, Sent] = field(default_factory=dict)
    report: Report | None = None
    reported_s: float = -math.inf

    def record(self) -> ReplicaRecord:
        """What the replica did."""
        engine = self.server.engine
        return ReplicaRecord(
            id=self.id,
            pool=self.facts.name,
            gpus=self.facts.gpus,
            requests=self.requests,
            busy_s=engine.busy_s,
            steps=engine.steps,
            prefill_tokens=engine.prefill_tokens,
            decode_tokens=engine.decode_tokens,
            preemptions=engine.scheduler.preemptions,
        )

    def reported(self, now_s: float) -> Report:
        """The replica as it is; the report stays as it was made."""
        decoding, context, waiting, left, work, free, share = self.server.engine.look(now_s)
        return Report(
            decoding=decoding,
            context_tokens=context,
            waiting=waiting + self.server.before_engine,
            waiting_tokens=left,
            waiting_work_s=tuple(work),
            kv_free_tokens=free,
            kv_reserved_tokens=self.server.reserved_tokens,
            prefill_share=share,
        )

    def state(self, now_s: float, cached_tokens: int) -> ReplicaState:
        """As the dispatcher sees it: its report, or without one the replica as it is now."""
        report = self.report
        work: Sequence[float]
        if report is None:
            engine, gate = self.server.engine, self.server.gate
            decoding, context, waiting, left, work, free, share = engine.look(now_s)
            reserved = 0
            if gate is not None:
                waiting += gate.waiting
                reserved = gate.reserved_tokens
        else:
            decoding, context, waiting = report.decoding, report.context_tokens, report.waiting
            left, work, free = report.waiting_tokens, report.waiting_work_s, report.kv_free_tokens
            reserved, share = report.kv_reserved_tokens, report.prefill_share
        return ReplicaState(
            id=self.id,
            pool=self.facts,
            decoding=decoding,
            context_tokens=context,
            waiting=waiting,
            waiting_tokens=left,
            waiting_work_s=work,
            kv_free_tokens=free,
            kv_reserved_tokens=reserved,
            prefill_share=share,
            in_flight=self.in_flight,
            assigned_tokens=self.assigned_tokens,
            cached_tokens=cached_tokens,
            ready=self.ready,
        )


class Roster:
    """The members of a fleet, in order of its pools.

    With a `view_age_s` above 0 `refresh` must be called whenever time passes `next_s`, before
    anything else happens. Raises ConfigError for an age below 0, and for units of the workload that
    are no whole number of blocks.
    """

    def __init__(
        self, fleet: Fleet, unit_tokens: int, *, hashed: bool, view_age_s: float = 0.0
    ) -> None:
        if not view_age_s >= 0 or math.isinf(view_age_s):
            raise ConfigError(f"the age of views must be at least 0 s, not {view_age_s}")
        self._unit_tokens = unit_tokens
        self._age_s = view_age_s
        self._holders: dict[int, int] = {}
        self.members = self._members(fleet, unit_tokens if hashed else 0)
        self.by_id = {member.id: member for member in self.members}
        self.next_s = 0.0 if view_age_s else math.inf

    def refresh(self, now_s: float) -> None:
        """Have every replica whose time has come report, as of that time."""
        age_s, count = self._age_s, len(self.members)
        following_s = math.inf
        for place, member in enumerate(self.members):
            offset_s = age_s * place / count
            due_s = math.floor((now_s - offset_s) / age_s) * age_s + offset_s
            if due_s > member.reported_s:
                member.report = member.reported(max(0.0, due_s))
                member.reported_s = due_s
            following_s = min(following_s, due_s + age_s)
        # Rounding may put a moment at its predecessor: time must pass.
        self.next_s = following_s if following_s > now_s else now_s + age_s / count

    def states(self, seq: Seq, now_s: float) -> list[ReplicaState]:
        """All replicas, as the dispatcher sees them when this request comes."""
        if not seq.units:
            return [member.state(now_s, 0) for member in self.members]
        cached = self._cached(seq)
        return [
            member.state(now_s, tokens) for member, tokens in zip(self.members, cached, strict=True)
        ]

    def sent(self, member: Member, seq: Seq, expected_tokens: float, cached_tokens: int) -> None:
        """A request went there, with so much of it cached: enter it in the books."""
        member.in_flight += 1
        member.requests += 1
        load = seq.input_tokens + expected_tokens
        member.expected[seq.index] = load
        member.assigned_tokens += load
        if member.report is not None:
            new_tokens = seq.input_tokens - cached_tokens
            work_s = member.facts.speed.prefill_s(new_tokens, cached_tokens)
            sent = member.sent[seq.index] = Sent(seq.input_tokens, new_tokens, work_s)
            member.report = with_sent(member.report, sent)

    def started(self, member: Member, seq: Seq) -> None:
        """A first token came back from there."""
        sent = member.sent.get(seq.index)
        if sent is not None and member.report is not None and not sent.started:
            member.report = with_started(member.report, sent)
            member.sent[seq.index] = msgspec.structs.replace(sent, started=True)

    def over(self, member: Member, seq: Seq) -> None:
        """A request that was sent there is there no more."""
        member.in_flight -= 1
        left = member.assigned_tokens - member.expected.pop(seq.index)
        member.assigned_tokens = left if member.in_flight else 0.0
        sent = member.sent.pop(seq.index, None)
        if sent is not None and member.report is not None:
            member.report = with_ended(member.report, sent, seq.output_tokens)

    def gone(self, member: Member) -> None:
        """A replica died, as the dispatcher's connections say: its report is worth nothing."""
        member.ready = False
        if member.report is not None:
            member.report = Report()

    def _members(self, fleet: Fleet, unit_tokens: int) -> list[Member]:
        members: list[Member] = []
        names: dict[str, int] = {}
        for pool in fleet.pools:
            replica = pool.replica
            name = pool.name or replica.shape.name
            names[name] = names.get(name, 0) + 1
            if names[name] > 1:
                name = f"{name}.{names[name]}"
            settings = replica.settings
            if unit_tokens % settings.block_size:
                raise ConfigError(
                    f"a unit of {unit_tokens} tokens is no whole number of blocks of "
                    f"{settings.block_size}"
                )
            speed = replica.stages.speed if replica.stages is not None else replica.time
            facts = PoolFacts(
                name=name,
                gpus=replica.shape.gpus,
                speed=speed,
                kv_tokens=replica.kv_tokens,
                longest_tokens=replica.longest_tokens,
                step_prefill_s=speed.prefill_s(settings.max_batch_tokens, 0),
                max_num_seqs=settings.max_num_seqs,
                shortest_first=settings.prefill_order == "shortest",
                memory=memory_facts(
                    replica.info, replica.shape.gpu.memory_bytes, settings.open_tokens
                ),
            )
            for number in range(pool.count):
                server = Server(
                    replica,
                    unit_tokens=unit_tokens,
                    holders=self._holders,
                    index=len(members),
                    tells_starts=self._age_s > 0,
                )
                members.append(Member(f"{name}/{number:03d}", facts, server))
        return members

    def _cached(self, seq: Seq) -> list[int]:
        """Tokens of the longest prefix that each replica has: one walk over the hashes."""
        unit = self._unit_tokens
        found = [0] * len(self.members)
        holders = self._holders
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
