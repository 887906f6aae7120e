"""Several steps in flight through pipeline stages: by hand, and against the real batcher with every
stage and token on its own."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from operator import add
from statistics import mean

import pytest
from pipeline_reference import Row, Staged
from sim_builders import MODEL_120B, replica, workload

from gpt_oss_server.routing.policies import policy
from gpt_oss_server.simulate.cost.layout import Replica
from gpt_oss_server.simulate.cost.pipeline import Pipe, Round, StageTime, stage_share
from gpt_oss_server.simulate.fleet.cluster import simulate
from gpt_oss_server.simulate.fleet.pools import Fleet, Pool
from gpt_oss_server.simulate.replica.engine import Engine
from gpt_oss_server.simulate.replica.sequence import Sequence


def staged(pp: int, micro_batches: int) -> Replica:
    """gpt-oss-120b over equal stages."""
    machine = replica(pp=pp, micro_batches=micro_batches)
    budget = machine.settings.max_batch_tokens
    return replace(machine, stages=StageTime(machine.time, micro_batches, 1 / pp, budget))


def played(machine: Replica, rows: list[Row]) -> list[tuple[float, float]]:
    """First and last token of each request, as the simulated engine has them."""
    engine = Engine(machine)
    seqs = [Sequence(i, *row) for i, row in enumerate(rows)]
    for seq in seqs:
        while engine.next_s < seq.arrived_s:
            engine.step()
        engine.enqueue(seq, seq.arrived_s)
    while engine.next_s < math.inf:
        engine.step()
    assert engine.scheduler.pool.referenced == 0
    outside_s = machine.time.first_token_s
    return [(seq.first_token_s - outside_s, seq.finish_s - outside_s) for seq in seqs]


def means(rows: list[Row], out: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Mean time to the first token, per token, to the end."""
    times = list(zip(rows, out, strict=True))
    return (
        mean(first_s - row[0] for row, (first_s, _) in times),
        mean((last_s - first_s) / (row[2] - 1) for row, (first_s, last_s) in times),
        mean(last_s - row[0] for row, (_, last_s) in times),
    )


LOADS = {
    "a burst of chats": (200, 0.004, (50, 300), (100, 200)),
    "chats": (60, 0.02, (50, 600), (50, 300)),
    "now and then": (12, 1.0, (100, 400), (100, 200)),
    "longer prompts": (40, 0.2, (200, 3000), (20, 200)),
    "documents": (30, 0.5, (4000, 30000), (20, 100)),
    "mostly prefill": (60, 0.05, (500, 8000), (10, 60)),
}


@pytest.mark.parametrize("load", sorted(LOADS))
@pytest.mark.parametrize(("pp", "micro_batches"), [(2, 2), (4, 4), (4, 2), (2, 4)])
def test_rounds_against_every_step_of_every_stage(load: str, pp: int, micro_batches: int) -> None:
    """Over several draws, means are those of the real batcher with steps in flight: within 5 % per
    token and to the end, within 20 % to the first token."""
    count, gap_s, prompts, answers = LOADS[load]
    machine = staged(pp, micro_batches)
    found, exact = [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]
    for seed in range(5, 10):
        rng = random.Random(seed)
        now_s, rows = 0.0, []
        for _ in range(count):
            now_s += rng.expovariate(1 / gap_s)
            rows.append((now_s, rng.randint(*prompts), rng.randint(*answers)))
        once = Staged(machine, [1 / pp] * pp, micro_batches).play(rows)
        found = list(map(add, found, means(rows, played(machine, rows))))
        exact = list(map(add, exact, means(rows, once)))
    assert found[0] == pytest.approx(exact[0], rel=0.2)
    assert found[1:] == pytest.approx(exact[1:], rel=0.05)


def test_a_round_by_hand() -> None:
    """Sixteen sequences in four stages: four steps of four, each through all stages in the time of
    a step of four; more steps in flight than stages make rounds longer, fewer leave stages idle."""
    machine = staged(4, 4)
    time = machine.time
    step_s = time.base_s(4) + 4 * time.sequence_s + 1e-3
    assert machine.stages is not None
    assert machine.stages.decode_run_s(1, 16, 4e-3) == pytest.approx(step_s)
    assert machine.stages.decode_round(16, 4e-3) == pytest.approx(
        (step_s, step_s / 4, 3 * step_s / 4, 4, 0)
    )
    growth_s = 4 * time.kv_s * sum(range(10))
    assert machine.stages.decode_run_s(10, 16, 4e-3) == pytest.approx(10 * step_s + growth_s)
    eight = StageTime(time, 8, 0.25, 8192)
    halves_s = 2 * (time.base_s(2) + 2 * time.sequence_s + 0.5e-3)
    assert eight.decode_run_s(1, 16, 4e-3) == pytest.approx(halves_s)
    two = StageTime(time, 2, 0.25, 8192)
    wide_s = time.base_s(8) + 8 * time.sequence_s + 2e-3
    assert two.decode_run_s(1, 16, 4e-3) == pytest.approx(wide_s)
    alone_s = time.base_s(1) + time.sequence_s + 4e-3
    assert machine.stages.decode_run_s(1, 1, 4e-3) == pytest.approx(alone_s)


def test_a_lone_prompt_by_hand() -> None:
    """A prompt of one step's budget goes through all stages; one of four steps' worth takes three
    more of a stage's time, as its chunks follow each other."""
    machine = staged(4, 4)
    time, budget = machine.time, machine.settings.max_batch_tokens // 4
    short = played(machine, [(0.0, 1000, 2)])[0]
    whole_s = time.base_s(1000) + time.sequence_s + time.prefill_s(1000, 0)
    assert short[0] == pytest.approx(whole_s)
    assert machine.stages is not None
    work_s = 4 * time.prefill_s(budget, 0)
    planned = machine.stages.mixed_round(0, 0.0, 1, 4 * budget, work_s)
    assert planned.filled == planned.groups == 4
    step_s = time.base_s(budget) + (time.sequence_s + work_s) / 4
    assert planned.seconds == pytest.approx(step_s)
    assert planned.spread_s == pytest.approx(3 * step_s / 4)


def test_how_many_steps_within() -> None:
    """The inverse of a run's time, at its borders."""
    stages = staged(4, 4).stages
    assert stages is not None
    for sequences in (1, 3, 16, 100):
        for rounds in (1, 7, 200):
            lasts_s = stages.decode_run_s(rounds, sequences, 1e-3)
            assert stages.decode_steps_within(lasts_s * 1.000001, sequences, 1e-3) == rounds
            assert stages.decode_steps_within(lasts_s * 0.999999, sequences, 1e-3) == rounds - 1


def test_what_is_in_the_stages_holds_up_what_follows() -> None:
    """A light round behind a heavy one ends when the heavy one's last step is through and its own
    first step has passed the slowest stage; then nothing is held up any more."""
    pipe = Pipe()
    heavy, light = Round(8.0, 2.0, 6.0, 4, 4), Round(1.0, 0.25, 0.75, 4, 0)
    assert pipe.delay_s(0.0, heavy) == 0.0
    pipe.end(8.0, heavy)
    assert pipe.delay_s(8.0, light) == pytest.approx(14.0 + 0.25 - 9.0)
    pipe.end(14.25, light)
    assert pipe.delay_s(14.25, light) == pytest.approx(0.0)


def test_who_comes_in_a_round_joins_its_next_step() -> None:
    """Steps of a round a second apart: a prompt queued in between is taken by the step that
    begins next, not only when the round is over."""
    pipe = Pipe()
    pipe.end(14.0, Round(4.0, 1.0, 3.0, 4, 0))
    assert pipe.lead_s(10.5, 14.0) == 3.0
    assert pipe.lead_s(12.0, 14.0) == 2.0
    assert pipe.lead_s(13.5, 14.0) == 0.0
    assert pipe.lead_s(9.0, 14.0) == 0.0  # it was there before: the round itself took others first
    assert pipe.lead_s(10.5, 15.0) == 0.0  # idle in between


def test_stages_of_a_model() -> None:
    """gpt-oss-120b in two and four stages: nearly equal shares; several steps in flight by
    default as many as stages, none overlap where one is asked for."""
    weights = MODEL_120B.weights
    assert 0.5 <= stage_share(weights, 1, 2) < 0.52
    assert 0.25 <= stage_share(weights, 1, 4) < 0.29
    machine = replica(pp=2)
    assert machine.stages is not None
    assert (machine.stages.micro_batches, machine.info.micro_batches) == (2, 2)
    assert replica(pp=2, micro_batches=1).stages is None
    assert replica(tp=2).stages is None
    assert [rank.stage for rank in replica(tp=2, pp=2).info.ranks] == [0, 0, 1, 1]


def test_stages_bear_what_they_would_not_in_turns() -> None:
    """Prompts under load: two stages compute nearly twice what they do in turns, of answers, which
    read all weights again in every step, less; a dispatcher is told the speed of rounds."""
    two, serial = replica(pp=2), replica(pp=2, micro_batches=1)
    shares = {}
    for name, row, count in (("prompts", (0.0, 4000, 2), 100), ("answers", (0.0, 100, 400), 256)):
        ends = [
            simulate(
                workload(*[row] * count), Fleet((Pool(machine, 1),)), policy("round_robin")
            ).end_s
            for machine in (two, serial)
        ]
        shares[name] = ends[0] / ends[1]
    assert 0.5 < shares["prompts"] < 0.57
    assert shares["prompts"] < shares["answers"] < 0.95
    assert two.stages is not None
    speed = two.stages.speed
    assert speed.prefill_s(1000, 0) < 0.53 * two.time.prefill_s(1000, 0)
    assert speed.base_s(128) == pytest.approx(two.time.base_s(64), rel=0.05)
