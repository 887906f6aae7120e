"""The policy: route against execution, texts, ranking."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_views import NOW_S, facts, fleet, gpu, replica

from gpt_oss_server.facts import MB_BYTES, ExcludedReplica, FleetView, ReplicaView
from gpt_oss_server.routing import RoutingConfig, TriggerPolicy

POLICY = TriggerPolicy(RoutingConfig())


def test_a_small_request_belongs_on_one_gpu() -> None:
    """Nothing fires: no trigger, no notice, the default reason."""
    decision = POLICY.decide(facts(), fleet(replica()))
    assert (decision.route, decision.executed, decision.trigger) == ("single_gpu",) * 2 + (None,)
    assert decision.reason == "default: no multi-GPU trigger"
    assert decision.notice is None
    assert decision.recommendation is None
    assert decision.unmet_recommendation is False


@pytest.mark.parametrize(
    ("mode", "machine_gpus", "recommendation"),
    [
        ("single", 4, "Recommendation: restart with --gpu-mode auto or tensor"),
        ("single", None, "Recommendation: restart with --gpu-mode auto or tensor"),
        ("auto", 2, "Recommendation: restart with --gpu-mode tensor"),
        (
            "single",
            1,
            "Recommendation: none for this machine, it has one GPU; "
            "multi-GPU modes need at least two",
        ),
        (
            "single",
            0,
            "Recommendation: none for this machine, it has no GPU; "
            "multi-GPU modes need at least two",
        ),
    ],
)
def test_a_large_request_in_single_mode_runs_and_advises(
    mode: str, machine_gpus: int | None, recommendation: str
) -> None:
    """Decided for several GPUs, executed on one, with advice that the machine can follow."""
    view = fleet(replica(), gpu_mode=mode, machine_gpus=machine_gpus)
    decision = POLICY.decide(facts(10_000), view)
    assert decision.route == "multi_gpu"
    assert decision.executed == "single_gpu"
    assert decision.unmet_recommendation is True
    assert decision.reason == "large_input: 10000 > 8000 tokens"
    assert decision.notice == "Large request detected but model in single GPU mode"
    assert decision.recommendation == recommendation


def test_a_large_request_on_a_spread_model_is_recorded() -> None:
    """The notice has the public form, and nothing is recommended."""
    decision = POLICY.decide(facts(10_000), fleet(replica(gpus=4), gpu_mode="tensor"))
    assert decision.executed == "multi_gpu"
    assert decision.notice == "Multi-GPU active: large_input (10000 > 8000)"
    assert decision.recommendation is None
    assert decision.unmet_recommendation is False


def test_the_notice_names_all_that_hold_and_counts_under_the_first() -> None:
    """Precedence decides the trigger, the text leaves nothing out."""
    view = fleet(replica(gpus=2), gpus=(gpu(used=91),), gpu_mode="auto")
    decision = POLICY.decide(facts(9000, 7500), view)
    assert decision.trigger == "large_input"
    assert decision.notice == (
        "Multi-GPU active: large_input (9000 > 8000), large_kv (7500 > 6000 MB), "
        "memory_pressure (0.91 > 0.85)"
    )
    assert len(decision.reasons) == 3


def test_an_untriggered_request_on_a_spread_model_runs_where_the_model_is() -> None:
    """Decision and execution differ the other way round; nothing is unmet."""
    decision = POLICY.decide(facts(), fleet(replica(gpus=4), gpu_mode="tensor"))
    assert (decision.route, decision.executed) == ("single_gpu", "multi_gpu")
    assert decision.unmet_recommendation is False


def test_a_stale_pressure_neither_triggers_nor_reads_as_zero() -> None:
    """An old 0.95 is unknown: no trigger, and the decision says why."""
    view = fleet(replica(), gpus=(gpu(used=95, measured_at_s=NOW_S - 60),))
    decision = POLICY.decide(facts(5000), view)
    assert decision.trigger is None
    assert decision.pressure.value is None
    assert decision.pressure.note == "gpu 0: reading is 60.0 s old"


def test_the_ranking_of_a_fleet() -> None:
    """Preferred pool, then room, then load, then id; the unusable are listed apart."""
    need = 7000 * MB_BYTES
    view = fleet(
        replica("s-idle", 1),
        replica("m-full", 4, kv_free_bytes=need - 1, load_tokens=0),
        replica("m-b", 2, load_tokens=500),
        replica("m-a", 2, load_tokens=500),
        replica("m-stale", 2, load_tokens=0, measured_at_s=NOW_S - 11),
        replica("m-large", 8, load_tokens=900, capacity_tokens=4000),
        replica("m-down", 4, ready=False),
        replica("s-small", 1, kv_capacity_bytes=need - 1),
        gpu_mode="tensor",
    )
    decision = POLICY.decide(facts(100, 7000), view)
    assert [r.id for r in decision.ranking] == [
        "m-large",
        "m-a",
        "m-b",
        "m-stale",
        "m-full",
        "s-idle",
    ]
    assert decision.excluded == (
        ExcludedReplica("m-down", "not_ready"),
        ExcludedReplica("s-small", "too_small"),
    )
    assert decision.ranking[0].why == (
        "preferred pool (multi_gpu); fits, 43000.0 MB of KV to spare; load 0.23"
    )
    assert decision.ranking[3].why.endswith("load unknown (stale)")
    assert decision.ranking[4].headroom_bytes == -1
    assert decision.ranking[4].fits_now is False


def test_a_multi_gpu_pool_that_is_down_is_said_to_be_down() -> None:
    """Restarting in another mode would not help, so that is not the advice."""
    decision = POLICY.decide(facts(9000), fleet(replica("m", 2, ready=False), replica("s")))
    assert decision.executed == "single_gpu"
    assert decision.unmet_recommendation is True
    assert decision.notice == "Large request detected but no multi-GPU replica can take it"
    assert decision.recommendation == (
        "Recommendation: check the multi-GPU replicas (not ready, or too small)"
    )


def test_no_replica_can_take_it() -> None:
    """A decision all the same, with nothing to dispatch to."""
    decision = POLICY.decide(facts(9000), fleet(replica(ready=False)))
    assert decision.ranking == ()
    assert decision.executed is None
    assert decision.unmet_recommendation is True


def test_an_open_bound_counts_with_the_least_it_can_run_with() -> None:
    """A replica is too small only if even the lowered bound cannot fit there."""
    small = replica(kv_capacity_bytes=100 * MB_BYTES, kv_free_bytes=100 * MB_BYTES)
    request = facts(kv_mb=3000, least_kv_bytes=90 * MB_BYTES)
    assert POLICY.decide(request, fleet(small)).ranking[0].headroom_bytes == 10 * MB_BYTES
    assert POLICY.decide(facts(kv_mb=3000), fleet(small)).ranking == ()


REPLICAS = st.lists(
    st.builds(
        replica,
        id=st.text("abc", min_size=1, max_size=2),
        gpus=st.integers(1, 4),
        load_tokens=st.integers(0, 3),
        capacity_tokens=st.integers(0, 4),
        kv_free_bytes=st.integers(0, 30).map(lambda mb: mb * MB_BYTES),
        measured_at_s=st.sampled_from([NOW_S, NOW_S - 100]),
        ready=st.booleans(),
    ),
    max_size=8,
    unique_by=lambda r: r.id,
)


@given(
    replicas=REPLICAS,
    tokens=st.sampled_from([10, 5000, 9000]),
    kv_mb=st.integers(0, 30),
    seed=st.integers(0, 100),
)
def test_a_decision_does_not_depend_on_the_order_of_the_view(
    replicas: list[ReplicaView], tokens: int, kv_mb: int, seed: int
) -> None:
    """The same fleet listed otherwise gives the same ranking, and nobody is lost."""
    view = fleet(*replicas)
    decision = POLICY.decide(facts(tokens, kv_mb), view)
    shuffled = list(replicas)
    random.Random(seed).shuffle(shuffled)
    again = POLICY.decide(facts(tokens, kv_mb), fleet(*shuffled))
    assert again.ranking == decision.ranking
    assert len(decision.ranking) + len(decision.excluded) == len(replicas)
    preferred = [r.preferred for r in decision.ranking]
    assert preferred == sorted(preferred, reverse=True)
    unmet = decision.route == "multi_gpu" and decision.executed != "multi_gpu"
    assert decision.unmet_recommendation is unmet


def test_a_view_without_replicas_still_decides() -> None:
    """Before the fleet is known the route is decided all the same."""
    decision = POLICY.decide(facts(9000), FleetView(gpu_mode="single", now_s=0.0))
    assert decision.route == "multi_gpu"
    assert decision.executed is None
