"""Prices and what tokens cost at them."""

from __future__ import annotations

from pathlib import Path

import pytest
from plan_builders import fleet

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.simulate.cost.gpu_types import gpu_names
from gpt_oss_server.simulate.plan.money import Prices, cost, read_prices


def test_a_fleet_costs_what_its_gpus_cost() -> None:
    """Eight GPUs at 3 an hour, 2,000 tokens a second: 7.2 million an hour."""
    costs = cost(fleet((4, 1), (2, 2)), Prices({"h100": 3.0}), 6000.0, 2000.0)
    assert costs is not None
    assert costs.per_hour == pytest.approx(24.0)
    assert costs.gpu_hours_per_million_output == pytest.approx(8 / 7.2)
    assert costs.per_million_output == pytest.approx(24 / 7.2)
    assert costs.per_million_all == pytest.approx(24 / 28.8)
    assert costs.gpu_hours_per_million_all == pytest.approx(8 / 28.8)


def test_without_a_price_there_are_hours_but_no_money() -> None:
    """Of a type that the list does not have, or without a list."""
    for prices in (None, Prices({"l40s": 1.0})):
        costs = cost(fleet((1, 1)), prices, 0.0, 1e6 / 3600)
        assert costs is not None
        assert costs.gpu_hours_per_million_output == pytest.approx(1.0)
        assert (costs.per_hour, costs.per_million_output) == (None, None)
    assert cost(fleet((1, 1)), None, 5.0, 0.0) is None


def test_the_packaged_list_prices_every_packaged_gpu() -> None:
    """With its currency, source and date."""
    prices = read_prices(None)
    assert prices is not None
    assert set(prices.per_gpu_hour) == set(gpu_names())
    assert prices.currency == "USD"
    assert "2026" in prices.source


def test_prices_can_be_given(tmp_path: Path) -> None:
    """On the command line, in another currency, in a file, or not at all."""
    assert read_prices("none") is None
    listed = read_prices("h100=2.5, l40s=0.9")
    assert listed is not None
    assert (listed.per_gpu_hour, listed.currency) == ({"h100": 2.5, "l40s": 0.9}, "USD")
    euros = read_prices("EUR:h100=2")
    assert euros is not None
    assert euros.currency == "EUR"
    path = tmp_path / "p.yaml"
    path.write_text("currency: CHF\nsource: a bill\nper_gpu_hour: {h100: 4}\n")
    filed = read_prices(str(path))
    assert filed is not None
    assert (filed.per_gpu_hour["h100"], filed.currency, filed.source) == (4.0, "CHF", "a bill")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("h100=-1", "--price h100: a price must not be negative, not -1"),
        ("h100", "--price h100: write TYPE=PRICE"),
        ("h100=cheap", "--price h100: cheap is no number"),
        ("h100=inf", "--price h100: inf is no price"),
        ("h100=1e308", "--price h100: 1e308 is no price"),
        ("=3", "--price =3: write TYPE=PRICE"),
        ("nowhere.yaml", "--price: cannot read nowhere.yaml"),
    ],
)
def test_a_price_that_is_none_is_refused(given: str, says: str) -> None:
    """One line that names it."""
    with pytest.raises(ConfigError) as error:
        read_prices(given)
    assert str(error.value).startswith(says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1]", "it has no per_gpu_hour"),
        ("per_gpu_hour: {h100: x}", "h100: x is no number"),
        ("per_gpu_hour: {}\nvat: 7", "unknown field vat"),
        ("a: [", "while parsing"),
        ("date: 2026-02-30\nper_gpu_hour: {h100: 2}", "day is out of range for month"),
        ("[" * 5000, "recursion"),
        ("per_gpu_hour: {h100: " + "9" * 400 + "}", "is no number"),
    ],
)
def test_a_price_file_that_is_none_is_refused(tmp_path: Path, text: str, says: str) -> None:
    """What is wrong in it is said."""
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_prices(str(path))
