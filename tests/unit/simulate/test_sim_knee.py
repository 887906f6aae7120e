"""The largest load that is borne, on a grid, for many at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_builders import Pretender, candidate

from gpt_oss_server.simulate.plan.knee import (
    FARTHEST,
    GRID,
    Explorer,
    Quest,
    Steps,
    factor_of,
    gated,
    knee,
    step_of,
)
from gpt_oss_server.simulate.plan.trials import Candidate, Trial


def follow(steps: Steps, bears: int) -> tuple[int | None, list[int]]:
    """The knee that is found where all steps up to `bears` are borne, and what was tried."""
    tried = [next(steps)]
    try:
        while True:
            tried.append(steps.send(tried[-1] <= bears))
    except StopIteration as end:
        return end.value, tried


@given(begin=st.integers(-20, 20), bears=st.integers(-100, 100))
def test_the_knee_is_found_wherever_it_is(begin: int, bears: int) -> None:
    """Exactly, without trying a step twice, in a number of trials that grows like a logarithm."""
    found, tried = follow(knee(begin), bears)
    assert found == bears
    assert len(set(tried)) == len(tried)
    assert len(tried) <= 20


def test_a_good_guess_takes_four_trials() -> None:
    """From a step below the knee: up four, then halves."""
    assert follow(knee(9), 10) == (10, [9, 13, 11, 10])


def test_what_bears_nothing_is_given_up() -> None:
    """At a hundredth of the first load."""
    found, tried = follow(knee(0), -1000)
    assert found is None
    assert min(tried) >= -FARTHEST
    assert factor_of(-FARTHEST) < 0.01


def test_what_bears_everything_is_not_followed_for_ever() -> None:
    """A hundred times the first load is answer enough."""
    found, tried = follow(knee(0), 10**6)
    assert found == tried[-1]
    assert 60 < found <= FARTHEST


def test_no_step_above_the_most_is_tried() -> None:
    """Where that is borne it is the answer, wherever the search began."""
    for begin in (0, 29, 50):
        found, tried = follow(knee(begin, 30), 10**6)
        assert found == max(tried) == 30
    assert follow(knee(0, 30), 12)[0] == 12
    assert follow(gated(10, 50, 30), 10**6)[0] == 30


def test_a_gate_costs_one_trial() -> None:
    """Where it is not passed; else the search goes on above it."""
    assert follow(gated(10, 14), 9) == (None, [10])
    assert follow(gated(10, 14), 12)[0] == 12


def test_steps_are_neighbours_on_the_grid() -> None:
    """A step is 3 %; the nearest is found again."""
    assert factor_of(1) == GRID
    assert [step_of(factor_of(step)) for step in (-7, 0, 31)] == [-7, 0, 31]


def bears(one: Candidate, traffic: str) -> float:
    return {"8×h100-tp1": 5.0, "4×h100-tp2": 7.0}[one.fleet.name] * (2 if traffic == "b" else 1)


def test_many_are_searched_side_by_side() -> None:
    """Each to its own knee, on each traffic; a quest asked for twice is made once, and nothing is
    played twice."""
    runner = Pretender(bears, {"a": 1.0, "b": 1.0})
    explorer = Explorer(runner)
    asks = [(candidate((8, 1)), "a"), (candidate((4, 2)), "a"), (candidate((8, 1)), "b")]
    found = explorer.explore([Quest(one, name, knee(50)) for one, name in [*asks, asks[0]]])
    loads = {key: one.verdict.requests_per_s for key, one in found.items() if one is not None}
    assert {
        key: load <= limit < load * GRID
        for (key, load), limit in zip(sorted(loads.items()), [7.0, 5.0, 10.0], strict=True)
    } == dict.fromkeys(sorted(loads), True)
    assert len(runner.trials) == explorer.runs == len({trial.key for trial in runner.trials})
    again = explorer.explore([Quest(asks[0][0], "a", knee(50))])
    assert again[asks[0][0].key, "a"] == found[asks[0][0].key, "a"]
    assert len(runner.trials) == explorer.runs


def test_time_that_is_over_leaves_quests_out() -> None:
    """What is under way is waited for; what was not finished is not in the answer."""
    runner = Pretender(bears, {"a": 1.0})
    explorer = Explorer(runner, spent=lambda: len(runner.trials) / 5)
    asks = [Quest(candidate((8, 1)), "a", knee(54)), Quest(candidate((4, 2)), "a", knee(-90))]
    assert explorer.explore(asks) == {}
    assert len(runner.trials) == 6


def test_single_trials_come_in_the_order_asked() -> None:
    """At any load; once each."""
    runner = Pretender(bears, {"a": 2.0})
    asked = [Trial(candidate((8, 1)), "a", 3.0), Trial(candidate((4, 2)), "a", 3.0)]
    played = Explorer(runner).play([*asked, asked[0]])
    assert [(trial.candidate.fleet.name, verdict.met) for trial, verdict in played] == [
        ("8×h100-tp1", False),
        ("4×h100-tp2", True),
    ]
    assert played[0][1].requests_per_s == pytest.approx(6.0)
