"""A fleet behind a dispatcher: everybody is accounted for, runs repeat, failures hurt as told."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_builders import MODEL_120B, replica, workload

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.routing.policies import POLICIES, policy
from gpt_oss_server.simulate.calibrate.calibration import Fit, Point, predict
from gpt_oss_server.simulate.cost.roofline import Efficiency
from gpt_oss_server.simulate.fleet.cluster import simulate
from gpt_oss_server.simulate.fleet.pools import Failure, Fleet, Pool
from gpt_oss_server.simulate.results.outcome import Outcome
from gpt_oss_server.simulate.results.slo import Slo, SloClass, judge
from gpt_oss_server.simulate.workload.made import make_workload
from gpt_oss_server.simulate.workload.requests import Request, workload_of

ONE, FOUR = replica(), replica(tp=4)
MIXED = Fleet((Pool(ONE, 2), Pool(FOUR, 1)))
SETTINGS = {"seed": 3, "kv_bytes_per_token": 36_864}


def same(left: Outcome, right: Outcome) -> bool:
    """Whether two runs are equal to the last bit."""
    columns = ("ended", "ttft_s", "e2e_s", "cached_tokens", "preemptions", "replica")
    return all(
        np.array_equal(getattr(left, name), getattr(right, name), equal_nan=name.endswith("_s"))
        for name in columns
    )


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_policy_serves_everybody_and_repeats(name: str) -> None:
    """All requests end, their tokens are computed once, and a second run is the same."""
    asked = make_workload("mixed", requests_per_s=6, duration_s=60, seed=5)
    first = simulate(asked, MIXED, policy(name, SETTINGS))
    assert first.counts()["served"] == len(asked.requests)
    assert same(first, simulate(asked, MIXED, policy(name, SETTINGS)))
    done = sum(r.prefill_tokens for r in first.replicas) + int(first.cached_tokens.sum())
    assert done >= sum(r.input_tokens for r in asked.requests)
    if not first.preemptions.sum():
        assert done == sum(r.input_tokens for r in asked.requests)
    assert [r.requests for r in first.replicas] == np.bincount(first.replica, minlength=3).tolist()


@settings(max_examples=30)
@given(
    rows=st.lists(
        st.tuples(st.floats(0, 20), st.integers(1, 140_000), st.integers(1, 400)),
        min_size=1,
        max_size=25,
    ),
    deaths=st.lists(
        st.builds(
            Failure, st.integers(0, 2), st.floats(0, 20), st.sampled_from([0.5, 5.0, float("inf")])
        ),
        max_size=4,
    ),
)
def test_everybody_is_accounted_for(
    rows: list[tuple[float, int, int]], deaths: list[Failure]
) -> None:
    """Whatever fails and however large they are: each request ends one way, those served after
    they came, in order; too large ones are refused; only deaths fail anybody."""
    fleet = Fleet((Pool(replica(12_000), 2), Pool(FOUR, 1)))
    found = simulate(workload(*rows), fleet, policy("earliest_completion"), failures=deaths)
    assert sum(found.counts().values()) == len(rows)
    large = found.input_tokens + found.output_tokens > 131_072
    assert np.array_equal(found.ended == 1, large)
    if not deaths:
        assert found.counts()["failed"] == 0
    served = found.served
    assert np.all(found.ttft_s[served] > 0)
    assert np.all(found.e2e_s[served] >= found.ttft_s[served])
    assert np.all(np.isnan(found.ttft_s[~served]))
    assert np.all(found.replica[served] >= 0)


def test_a_request_survives_a_death_before_its_first_token() -> None:
    """It is sent elsewhere; one whose answer had begun is lost; the dead gets nothing until it is
    back."""
    asked = workload((0.0, 2000, 500), (0.0, 100_000, 10), (1.0, 100, 10), (9.0, 100, 10))
    fleet = Fleet((Pool(replica(), 2),))
    found = simulate(asked, fleet, policy("round_robin"), failures=[Failure(1, 0.9, 5.0)])
    assert found.counts()["served"] == 4
    assert found.replica.tolist()[1] == 0
    died = simulate(asked, fleet, policy("round_robin"), failures=[Failure(0, 0.9, 5.0)])
    assert died.ended.tolist() == [4, 0, 0, 0]
    assert died.replica.tolist()[:3] == [-1, 1, 1]
    nobody = Fleet((Pool(replica(), 1),))
    gone = simulate(asked, nobody, policy("round_robin"), failures=[Failure(0, 0.5)])
    assert gone.counts() == {
        "served": 0,
        "refused": 0,
        "dropped": 0,
        "expired": 0,
        "failed": 4,
    }
    with pytest.raises(ConfigError, match="no replica 2: the fleet has 2"):
        simulate(asked, fleet, policy("round_robin"), failures=[Failure(2, 1.0)])


def test_dropped_where_every_queue_is_full() -> None:
    """With one place in the queue the third of three at once is turned away."""
    fleet = Fleet((Pool(replica(max_waiting=2, admission="engine"), 1),))
    found = simulate(workload(*[(0.0, 100, 10)] * 3), fleet, policy("round_robin"))
    assert found.ended.tolist() == [0, 0, 2]


def test_prefix_goes_where_it_is_cached() -> None:
    """The second turn finds its first on the replica that has it, and only there."""
    units = tuple(range(100, 110))
    turns = [
        Request(0.0, 512 * 10, 20, units),
        Request(1.0, 300, 20),
        Request(5.0, 512 * 10 + 40, 20, units),
    ]
    found = simulate(workload_of("t", turns), Fleet((Pool(ONE, 3),)), policy("prefix_affinity"))
    assert found.cached_tokens.tolist() == [0, 0, 5120]
    assert found.replica[2] == found.replica[0]
    with pytest.raises(ConfigError, match="a unit of 500 tokens is no whole number of blocks"):
        simulate(workload_of("t", turns, 500), Fleet((Pool(ONE, 1),)), policy("random"))


def test_a_chat_finds_its_own_answers() -> None:
    """The next turn's prompt holds the last answer; both are found."""
    first = Request(0.0, 1000, 600, units=(1,), tail_units=(2, 3))
    second = Request(30.0, 1700, 5, units=(1, 2, 3))
    found = simulate(
        workload_of("t", [first, second]), Fleet((Pool(ONE, 1),)), policy("round_robin")
    )
    assert found.cached_tokens.tolist() == [0, 1536]


def test_a_closed_loop_meets_its_analytic_mean() -> None:
    """Sixteen clients, each asking again when answered: simulated TPOT is that of the formula
    that the calibration fits, within three per cent."""
    efficiency = Efficiency()
    asked = workload(*[(0.0, 922, 922)] * 400)
    for tp in (1, 4):
        machine = replica(tp=tp, max_num_seqs=64)
        found = simulate(asked, Fleet((Pool(machine, 1),)), policy("round_robin"), clients=16)
        point = Point(machine.shape.gpu, tp, 16, 922, 922, None)
        fit = Fit(efficiency, {"h100": machine.shape.gpu.bandwidth_efficiency})
        tpot_s, _ = predict(point, MODEL_120B, fit)
        assert float(np.mean(found.tpot_s)) == pytest.approx(tpot_s, rel=0.03)


def test_samples_over_time() -> None:
    """Utilisation, KV and queue per replica, every so often, within their bounds."""
    asked = make_workload("chat", requests_per_s=4, duration_s=30, seed=1)
    found = simulate(asked, MIXED, policy("least_request"), sample_every_s=5.0)
    assert found.samples is not None
    assert found.samples.at_s.tolist()[:3] == [0.0, 5.0, 10.0]
    assert found.samples.utilization.shape == (len(found.samples.at_s), 3)
    assert 0.5 < found.samples.utilization[1:5].max() <= 1.0
    assert found.samples.kv_share.min() >= 0.0
    assert found.samples.kv_share.max() <= 1.0


def test_of_too_many_looks_neighbours_become_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that outlasts what was expected is looked at more seldom, and evenly, as if it had been
    so from the start."""
    asked = make_workload("chat", requests_per_s=4, duration_s=30, seed=1)

    def looks(every_s: float) -> Outcome:
        return simulate(asked, MIXED, policy("least_request"), sample_every_s=every_s)

    plain = looks(4.0).samples
    monkeypatch.setattr("gpt_oss_server.simulate.fleet.cluster.MOST_LOOKS", 9)
    thinned = looks(1.0).samples
    assert plain is not None
    assert thinned is not None
    assert len(thinned.at_s) < 9
    count = min(len(plain.at_s), len(thinned.at_s))
    assert count >= 7
    assert thinned.at_s[:count].tolist() == plain.at_s[:count].tolist()
    assert thinned.utilization[:count] == pytest.approx(plain.utilization[:count], abs=1e-6)
    assert (thinned.decoding[:count] == plain.decoding[:count]).all()


def test_slo() -> None:
    """Shares per class by hand: who was late, slow or dropped is a miss."""
    slo = Slo((SloClass("a", 100, 1.0, 0.1), SloClass("b", float("inf"), 5.0, 0.1)), share=0.5)
    found = simulate(workload(*[(0.0, 50, 10)] * 4), MIXED, policy("round_robin"))
    report = judge(found, slo)
    assert [(c.name, c.requests, c.met) for c in report.classes] == [("a", 4, 4), ("b", 0, 0)]
    assert report.met
    found.ttft_s[0], found.e2e_s[1] = 1.5, found.ttft_s[1] + 9 * 0.11
    found.ended[2] = 2
    report = judge(found, slo)
    assert (report.classes[0].met, report.classes[0].share_met, report.met) == (1, 0.25, False)
    assert report.classes[1].share_met == 1.0
    with pytest.raises(ConfigError, match="rising up_to_tokens"):
        Slo((SloClass("a", 100, 1.0, 0.1),))
    with pytest.raises(ConfigError, match="share must be above 0"):
        Slo(share=0.0)


def test_goodput_is_the_load_where_everybody_is_served_as_promised() -> None:
    """However few came: three requests within a second are two a second."""
    asked = workload((0.0, 100, 10), (0.5, 100, 10), (1.0, 100, 10))
    outcome = simulate(asked, Fleet((Pool(replica(), 1),)), policy("round_robin"))
    assert judge(outcome, Slo()).goodput_per_s == pytest.approx(asked.requests_per_s) == 2.0


def test_an_impossible_fleet() -> None:
    """No pool, or an empty one."""
    with pytest.raises(ConfigError, match="at least one pool"):
        Fleet(())
    with pytest.raises(ConfigError, match="at least one replica"):
        Pool(ONE, 0)
    assert (MIXED.gpus, MIXED.name) == (6, "2×h100-tp1 + 1×h100-tp4")


def test_a_failure_after_everybody_was_served_concerns_nobody() -> None:
    """Nobody looks at an idle fleet until then, however late it is."""
    asked = workload((0.0, 100, 10), (5.0, 100, 10))
    fleet = Fleet((Pool(ONE, 1),))
    failures = [Failure(0, 1e12, 1e12)]
    found = simulate(asked, fleet, policy("round_robin"), failures=failures, sample_every_s=0.5)
    assert found.counts()["served"] == 2
    assert found.samples is not None
    assert found.samples.at_s[-1] <= found.end_s
    assert same(found, simulate(asked, fleet, policy("round_robin")))
