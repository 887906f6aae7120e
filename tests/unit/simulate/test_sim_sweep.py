"""The knee of a fleet, and what knowing the future is worth."""

from __future__ import annotations

import pytest
from sim_builders import replica

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.routing.policies import policy
from gpt_oss_server.routing.policies.view import RankingPolicy
from gpt_oss_server.simulate.fleet.pools import Fleet, Pool
from gpt_oss_server.simulate.results.slo import Slo, SloClass
from gpt_oss_server.simulate.results.sweep import capacity, clairvoyant_goodput, load_point
from gpt_oss_server.simulate.workload.made import make_workload

ASKED = make_workload("chat", requests_per_s=10, duration_s=30, seed=4)
FLEET = Fleet((Pool(replica(), 1),))


def make() -> RankingPolicy:
    return policy("least_request")


def test_the_knee() -> None:
    """What is found is borne, a load a little higher is not, wherever the search begins."""
    slo = Slo()
    found = capacity(ASKED, FLEET, make, slo, start=0.1, tolerance=0.1)
    assert found.best is not None
    assert found.best.report.met
    above = next(p for p in found.tried if p.factor > found.best.factor)
    assert not above.report.met
    assert above.factor <= found.best.factor * 1.1
    from_above = capacity(ASKED, FLEET, make, slo, start=8.0, tolerance=0.1)
    assert from_above.requests_per_s == pytest.approx(found.requests_per_s, rel=0.25)


def test_no_load_at_all() -> None:
    """A promise that nobody can keep: no capacity, and no endless search."""
    hard = Slo((SloClass("all", float("inf"), 1e-6, 1e-6),))
    found = capacity(ASKED.first(3), FLEET, make, hard, start=1.0)
    assert (found.best, found.requests_per_s) == (None, 0.0)
    with pytest.raises(ConfigError, match="above 0"):
        capacity(ASKED, FLEET, make, hard, start=0.0)


def test_hindsight_is_no_worse() -> None:
    """The best of several in hindsight is at least each of them."""
    slo = Slo()
    bound = clairvoyant_goodput(ASKED, FLEET, [make], slo, 1.0)
    assert bound >= load_point(ASKED, FLEET, make, slo, 1.0).report.goodput_per_s > 0
