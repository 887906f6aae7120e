"""Guesses: near enough to begin a search at, and honest where they exclude something."""

from __future__ import annotations

from dataclasses import replace

import pytest
from plan_builders import fleet, made
from sim_builders import replica, workload

from gpt_oss_server.routing.policies import policy
from gpt_oss_server.simulate.cost.layout import Shape
from gpt_oss_server.simulate.fleet.cluster import simulate
from gpt_oss_server.simulate.fleet.pools import Fleet, Pool
from gpt_oss_server.simulate.plan.rough import Rough, sample
from gpt_oss_server.simulate.results.slo import Slo, SloClass, judge
from gpt_oss_server.simulate.results.sweep import capacity
from gpt_oss_server.simulate.workload.made import make_workload
from gpt_oss_server.simulate.workload.requests import Request, workload_of

CHAT = make_workload("chat", requests_per_s=20, duration_s=40, seed=1)


def test_a_guess_is_within_a_factor_of_two_of_what_is_borne() -> None:
    """On one GPU, on two, with short prompts: enough for a search to begin at."""
    rough = Rough(sample(CHAT), Slo())
    for pools in (((1, 1),), ((1, 2),)):
        one = fleet(*pools)
        found = capacity(CHAT, one, lambda: policy("least_request"), Slo(), tolerance=0.1)
        assert 0.5 < rough.fleet_rate(one) / found.requests_per_s < 2.0


def test_a_fleet_is_guessed_to_bear_what_its_replicas_do() -> None:
    """Twice as many, twice as much; a mixed one no less than the parts of it."""
    rough = Rough(sample(CHAT), Slo())
    assert rough.fleet_rate(fleet((4, 1))) == pytest.approx(4 * rough.fleet_rate(fleet((1, 1))))
    parts = rough.fleet_rate(fleet((4, 1))) + rough.fleet_rate(fleet((2, 2)))
    assert rough.fleet_rate(fleet((4, 1), (2, 2))) >= parts * 0.999


def test_a_sample_is_spread_and_knows_what_came_before() -> None:
    """Every other request; a prompt's leading units that were seen count, the last token never."""
    rows = [Request(float(i), 1024, 5, (1, 2), ()) for i in range(10)]
    found = sample(workload_of("t", rows), 5)
    assert [one.request.arrival_s for one in found] == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert [one.seen_tokens for one in found] == [0, 1023, 1023, 1023, 1023]
    broken = [Request(0.0, 1536, 5, (1, 2, 3)), Request(1.0, 1536, 5, (1, 9, 3))]
    assert [one.seen_tokens for one in sample(workload_of("t", broken))] == [0, 512]


def test_promises_that_cannot_be_kept_are_seen_without_a_run() -> None:
    """By class: what even an idle replica would not serve so, no load can."""
    asked = workload(*((float(i), 100, 10) for i in range(30)), (31.0, 60_000, 10))
    slo = Slo((SloClass("short", 2048, 2.0, 0.05), SloClass("long", float("inf"), 0.1, 0.05)))
    assert Rough(sample(asked), slo).keepable(made(1)) == (1.0, 0.0)
    strict = Slo((SloClass("all", float("inf"), 10.0, 0.001),))
    assert Rough(sample(asked), strict).keepable(made(1)) == (0.0,)


def test_what_is_kept_on_an_idle_replica_was_thought_keepable() -> None:
    """The bound holds: a simulation with requests minutes apart keeps no more."""
    rows = [Request(100.0 * i, 1000 * (i + 1), 50) for i in range(40)]
    slo = Slo((SloClass("all", float("inf"), 1.0, 0.006),))
    asked = workload_of("t", rows)
    one = Fleet((Pool(replica(), 1),))
    report = judge(simulate(asked, one, policy("least_request"), slo=slo), slo)
    assert 0.0 < report.classes[0].share_met < 1.0
    assert Rough(sample(asked), slo).keepable(replica())[0] >= report.classes[0].share_met


def test_pipelines_are_left_out_where_tensor_ranks_do_as_well() -> None:
    """And kept where there are none of as many GPUs."""
    rough = Rough(sample(CHAT), Slo())
    tensor = made(2)
    pipeline = replace(tensor, shape=Shape(tensor.shape.gpu, 1, 2))
    assert rough.promising([made(1), tensor, pipeline]) == (made(1), tensor) or [
        one.shape.name for one in rough.promising([made(1), tensor, pipeline])
    ] == ["h100-tp1", "h100-tp2"]
    assert [one.shape.name for one in rough.promising([made(1), pipeline])] == [
        "h100-tp1",
        "h100-tp1-pp2",
    ]


def test_work_weighs_prompts_against_answers() -> None:
    """More of either is more; a token of an answer is worth many of a prompt."""
    rough = Rough(sample(CHAT), Slo())
    one = made(1)
    short, long, talkative = (
        rough.work_s(one, Request(0.0, *row)) for row in ((100, 10), (1000, 10), (100, 910))
    )
    assert short < long < talkative
