"""Which policies and thresholds are tried on which fleet."""

from __future__ import annotations

import pytest
from plan_builders import fleet

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.routing.policies.sizing import LengthRanges, Triggers
from gpt_oss_server.simulate.plan.rules import (
    PREFERRED,
    Rule,
    balanced_bounds,
    check_names,
    rules_for,
)
from gpt_oss_server.simulate.workload.requests import Request

TEN = [Request(float(i), 1000 * (i + 1), 10) for i in range(10)]


def labels(*pools: tuple[int, int], hashed: bool = False) -> list[str]:
    requests = [r._replace(units=(1,)) for r in TEN] if hashed else TEN
    rules = rules_for(fleet(*pools), PREFERRED, requests, lambda r: float(r.input_tokens))
    return [rule.label for rule in rules]


def test_policies_that_would_do_the_same_are_left_out() -> None:
    """No lengths on replicas of one size, no prefixes where the workload has none."""
    uniform = [
        "earliest_completion",
        "new_tokens_times_batch",
        "least_tokens",
        "least_request",
        "round_robin",
    ]
    assert labels((8, 1)) == uniform
    assert labels((8, 1), hashed=True) == [*uniform[:3], "prefix_affinity", *uniform[3:]]


def test_thresholds_give_each_size_its_share_of_the_work() -> None:
    """Half of the GPUs are single ones: the prompts up to 8,000 are 36 of 55 thousand tokens, up
    to 7,000 only 28; triggers are tried at their default as well."""
    assert balanced_bounds(fleet((4, 1), (2, 2)), TEN, lambda r: float(r.input_tokens)) == (7000,)
    assert labels((4, 1), (2, 2))[-7:] == [
        "length_ranges 3500",
        "length_ranges 7000",
        "length_ranges 14000",
        "triggers 8000",
        "triggers 3500",
        "triggers 7000",
        "triggers 14000",
    ]


def test_triggers_need_single_gpus() -> None:
    """Between sizes of several GPUs they have nothing to choose."""
    assert not any(label.startswith("triggers") for label in labels((2, 2), (1, 4)))
    assert "length_ranges 7000" in labels((2, 2), (1, 4))


def test_three_sizes_have_two_bounds() -> None:
    """Rising, from the smallest replicas up."""
    assert "length_ranges 5000,7000" in labels((2, 1), (1, 2), (1, 4))


def test_policies_that_do_not_apply_leave_least_request() -> None:
    """On replicas of one size length ranges are that."""
    rules = rules_for(fleet((8, 1)), ["length_ranges"], TEN, lambda r: 1.0)
    assert rules == [Rule("least_request")]


def test_a_rule_makes_its_policy_with_its_thresholds() -> None:
    """New for each run; a low trigger lowers the one under pressure with it."""
    assert isinstance(Rule("length_ranges", (5000,)).make(1, 0), LengthRanges)
    assert isinstance(Rule("triggers", (1000,)).make(36_864, 0), Triggers)
    assert Rule("random").make(1, 7).name == "random"
    assert Rule("least_request").plain
    assert not Rule("earliest_completion").plain


def test_an_unknown_policy_is_named() -> None:
    """With those that there are."""
    with pytest.raises(ConfigError, match="unknown policy best: use one of round_robin"):
        check_names(["least_request", "best"])
