"""What holds at every moment of every run, whatever is asked, fails, waits or is put back."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_builders import replica

from gpt_oss_server.routing.policies import POLICIES, policy
from gpt_oss_server.simulate.fleet.cluster import simulate
from gpt_oss_server.simulate.fleet.pools import Failure, Fleet, Pool
from gpt_oss_server.simulate.fleet.roster import Roster
from gpt_oss_server.simulate.replica.sequence import DECODING, PREFILLING, Sequence
from gpt_oss_server.simulate.replica.server import Server
from gpt_oss_server.simulate.results.outcome import SERVED, Outcome
from gpt_oss_server.simulate.workload.requests import Request, Workload, workload_of

UNIT = 64
SETTINGS = {"seed": 1, "kv_bytes_per_token": 36_864}


@dataclass(frozen=True)
class Run:
    """One question: who asks what of which fleet."""

    workload: Workload
    fleet: Fleet
    rule: str
    failures: tuple[Failure, ...]
    clients: int | None
    view_age_s: float

    def play(self) -> Outcome:
        return simulate(
            self.workload,
            self.fleet,
            policy(self.rule, SETTINGS),
            failures=self.failures,
            clients=self.clients,
            view_age_s=self.view_age_s,
        )


@st.composite
def requests(draw: st.DrawFn, *, crowd: bool = False) -> Request:
    """Some share beginnings, some bound their answers, some leave their answer in the cache. In a
    crowd all come at once and answers outgrow the pool, which short prompts do not foretell."""
    prompt = draw(st.integers(1, 60 if crowd else 400))
    long = st.integers(200, 350)
    answer = draw(long if crowd else st.one_of(st.integers(1, 30), long))
    path = draw(st.lists(st.integers(0, 1), max_size=6))
    names = [hash(tuple(path[: n + 1])) for n in range(len(path))]
    here = prompt // UNIT
    return Request(
        0.0 if crowd else draw(st.sampled_from([0.0, 0.01, 0.02, 0.5, 1.7, 3.0])),
        prompt,
        answer,
        tuple(names[:here]),
        tuple(names[here : (prompt + answer) // UNIT]) if len(names) > here else (),
        draw(st.sampled_from([0, 0, answer, 380])),
        draw(st.sampled_from(["", "a"])),
        draw(st.integers(0, 9)),
    )


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """Pools that run dry, replicas that die, clients that wait for answers, old views."""
    crowd = draw(st.sampled_from([False, False, True]))
    least = 12 if crowd else draw(st.sampled_from([1, 12]))
    asked = draw(st.lists(requests(crowd=crowd), min_size=least, max_size=40))
    pools = []
    for pp in draw(st.sampled_from([(1,), (1, 1), (2,), (1, 2)])):
        machine = replica(
            draw(st.integers(48, 90)),
            pp=pp,
            max_num_seqs=draw(st.integers(6 if crowd else 2, 8)),
            max_batch_tokens=draw(st.sampled_from([64, 256])),
            prefill_order=draw(st.sampled_from(["shortest", "fcfs"])),
            admission="engine" if crowd else draw(st.sampled_from(["engine", "reserve"])),
            admission_mode=draw(st.sampled_from(["optimistic", "worst_case"])),
            max_waiting=draw(st.sampled_from([None, 0, 3])),
            max_wait_s=draw(st.sampled_from([None, 0.2])),
        )
        pools.append(Pool(machine, draw(st.integers(1, 2))))
    fleet = Fleet(tuple(pools))
    count = sum(pool.count for pool in pools)
    deaths = st.builds(
        Failure, st.integers(0, count - 1), st.floats(0, 3), st.sampled_from([0.3, 2.0, math.inf])
    )
    return Run(
        workload_of("t", asked, UNIT),
        fleet,
        draw(st.sampled_from(sorted(POLICIES))),
        tuple(draw(st.lists(deaths, max_size=3))),
        draw(st.sampled_from([None, None, 1, 5])),
        draw(st.sampled_from([0.0, 0.0, 0.25])),
    )


@dataclass
class Watch:
    """Looks at every server after each thing that happens there."""

    servers: dict[int, Server] = field(default_factory=dict)
    seqs: dict[int, dict[Sequence, None]] = field(default_factory=dict)
    last_s: float = 0.0

    def passed(self, server: Server, now_s: float) -> None:
        """Time never goes back, here or in the fleet; nobody who is there is forgotten."""
        assert now_s >= self.last_s
        self.last_s = now_s
        assert server.next_s >= now_s
        self.servers[server.index] = server
        scheduler = server.engine.scheduler
        if scheduler.running or len(scheduler.waiting):
            assert server.engine.next_s < math.inf
        if server.before_engine:
            assert server.next_s < math.inf
        self.blocks(server)

    def blocks(self, server: Server) -> None:
        """What is held is what sequences hold, each shared unit once; with what is cached it never
        exceeds the pool; the fleet's index of prefixes names exactly those that are there."""
        engine, pool = server.engine, server.engine.scheduler.pool
        decoders, size = engine.scheduler.decoders, engine.replica.settings.block_size
        holders: Counter[int] = Counter()
        private = 0
        for seq in self.seqs.get(server.index, ()):
            if seq.state in (PREFILLING, DECODING):
                held = seq.held
                if seq.state == DECODING:
                    held = -(-(seq.phase + decoders.steps) // size)
                private += held - len(seq.shares) * pool.unit_blocks
                holders.update(seq.shares)
        counts = {unit: count for unit, count in pool.shared.items() if count}
        assert counts == dict(holders)
        if engine._grants:  # a step with prefills takes its blocks when it begins, a run at its end
            private += decoders.new_blocks(1)
        assert pool.referenced == private + len(holders) * pool.unit_blocks
        assert pool.referenced + pool.cached_blocks <= pool.blocks
        assert set(pool.shared) == set(holders) | set(pool.idle)
        bit = 1 << server.index
        assert {unit for unit, who in pool._holders.items() if who & bit} == set(pool.shared)

    def over(self) -> None:
        """Nobody is left anywhere, nothing is held."""
        for server in self.servers.values():
            assert server.engine.scheduler.pool.referenced == 0
            assert server.waiting == server.engine.waiting_tokens == server.reserved_tokens == 0
            assert max(map(abs, server.engine.waiting_work_s)) < 1e-9
            assert not server.finished
            assert not server.expired
            assert not server.shed


@contextmanager
def watched(patch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """Every server of what is played meanwhile, looked at; and every dispatcher's books at the
    end."""
    watch = Watch()
    rosters: list[Roster] = []
    step, enqueue, fail, begin = Server.step, Server.enqueue, Server.fail, Roster.__init__

    def watched_step(self: Server) -> None:
        now_s = self.next_s
        step(self)
        watch.passed(self, now_s)

    def watched_enqueue(self: Server, seq: Sequence, request: Request, now_s: float) -> str:
        answer = enqueue(self, seq, request, now_s)
        if answer == "taken":
            watch.seqs.setdefault(self.index, {})[seq] = None
        watch.passed(self, now_s)
        return answer

    def watched_fail(self: Server) -> list[Sequence]:
        lost = fail(self)
        watch.seqs[self.index] = {}
        watch.blocks(self)
        assert self.next_s == math.inf
        return lost

    def watched_begin(self: Roster, *args: object, **kwargs: object) -> None:
        begin(self, *args, **kwargs)  # type: ignore[arg-type]
        rosters.append(self)

    with patch.context() as inner:
        inner.setattr(Server, "step", watched_step)
        inner.setattr(Server, "enqueue", watched_enqueue)
        inner.setattr(Server, "fail", watched_fail)
        inner.setattr(Roster, "__init__", watched_begin)
        yield watch
    watch.over()
    for roster in rosters:
        for member in roster.members:
            assert (member.in_flight, member.assigned_tokens, member.expected) == (0, 0.0, {})


@settings(max_examples=250)
@given(runs())
def test_at_every_moment_of_every_run(run: Run) -> None:
    """Blocks, time, work and the dispatcher's books, after everything that happens."""
    with pytest.MonkeyPatch.context() as patch, watched(patch):
        found = run.play()
    everybody_ends_once(run, found)
    tokens_are_conserved(run, found)


def everybody_ends_once(run: Run, found: Outcome) -> None:
    """Each request one way, those served after they came; in a closed loop the next one is asked
    whenever one is over, however it ended, and no more are under way than there are clients."""
    count = len(run.workload.requests)
    assert sum(found.counts().values()) == count
    served = found.ended == SERVED
    assert np.all(found.ttft_s[served] > 0)
    assert np.all(found.e2e_s[served] >= found.ttft_s[served])
    assert np.all(np.isnan(found.e2e_s[~served]))
    if not run.failures:
        assert found.counts()["failed"] == 0
    if run.clients is not None:
        assert sum(found.arrival_s == 0.0) >= min(run.clients, count)
        ends = found.arrival_s + np.where(served, found.e2e_s, 0.0)
        for at_s in found.arrival_s[served]:
            under_way = (found.arrival_s[served] <= at_s) & (ends[served] > at_s + 1e-9)
            assert under_way.sum() <= run.clients


def tokens_are_conserved(run: Run, found: Outcome) -> None:
    """Where nothing was put back or lost, every prompt token is computed once or found cached, and
    every token of an answer but its first is a decode step's."""
    served = found.ended == SERVED
    assert np.all(found.cached_tokens <= np.maximum(0, found.input_tokens - 1))
    assert np.all(found.cached_tokens % UNIT == 0)
    prefilled = sum(one.prefill_tokens for one in found.replicas)
    decoded = sum(one.decode_tokens for one in found.replicas)
    prompts = int((found.input_tokens - found.cached_tokens)[served].sum())
    answers = int((found.output_tokens - 1)[served].sum())
    if not found.preemptions.sum() and not run.failures:
        assert (prefilled, decoded) == (prompts, answers)
    else:
        assert prefilled >= prompts - int(found.cached_tokens.sum())
        assert prefilled + decoded >= int(found.input_tokens[served].sum()) - int(
            found.cached_tokens.sum()
        )


@settings(max_examples=40)
@given(runs())
def test_the_same_run_twice(run: Run) -> None:
    """To the last bit, whatever happens in it."""
    first, second = run.play(), run.play()
    for name in ("ended", "ttft_s", "e2e_s", "cached_tokens", "preemptions", "replica"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_the_runs_have_everything_in_them() -> None:
    """What is drawn above really preempts, caches, evicts, expires, drops and fails."""
    seen: Counter[str] = Counter()

    @settings(max_examples=150, database=None, derandomize=True)
    @given(runs())
    def play(run: Run) -> None:
        found = run.play()
        seen.update({name: 1 for name, count in found.counts().items() if count})
        seen["preempted"] += bool(found.preemptions.sum())
        seen["cached"] += bool(found.cached_tokens.sum())

    play()
    kinds = ("served", "dropped", "expired", "failed", "preempted", "cached")
    assert min(seen[kind] for kind in kinds) >= 2, seen
