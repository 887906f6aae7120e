"""What a search plays of a workload."""

from __future__ import annotations

import pytest
from sim_builders import workload

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.simulate.plan.effort import LEAST_BASE, LEAST_SHORT, STRETCH, Effort, effort
from gpt_oss_server.simulate.plan.traffic import Source, busiest, traffics
from gpt_oss_server.simulate.workload.requests import Request, Workload, workload_of


def calm_then_busy(calm: int = 100, busy: int = 50) -> Workload:
    """A request a second, then four a second."""
    rows = [(float(i), 100, 10) for i in range(calm)]
    rows += [(calm + i / 4, 100, 10) for i in range(busy)]
    return workload(*rows)


def tokens(request: Request) -> float:
    return float(request.input_tokens)


def test_the_busiest_stretch_is_found() -> None:
    """Where most work comes in its time, from 0 s on, with as many requests as asked for."""
    found = busiest(calm_then_busy(), 40, tokens)
    assert len(found.requests) == 40
    assert found.requests[0].arrival_s == 0.0
    assert found.requests_per_s == pytest.approx(4.0)


def test_work_counts_not_requests() -> None:
    """Slow arrivals of long prompts outweigh quick ones of short prompts."""
    rows = [(10.0 + i, 10_000, 1) for i in range(20)] + [(i / 10, 10, 1) for i in range(20)]
    found = busiest(workload(*rows), 20, tokens)
    assert {request.input_tokens for request in found.requests} == {10_000}


def test_a_short_record_is_played_whole() -> None:
    """Nothing is cut off, and nobody says that something was."""
    record = calm_then_busy(1100, 100)
    found = traffics(Source(record=record), Effort(40, 2000), tokens, 1.0, 3, 0)
    assert found.by_name["base"] is record
    assert set(found.by_name) == {"short", "base", "draw 1", "draw 2", "draw 3"}
    assert len(found.by_name["short"].requests) == 40
    assert (found.independent, found.factor, found.at_pace) == (False, 1.0, "base")
    assert found.played == (
        "played: all of it, faster and slower",
        "chance: 3 block bootstraps of that",
    )
    assert found.pace == "1.07 requests/s (its own pace)"


def test_a_very_short_record_is_repeated() -> None:
    """Until it lasts a minute at the load that is guessed: what comes at once overloads nothing."""
    record = calm_then_busy(50, 10)
    found = traffics(Source(record=record), Effort(400, 5000), tokens, 40.0, 0, 0)
    assert len(found.by_name["base"].requests) == 60 * 40
    assert "40 times on end" in found.played[0]
    assert found.pace == "1.13 requests/s (its own pace)"


def test_a_long_record_is_played_whole_once_at_its_pace() -> None:
    """Loads are tried on its busiest stretch; the pace asked for is a multiple of its own."""
    record = calm_then_busy()
    source = Source(record=record, rate=2 * record.requests_per_s)
    found = traffics(source, Effort(20, 60), tokens, 1.0, 0, 0)
    assert found.at_pace == "whole"
    assert found.factor == pytest.approx(2.0)
    assert found.pace is not None
    assert found.pace.endswith("(2 × its own pace)")
    assert found.played[0].startswith("played: its busiest stretch of 60 requests in 22 s")


def test_a_mix_is_drawn_anew_for_every_draw() -> None:
    """Of the length asked for; without a pace nothing is said of one."""
    found = traffics(Source(mix="chat"), Effort(50, 200), tokens, 8.0, 2, 5)
    assert found.independent
    assert found.pace is None
    counts = [len(found.by_name[name].requests) for name in ("base", "draw 1", "draw 2")]
    assert all(150 < count < 250 for count in counts)
    assert len(found.by_name["short"].requests) == 50
    assert found.by_name["base"].requests != found.by_name["draw 1"].requests
    again = traffics(Source(mix="chat"), Effort(50, 200), tokens, 8.0, 2, 5)
    assert again.by_name["draw 2"].requests == found.by_name["draw 2"].requests


def test_a_mix_has_the_pace_that_was_asked_for() -> None:
    """The base's own rate is near it; the factor makes up for the rest."""
    found = traffics(Source(mix="chat", rate=4.0), Effort(50, 400), tokens, 8.0, 0, 5)
    assert found.pace == "4 requests/s"
    assert found.factor * found.rates["base"] == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (lambda: Source(rate=0.0), "--rate must be above 0, not 0"),
        (lambda: Source(load=-1.0), "--load must be above 0, not -1"),
        (lambda: Source(mix="tea").glimpse(0), "unknown workload mix tea"),
        (
            lambda: Source(record=workload((0, 5, 5), (1, 5, 5))).glimpse(0),
            "test has 2 requests: at least 20 are needed to plan by",
        ),
        (
            lambda: Source(record=workload_of("t", [Request(0.0, 5, 5)] * 30)).glimpse(0),
            "t: all requests come at one moment",
        ),
    ],
)
def test_what_no_plan_can_be_made_from(source: object, says: str) -> None:
    """One line."""
    with pytest.raises(ConfigError, match=says):
        source()  # type: ignore[operator]


def test_more_time_plays_more() -> None:
    """In proportion; never less than what a 95th percentile needs."""
    small, large = (effort(budget, [8, 4, 2], 30, 4) for budget in (60.0, 120.0))
    assert large.base_requests == pytest.approx(2 * small.base_requests, rel=0.001)
    assert effort(0.1, [8], 10, 4) == Effort(LEAST_SHORT, LEAST_BASE)


def test_more_candidates_draws_and_replicas_play_less_each() -> None:
    """The budget is the same."""
    few = effort(90.0, [4], 10, 2).base_requests
    assert effort(90.0, [4], 60, 2).base_requests < few
    assert effort(90.0, [4], 10, 8).base_requests < few
    assert effort(90.0, [16], 10, 2).base_requests < few
    assert effort(90.0, [4], 10, 2, reserving=True).base_requests < few


def test_long_answers_lengthen_the_stretch_within_limits() -> None:
    """So that a fleet fills up; but not without end."""
    plain = effort(90.0, [4], 10, 2).base_requests
    longer = effort(90.0, [4], 10, 2, settles_requests=1.2 * plain).base_requests
    assert longer == int(1.2 * plain)
    endless = effort(90.0, [4], 10, 2, settles_requests=1e9).base_requests
    assert endless == int(STRETCH * plain)


def test_what_comes_at_one_moment_is_no_stretch() -> None:
    """It has no pace: the busiest is taken of those that last."""
    record = workload(*[(0.0, 100, 10)] * 60, *[(10.0 + i, 100, 10) for i in range(80)])
    found = busiest(record, 50, tokens)
    assert len(found.requests) == 50
    assert found.requests_per_s > 0
