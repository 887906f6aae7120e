"""The stages of the search, on candidates whose capacity is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
from plan_builders import Pretender, candidate, fleet

from gpt_oss_server.errors import ConfigError, StartupError
from gpt_oss_server.simulate.fleet.pools import Fleet
from gpt_oss_server.simulate.plan.found import Found
from gpt_oss_server.simulate.plan.knee import GRID, Explorer
from gpt_oss_server.simulate.plan.rules import Rule
from gpt_oss_server.simulate.plan.search import Problem, search
from gpt_oss_server.simulate.plan.trials import Candidate

FLEETS = (
    fleet((8, 1)),
    fleet((4, 2)),
    fleet((2, 4)),
    fleet((1, 8)),
    fleet((4, 1), (2, 2)),
    fleet((4, 1), (1, 4)),
)
RULES = (Rule("earliest_completion"), Rule("new_tokens_times_batch"), Rule("least_request"))
DRAWS = ("draw 1", "draw 2", "draw 3")
RATES = {"short": 3.0, "base": 3.5, "draw 1": 3.1, "draw 2": 3.7, "draw 3": 3.4}

Bears = Callable[[Candidate, str], float]


def table(
    rows: Mapping[str, Sequence[float]], draws: Mapping[str, Mapping[str, float]] | None = None
) -> Bears:
    """What each fleet (named without its GPU) bears under each of `RULES`, on every traffic alike
    but for `draws` (by fleet and traffic, a factor)."""

    def bears(one: Candidate, traffic: str) -> float:
        name = one.fleet.name.replace("h100-", "")
        place = [rule.name for rule in RULES].index(one.rule.name)
        return rows[name][place] * (draws or {}).get(name, {}).get(traffic, 1.0)

    return bears


PLAIN_ROWS: dict[str, Sequence[float]] = {
    "8×tp1": (6.0, 5.5, 4.0),
    "4×tp2": (7.0, 6.9, 5.0),
    "2×tp4": (5.0, 5.0, 4.5),
    "1×tp8": (2.0, 2.0, 2.0),
    "4×tp1 + 2×tp2": (9.0, 6.0, 3.0),
    "4×tp1 + 1×tp4": (4.0, 3.0, 2.0),
}


def found(
    bears: Bears,
    *,
    rules: Sequence[Rule] = RULES,
    current: Candidate | None = None,
    spent: Callable[[Pretender], float] | None = None,
    guess: Callable[[Fleet], float] = lambda one: 5.0,
    draws: tuple[str, ...] = DRAWS,
) -> tuple[Found, Pretender]:
    runner = Pretender(bears, RATES)
    explorer = Explorer(runner, spent=lambda: spent(runner) if spent else 0.0)
    problem = Problem(
        fleets=FLEETS,
        rules={one.name: list(rules) for one in FLEETS},
        rates=RATES,
        spans_s=dict.fromkeys(RATES, 1000.0),
        draws=draws,
        independent=True,
        guess=guess,
        current=current,
    )
    return search(problem, explorer), runner


def named(one: Candidate) -> str:
    return f"{one.fleet.name.replace('h100-', '')}, {one.rule.name}"


def test_the_best_of_all_is_found_and_said_to_be_so() -> None:
    """Clearly the best, on every draw: it is proposed, mixed or not, within a step of its load."""
    what, _ = found(table(PLAIN_ROWS))
    assert named(what.best.candidate) == "4×tp1 + 2×tp2, earliest_completion"
    assert what.proposed is what.best
    assert what.best.per_s <= 9.0 < what.best.per_s * GRID
    assert (what.best.basis, what.best.relative, what.cut) == ("draws", 1.0, ())
    assert what.uniform is not None
    assert named(what.uniform.candidate) == "4×tp2, earliest_completion"
    assert what.uniform.relative == pytest.approx(7 / 9, rel=0.03)
    assert not what.uniform.no_worse


def test_a_balancer_without_knowledge_is_searched_on_its_own_account() -> None:
    """Far below the best, and yet its best layout is found and followed to the end."""
    what, _ = found(table(PLAIN_ROWS))
    plain = what.without_dispatcher
    assert plain is not None
    assert named(plain.candidate) == "4×tp2, least_request"
    assert plain.basis == "draws"
    assert plain.per_s == pytest.approx(5.0, rel=0.04)


def test_the_simpler_of_equals_is_proposed() -> None:
    """A uniform layout over a mixed one, a plain balancer over a cleverer one, a smaller replica
    over a larger one; within a fiftieth."""
    rows = {**PLAIN_ROWS, "4×tp1 + 2×tp2": (7.05, 6.0, 3.0), "4×tp2": (7.0, 7.0, 6.95)}
    what, _ = found(table(rows))
    assert named(what.proposed.candidate) == "4×tp2, least_request"
    assert what.proposed.no_worse


def test_a_policy_that_chance_held_back_gets_a_second_one() -> None:
    """Far below on the short stretch alone, the best elsewhere: found, and followed to the end."""
    usual, name = table(PLAIN_ROWS), "4×tp1 + 2×tp2, new_tokens_times_batch"

    def bears(one: Candidate, traffic: str) -> float:
        unlucky = named(one) == name
        return (4.0 if traffic == "short" else 12.0) if unlucky else usual(one, traffic)

    what, _ = found(bears)
    assert named(what.best.candidate) == name
    assert what.best.basis == "draws"


def test_simplicity_costs_nothing_on_the_traffic_as_it_was_given() -> None:
    """As good on the mean, and yet a tenth below the best where nothing was drawn: not proposed."""
    scatter = {"base": 0.91, "draw 1": 1.02, "draw 2": 1.02, "draw 3": 1.02}
    rows = {**PLAIN_ROWS, "4×tp2": (9.0, 6.9, 5.0)}
    what, _ = found(table(rows, {"4×tp2": scatter}))
    uniform = what.uniform
    assert uniform is not None
    assert uniform.no_worse
    assert uniform.relative >= 0.98
    assert named(what.proposed.candidate) == "4×tp1 + 2×tp2, earliest_completion"


def test_what_chance_may_explain_is_marked_but_not_given_up_for() -> None:
    """Five per cent less on the mean of draws that scatter by twenty: no worse within noise, and
    still not proposed."""
    scatter = {"draw 1": 0.8, "draw 2": 1.2, "draw 3": 0.75}
    rows = {**PLAIN_ROWS, "4×tp2": (9.0, 6.9, 5.0)}
    what, _ = found(table(rows, {"4×tp2": scatter}))
    assert named(what.proposed.candidate) == "4×tp1 + 2×tp2, earliest_completion"
    other = what.of(candidate((4, 2)))
    assert other is not None
    assert other.no_worse
    assert other.relative < 0.98
    assert other.to_best is not None
    assert other.to_best.low is not None
    assert other.to_best.low < 0.8


def test_a_policy_that_beats_the_first_is_tried_everywhere() -> None:
    """On fleets, too, that the first policy was poor on."""
    rows = {**PLAIN_ROWS, "8×tp1": (7.6, 10.0, 4.0), "4×tp1 + 1×tp4": (4.0, 11.0, 2.0)}
    what, _ = found(table(rows))
    assert named(what.best.candidate) == "4×tp1 + 1×tp4, new_tokens_times_batch"


def test_what_runs_today_is_measured_whatever_it_bears() -> None:
    """To the end, beside the finalists."""
    today = candidate((1, 8), rule="least_request")
    what, _ = found(table(PLAIN_ROWS), current=today)
    standing = what.of(today)
    assert standing is not None
    assert (standing.basis, standing.per_s) == ("draws", pytest.approx(2.0, rel=0.04))
    assert what.of(None) is None


def test_layouts_that_are_left_early_are_said_to_be_below() -> None:
    """By how much at the least; they cost one trial on each stretch."""
    what, runner = found(table(PLAIN_ROWS), rules=RULES[:1])
    below = {named(one.candidate): one.per_s for one in what.below}
    assert list(below) == ["4×tp1 + 1×tp4, earliest_completion"]
    assert 4.0 < below["4×tp1 + 1×tp4, earliest_completion"] <= 9.0 / GRID**8
    played = [t for t in runner.trials if t.candidate.fleet.name == "4×h100-tp1 + 1×h100-tp4"]
    assert [one.traffic for one in played] == ["short", "base"]


def test_bad_guesses_cost_trials_but_no_truth() -> None:
    """A tenth or ten times of what is borne: the same answer."""
    answers = set()
    for guess in (0.5, 5.0, 60.0):
        what, _ = found(table(PLAIN_ROWS), guess=lambda one, at=guess: at)
        best = what.best
        answers.add(named(best.candidate))
        assert best.per_s <= 9.0 < best.per_s * GRID
    assert answers == {"4×tp1 + 2×tp2, earliest_completion"}


def test_time_that_is_over_is_said_and_an_answer_given() -> None:
    """The earlier it is over, the less is known; what was cut is named. Later stages keep a part
    of the time for themselves."""
    whole, runner = found(table(PLAIN_ROWS))
    count = len(runner.trials)
    assert whole.cut == ()
    for share in (0.6, 0.8, 0.95):
        budget = share * count
        what, _ = found(table(PLAIN_ROWS), spent=lambda one, at=budget: len(one.trials) / at)
        assert what.cut != ()
        assert what.best.per_s > 0
    again, other = found(table(PLAIN_ROWS), spent=lambda one: len(one.trials) / (3 * count))
    assert again.cut == ()
    assert [s.per_s for s in again.standings] == [s.per_s for s in whole.standings]
    assert len(other.trials) == count


def test_without_further_draws_nothing_is_called_noise() -> None:
    """One draw has no range: the best is proposed, its interval is unknown."""
    what, _ = found(table(PLAIN_ROWS), draws=())
    assert named(what.proposed.candidate) == "4×tp1 + 2×tp2, earliest_completion"
    assert what.best.basis == "base"
    assert what.best.bears is None


def test_time_that_is_over_at_once_is_no_answer() -> None:
    """Nor is it said that nothing could be borne."""
    with pytest.raises(StartupError, match="give a larger --budget-s"):
        found(table(PLAIN_ROWS), spent=lambda one: len(one.trials) / 5)


def test_promises_that_nothing_keeps_end_in_one_line() -> None:
    """No load is borne."""
    with pytest.raises(ConfigError, match="no layout keeps the promises at any load"):
        found(lambda one, traffic: 0.0)
