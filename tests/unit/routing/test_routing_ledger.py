"""Counts that add up, and their public shape."""

from __future__ import annotations

import threading

import pytest
from routing_views import NOW_S, facts, fleet, gpu, replica

from gpt_oss_server.facts import GpuView
from gpt_oss_server.routing import (
    NoticeLimit,
    RoutingConfig,
    RoutingLedger,
    TriggerPolicy,
    bundle_section,
    gpu_balance,
    missed_targets,
    stats_section,
)

POLICY = TriggerPolicy(RoutingConfig())
SINGLE = POLICY.decide(facts(), fleet(replica()))
UNMET = POLICY.decide(facts(9000), fleet(replica()))
LARGE_INPUT = POLICY.decide(facts(9000), fleet(replica(gpus=2)))
LARGE_KV = POLICY.decide(facts(kv_mb=7000), fleet(replica(gpus=2)))
PRESSED = POLICY.decide(facts(5000), fleet(replica(gpus=2), gpus=(gpu(used=90),)))


def test_the_stats_section_has_the_public_shape() -> None:
    """Sixty and forty, as in the documented example, with execution counted apart."""
    ledger = RoutingLedger()
    for decision, times in ((SINGLE, 60), (LARGE_INPUT, 29), (UNMET, 1), (LARGE_KV, 8)):
        for _ in range(times):
            ledger.record(decision)
    for _ in range(2):
        ledger.record(PRESSED)
    for _ in range(61):
        ledger.record_executed("single_gpu")
    ledger.record_executed("multi_gpu")
    gpus = (gpu("0", utilization_percent=65.0), gpu("1", utilization_percent=62.0))
    section = stats_section(ledger.snapshot(), gpu_balance(gpus, NOW_S, 10.0))
    assert section == {
        "total_requests": 100,
        "single_gpu_requests": 60,
        "route4_gpu_requests": 40,
        "route4_percentage": 40.0,
        "route4_triggers": {"large_input": 30, "large_kv": 8, "memory_pressure": 2},
        "executed": {"single_gpu": 61, "multi_gpu": 1},
        "unmet_recommendations": 1,
        "gpu_balance": {
            "balanced": True,
            "coefficient": 0.9538,
            "gpu_utilization": {"0": 65.0, "1": 62.0},
        },
    }


def test_before_any_request_everything_is_zero_and_the_unknown_absent() -> None:
    """No decision is 0 %; no utilisation is no balance, and no latency no average."""
    snapshot = RoutingLedger().snapshot()
    assert stats_section(snapshot, None) == {
        "total_requests": 0,
        "single_gpu_requests": 0,
        "route4_gpu_requests": 0,
        "route4_percentage": 0.0,
        "route4_triggers": {"large_input": 0, "large_kv": 0, "memory_pressure": 0},
        "executed": {"single_gpu": 0, "multi_gpu": 0},
        "unmet_recommendations": 0,
    }
    assert bundle_section(snapshot, None, "single")["performance_metrics"] == {}


def test_the_bundle_section_has_the_public_shape() -> None:
    """Averages are per route that a request really ran on."""
    ledger = RoutingLedger()
    ledger.record(SINGLE)
    ledger.record(LARGE_KV)
    for latency_ms in (4000.0, 5000.0):
        ledger.record_latency("single_gpu", latency_ms)
    ledger.record_latency("multi_gpu", 3200.0)
    gpus = (gpu("0", utilization_percent=100.0), gpu("1", utilization_percent=95.0))
    section = bundle_section(ledger.snapshot(), gpu_balance(gpus, NOW_S, 10.0), "auto")
    assert section == {
        "current_mode": "auto",
        "total_requests": 2,
        "route4_percentage": 50.0,
        "trigger_breakdown": {"large_input": 0, "large_kv": 1, "memory_pressure": 0},
        "performance_metrics": {
            "avg_single_gpu_latency_ms": 4500.0,
            "avg_multi_gpu_latency_ms": 3200.0,
            "gpu_utilization_balance": 0.95,
        },
    }


def test_every_snapshot_adds_up_while_threads_count() -> None:
    """Four writers and a reader: what was read last equals what was written, nothing lost."""
    ledger = RoutingLedger()
    decisions = (SINGLE, UNMET, LARGE_KV, PRESSED)

    def write() -> None:
        for index in range(500):
            ledger.record(decisions[index % 4])
            ledger.record_executed("single_gpu")

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    seen = 0
    while any(thread.is_alive() for thread in threads):
        section = stats_section(ledger.snapshot(), None)
        assert section["total_requests"] == (
            section["single_gpu_requests"] + section["route4_gpu_requests"]
        )
        assert section["route4_gpu_requests"] == sum(section["route4_triggers"].values())
        assert section["total_requests"] >= seen
        seen = section["total_requests"]
    for thread in threads:
        thread.join()
    snapshot = ledger.snapshot()
    assert snapshot.total_decisions == 2000
    assert snapshot.triggers == {"large_input": 500, "large_kv": 500, "memory_pressure": 500}
    assert snapshot.unmet_recommendations == 500
    assert snapshot.executed == {"single_gpu": 2000, "multi_gpu": 0}


def test_a_snapshot_is_of_its_moment() -> None:
    """What is counted later does not show in it."""
    ledger = RoutingLedger()
    snapshot = ledger.snapshot()
    ledger.record(LARGE_KV)
    assert snapshot.total_decisions == 0


@pytest.mark.parametrize(
    ("gpus", "coefficient", "balanced", "unknown"),
    [
        ((gpu("0", utilization_percent=0.0), gpu("1", utilization_percent=0.0)), 1.0, True, ()),
        ((gpu("0", utilization_percent=90.0), gpu("1", utilization_percent=100.0)), 0.9, True, ()),
        ((gpu("0", utilization_percent=0.0), gpu("1", utilization_percent=50.0)), 0.0, False, ()),
        ((gpu("0", utilization_percent=40.0),), 1.0, True, ()),
        ((gpu("0", utilization_percent=40.0), gpu("1")), 1.0, True, ("1",)),
        (
            (
                gpu("0", utilization_percent=40.0),
                gpu("1", utilization_percent=80.0),
                gpu("2", utilization_percent=0.0, in_use=False),
            ),
            0.5,
            False,
            (),
        ),
        (
            (
                gpu("0", utilization_percent=40.0),
                gpu("1", utilization_percent=80.0, measured_at_s=NOW_S - 11),
                gpu("2", utilization_percent=float("nan")),
            ),
            1.0,
            True,
            ("1", "2"),
        ),
    ],
)
def test_balance(
    gpus: tuple[GpuView, ...], coefficient: float, balanced: bool, unknown: tuple[str, ...]
) -> None:
    """min / max over the GPUs in use; all idle is balanced; the unknown is left out and named."""
    balance = gpu_balance(gpus, NOW_S, 10.0)
    assert balance is not None
    assert balance.coefficient == coefficient
    assert balance.balanced is balanced
    assert balance.unknown_gpus == unknown


def test_no_known_utilisation_is_no_balance() -> None:
    """Absent, not zero."""
    assert gpu_balance((gpu(), gpu("1", in_use=False)), NOW_S, 10.0) is None


def test_missed_targets_name_the_figure_and_the_target() -> None:
    """Utilisation below and latency above the target are said; the unknown misses nothing."""
    balance = gpu_balance(
        (gpu("0", utilization_percent=60.0), gpu("1", utilization_percent=12.5)), NOW_S, 10.0
    )
    config = RoutingConfig()
    assert missed_targets(config, balance, 20.0) == ("gpu 1 utilisation 12.5 % < 60 %",)
    assert missed_targets(config, None, 20.5) == ("p95 end-to-end 20.50 s > 20 s",)
    assert missed_targets(config, None, None) == ()


def test_notices_are_limited_per_text_and_none_is_forgotten() -> None:
    """One line per interval and text; the next one says how many were left out."""
    limit = NoticeLimit(interval_s=60.0)
    calls = [("a", 0.0), ("a", 1.0), ("b", 2.0), ("a", 59.9), ("a", 60.0), ("a", 130.0)]
    assert [limit.allow(text, now_s) for text, now_s in calls] == [0, None, 0, None, 2, 0]
