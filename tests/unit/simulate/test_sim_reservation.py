"""Admission before a simulated engine: the server's own code, told what a live server tells it."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_builders import replica, workload

from gpt_oss_server.admission.core import AdmissionCounts
from gpt_oss_server.dispatch import desk
from gpt_oss_server.routing.policies import policy
from gpt_oss_server.simulate.cost.layout import Replica
from gpt_oss_server.simulate.fleet.cluster import simulate
from gpt_oss_server.simulate.fleet.pools import Fleet, Pool
from gpt_oss_server.simulate.replica import reservation
from gpt_oss_server.simulate.replica.reservation import Reservation
from gpt_oss_server.simulate.replica.sequence import DECODING, Sequence
from gpt_oss_server.simulate.replica.server import Server
from gpt_oss_server.simulate.workload.requests import Request, workload_of


class ToldEveryToken(Reservation):
    """Walks every running sequence and tells each multiple of `PROGRESS_TOKENS` and each
    preemption, whether it matters or not: nothing is foreseen, nothing skipped."""

    def __init__(self, machine: Replica) -> None:
        super().__init__(machine)
        self._joined: dict[Sequence, int] = {}
        self._told: dict[Sequence, int] = {}

    @property
    def has_to_tell(self) -> bool:
        return True

    def offer(self, seq: Sequence, request: Request, now_s: float, steps: int) -> str:  # type: ignore[override]
        self._tell_all(now_s, steps)
        return super().offer(seq, request, now_s, steps)

    def release(self, finished: Iterable[Sequence], now_s: float, steps: int) -> None:
        gone = list(finished)
        self._tell_all(now_s, steps)
        for seq in gone:
            self._joined.pop(seq, None)
        super().release(gone, now_s, steps)

    def expire(self, now_s: float, steps: int) -> None:
        self._tell_all(now_s, steps)
        super().expire(now_s, steps)

    def watch(self, joined: Iterable[Sequence], now_s: float, steps: int) -> None:
        for seq in joined:
            self._joined[seq] = seq.generated
            if seq.generated == 1 and seq.preemptions > seq.told_preemptions:
                self._tell_preempted(seq, now_s)

    def _tell_all(self, now_s: float, steps: int) -> None:
        for seq, before in self._joined.items():
            if seq.state != DECODING:
                continue
            tokens = seq.output_tokens - (seq.done_at - steps)
            if tokens > before and seq.preemptions > seq.told_preemptions:
                self._tell_preempted(seq, now_s)
            for due in range(self._told.get(seq, 0) + 64, tokens + 1, 64):
                self._core.progress(seq.ticket, due)
                self._told[seq] = due


def play(server: Server, requests: list[Request]) -> list[tuple[str, float, float]]:
    """How each request was answered at the door, its first token and its end."""
    seqs = [
        Sequence(i, r.arrival_s, r.input_tokens, r.output_tokens) for i, r in enumerate(requests)
    ]
    answers = []
    for seq, request in zip(seqs, requests, strict=True):
        while server.next_s < request.arrival_s:
            server.step()
        answers.append(server.enqueue(seq, request, request.arrival_s))
    while server.next_s < math.inf:
        server.step()
    ends = {seq.index: "expired" for seq in server.expired}
    ends |= {seq.index: "shed" for seq in server.shed}
    return [
        (ends.get(i, answer), seq.first_token_s, seq.finish_s)
        for i, (answer, seq) in enumerate(zip(answers, seqs, strict=True))
    ]


def counts(server: Server) -> AdmissionCounts:
    """What admission counted."""
    assert server.gate is not None
    return server.gate._core.snapshot().counts


REQUESTS = st.lists(
    st.builds(
        Request,
        st.floats(0, 20),
        st.integers(1, 300),
        st.one_of(st.integers(1, 40), st.integers(200, 500)),
        max_output_tokens=st.sampled_from([0, 0, 600]),
        client=st.sampled_from(["a", "b"]),
        priority=st.integers(0, 12),
    ),
    min_size=1,
    max_size=70,
)


@settings(max_examples=60)
@given(REQUESTS, st.integers(60, 120), st.sampled_from(["optimistic", "worst_case"]))
def test_telling_what_matters_is_telling_all(
    requests: list[Request], blocks: int, mode: str
) -> None:
    """Who starts, waits, is put back, gives up and when is the same, to the last bit, as where
    admission is told of every 64 tokens of everybody, one by one."""
    requests = list(workload_of("t", requests).requests)
    machine = replica(
        blocks, max_num_seqs=8, max_batch_tokens=64, admission_mode=mode, max_wait_s=4.0
    )
    lazy, eager = Server(machine), Server(machine)
    eager.gate = ToldEveryToken(machine)
    assert play(lazy, requests) == play(eager, requests)
    assert counts(lazy) == counts(eager)
    assert lazy.reserved_tokens == eager.reserved_tokens == 0


@settings(max_examples=60)
@given(REQUESTS, st.integers(60, 120))
def test_whole_reservations_never_preempt(requests: list[Request], blocks: int) -> None:
    """Worst-case admission before the simulated engine keeps its promise: nothing is ever put
    back, everybody ends, and the pool is empty after."""
    requests = list(workload_of("t", requests).requests)
    machine = replica(blocks, max_num_seqs=8, max_batch_tokens=64, admission_mode="worst_case")
    server = Server(machine)
    results = play(server, requests)
    assert server.engine.scheduler.preemptions == 0
    assert server.engine.scheduler.pool.referenced == 0
    assert server.waiting == 0
    served = [finish_s for answer, _, finish_s in results if answer == "taken"]
    assert len(served) == len(server.finished)
    assert all(finish_s > 0 for finish_s in served)
    assert server.engine.waiting_tokens == 0


def test_the_intervals_are_the_servers() -> None:
    """The simulator tells as often as the desk does."""
    assert reservation.PROGRESS_TOKENS == desk.PROGRESS_TOKENS


def test_who_waits_starts_by_class_and_only_where_there_is_room() -> None:
    """With room for one at a time the highest class is next, whoever came first, and nobody is
    in the engine before there is KV for the answer."""
    machine = replica(40, admission_mode="worst_case")
    server = Server(machine)
    requests = [
        Request(0.0, 300, 100, max_output_tokens=300),
        Request(0.1, 300, 100, max_output_tokens=300, priority=2),
        Request(0.2, 300, 100, max_output_tokens=300, priority=3),
    ]
    seqs = [Sequence(i, r.arrival_s, 300, 100) for i, r in enumerate(requests)]
    for seq, request in zip(seqs, requests, strict=True):
        assert server.enqueue(seq, request, request.arrival_s) == "taken"
    assert (server.before_engine, server.engine.scheduler.waiting.oldest()) == (2, seqs[0])
    assert server.reserved_tokens == 38 * 16
    assert server.engine.waiting_tokens == 900  # a dispatcher sees them all
    while server.next_s < math.inf:
        server.step()
    starts = [seq.first_token_s for seq in seqs]
    assert starts[0] < starts[2] < starts[1]
    assert starts[2] > seqs[0].finish_s


def test_a_full_queue_turns_away_with_a_time_to_come_again() -> None:
    """One runs, one may wait: the third is told when to retry; who waited too long leaves at that
    moment, and a higher class takes the place of a lower one."""
    machine = replica(40, admission_mode="worst_case", max_waiting=1, max_wait_s=0.3)
    server = Server(machine)
    for index in range(2):
        one = Request(0.0, 300, 200, max_output_tokens=300)
        assert server.enqueue(Sequence(index, 0.0, 300, 200), one, 0.0) == "taken"
    third = Sequence(2, 0.1, 300, 200)
    assert server.enqueue(third, Request(0.1, 300, 200, max_output_tokens=300), 0.1) == "full"
    assert server.retry_after_s == 5  # nothing has ended yet: the server's own default
    while not server.expired:
        server.step()
    assert server.next_s > 0.3
    assert [seq.index for seq in server.expired] == [1]
    assert server.engine.waiting_tokens == 0
    never = Request(0.4, 500, 200, max_output_tokens=600)
    assert server.enqueue(Sequence(3, 0.4, 500, 200), never, 0.4) == "too_large"


def test_an_open_bound_that_was_lowered_cuts_the_answer() -> None:
    """In worst-case mode a bound left open is what there is room for; the run says so."""
    bounded = Request(0.0, 100, 500, max_output_tokens=600)
    asked = workload_of("t", [bounded, Request(0.0, 100, 1200)])
    machine = replica(100, admission_mode="worst_case", max_num_seqs=8, max_batch_tokens=64)
    found = simulate(asked, Fleet((Pool(machine, 1),)), policy("round_robin"))
    assert found.output_tokens.tolist() == [500, 56 * 16 - 100]
    assert found.notes == ("1 answers were cut at the bound they were granted",)
    assert found.served.all()


@pytest.mark.parametrize("admission", ["reserve", "engine"])
def test_a_small_pool_under_load(admission: str) -> None:
    """The engine alone preempts where the server's reservation makes others wait."""
    rows = [(0.05 * i, 200, 150 + 20 * (i % 7)) for i in range(200)]
    machine = replica(
        250,
        max_num_seqs=64,
        max_batch_tokens=256,
        admission=admission,
        max_wait_s=600.0,
        max_waiting=500,
    )
    found = simulate(workload(*rows), Fleet((Pool(machine, 1),)), policy("round_robin"))
    assert found.served.all()
    preempted = int(found.preemptions.sum())
    assert preempted > 40 if admission == "engine" else preempted == 0
