"""The least part of an inventory that would do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from plan_builders import Pretender, made
from sim_builders import replica

from gpt_oss_server.simulate.plan.fewest import Fewest, fewest
from gpt_oss_server.simulate.plan.inventory import Inventory, parse_gpus
from gpt_oss_server.simulate.plan.knee import Explorer
from gpt_oss_server.simulate.plan.money import Prices
from gpt_oss_server.simulate.plan.rules import Rule
from gpt_oss_server.simulate.plan.trials import Candidate


def bears(one: Candidate, traffic: str) -> float:
    """A request per second and H100, two per H200; pairs bear a tenth more."""
    return sum(
        pool.count
        * pool.replica.shape.gpus
        * (2.0 if pool.replica.shape.gpu.name == "h200" else 1.0)
        * (1.1 if pool.replica.shape.gpus == 2 else 1.0)
        for pool in one.fleet.pools
    )


def least(
    gpus: str,
    needed_per_s: float,
    price: Callable[[Inventory], float | None] = lambda part: None,
    spent: float = 0.0,
) -> tuple[Fewest | None, Pretender]:
    runner = Pretender(bears, {"base": 1.0})
    inventory = parse_gpus(gpus)
    replicas = [made(1), made(2)]
    if "h200" in gpus:
        replicas.append(replica(gpu="h200"))
    found = fewest(
        inventory,
        replicas,
        Rule("least_request"),
        Explorer(runner, spent=lambda: spent),
        traffic="base",
        factor=needed_per_s,
        needed_per_s=needed_per_s,
        guess=lambda fleet: bears(Candidate(fleet, Rule("least_request")), "base"),
        price=price,
    )
    return found, runner


@pytest.mark.parametrize(
    ("needed_per_s", "gpus", "layout"),
    [
        (0.5, 1, "1×h100-tp1"),
        (2.0, 2, "2×h100-tp1"),
        (2.1, 2, "1×h100-tp2"),
        (5.3, 5, "1×h100-tp1 + 2×h100-tp2"),
        (8.8, 8, "4×h100-tp2"),
    ],
)
def test_the_fewest_gpus_are_found(needed_per_s: float, gpus: int, layout: str) -> None:
    """And on them the plainest layout that does."""
    found, _ = least("8", needed_per_s)
    assert found is not None
    assert (found.candidate.fleet.gpus, found.candidate.fleet.name) == (gpus, layout)
    assert found.verdict.met


def test_far_too_small_parts_are_not_played() -> None:
    """Guesses are not so far off."""
    _, runner = least("8", 6.0)
    assert min(trial.candidate.fleet.gpus for trial in runner.trials) == 4


def test_the_cheapest_is_taken_where_prices_are_known() -> None:
    """An H200 at three times the price of an H100 loses to two of those, at half of it wins."""

    def priced(h200: float) -> Callable[[Inventory], float | None]:
        return Prices({"h100": 1.0, "h200": h200}).of_stock

    dear, _ = least("4@h100+2@h200", 2.0, priced(3.0))
    cheap, _ = least("4@h100+2@h200", 2.0, priced(1.5))
    assert dear is not None
    assert cheap is not None
    assert dear.candidate.fleet.name == "2×h100-tp1"
    assert cheap.candidate.fleet.name == "1×h200-tp1"


def test_nothing_is_claimed_where_nothing_does_or_time_is_over() -> None:
    """None."""
    assert least("2", 9.0)[0] is None
    assert least("8", 2.0, spent=1.0)[0] is None


def test_without_all_prices_gpus_are_counted() -> None:
    """A price and a number of GPUs do not compare: two H100 without a price are not cheaper than
    one H200 at ten."""

    found, _ = least("4@h100+2@h200", 2.0, Prices({"h200": 10.0}).of_stock)
    assert found is not None
    assert found.candidate.fleet.name == "1×h200-tp1"


def test_parts_that_no_replica_fits_on_are_passed_over() -> None:
    """A single GPU of a model that needs two is none of the answers."""
    runner = Pretender(bears, {"base": 1.0})
    found = fewest(
        parse_gpus("4"),
        [made(2)],
        Rule("least_request"),
        Explorer(runner),
        traffic="base",
        factor=0.5,
        needed_per_s=0.5,
        guess=lambda fleet: bears(Candidate(fleet, Rule("least_request")), "base"),
        price=lambda part: None,
    )
    assert found is not None
    assert found.candidate.fleet.name == "1×h100-tp2"
