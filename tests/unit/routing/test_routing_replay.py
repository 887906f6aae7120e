"""Decision records: there and back, and what would have been."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_views import facts, fleet, gpu, replica

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.facts import FleetView, RequestFacts
from gpt_oss_server.routing import RoutingConfig, TriggerPolicy
from gpt_oss_server.routing.replay import (
    DecisionRecord,
    RecordError,
    from_line,
    replay,
    to_line,
)


def record(request: RequestFacts, view: FleetView) -> DecisionRecord:
    config = RoutingConfig()
    decision = TriggerPolicy(config).decide(request, view)
    return DecisionRecord(facts=request, fleet=view, config=config, decision=decision)


@given(
    tokens=st.integers(0, 200_000),
    kv_mb=st.floats(0, 10_000),
    used=st.integers(0, 10**12),
    now_s=st.floats(0, 1e9),
    gpus=st.integers(1, 8),
)
def test_a_record_survives_its_line_and_decides_the_same(
    tokens: int, kv_mb: float, used: int, now_s: float, gpus: int
) -> None:
    """JSON keeps every number exactly, so a replay without overrides finds nothing."""
    view = fleet(
        replica(gpus=gpus, measured_at_s=now_s / 3),
        gpus=(gpu(total_bytes=10**12 + 7, others_bytes=used, measured_at_s=now_s),),
        now_s=now_s,
    )
    written = record(facts(tokens, kv_mb), view)
    line = to_line(written)
    assert "\n" not in line
    read = from_line(line)
    assert read == written
    assert replay([read]).differences == ()


def test_other_thresholds_show_what_would_have_been() -> None:
    """Counts before and after, and the one request that moves."""
    records = [
        record(facts(10_000, request_id="big"), fleet(replica())),
        record(facts(5000, 900, request_id="middle"), fleet(replica())),
        record(facts(10, request_id="small"), fleet(replica())),
    ]
    report = replay(records, {"large_kv_mb": 800, "pressure_kv_mb": 400})
    assert report.total == 3
    assert report.rerouted == 1
    assert report.recorded_triggers == {"large_input": 1, "none": 2}
    assert report.replayed_triggers == {"large_input": 1, "large_kv": 1, "none": 1}
    assert [d.request_id for d in report.differences] == ["middle"]
    assert str(report.differences[0]) == (
        "middle: single_gpu (default: no multi-GPU trigger) -> multi_gpu "
        "(large_kv: 900 > 800 MB) [route, trigger, reasons, unmet_recommendation, ranking, "
        "notice, recommendation]"
    )


def test_a_tampered_decision_is_found() -> None:
    """Replaying the recorded thresholds detects a decision that they do not give."""
    line = json.loads(to_line(record(facts(10), fleet(replica()))))
    line["decision"]["route"] = "multi_gpu"
    report = replay([from_line(json.dumps(line))])
    assert report.differences[0].fields == ("route",)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "not a decision record: Input data was truncated"),
        ('{"facts": 1', "not a decision record"),
        ("[]", "not a decision record: Expected `object`, got `array`"),
        ("{}", "missing required field `facts`"),
        (b"\xff\xfe", "not a decision record"),
    ],
)
def test_a_line_that_is_no_record_says_so(line: str | bytes, says: str) -> None:
    """One clear error, whatever the line."""
    with pytest.raises(RecordError) as caught:
        from_line(line)
    assert says in str(caught.value)


def test_a_record_of_another_version_is_refused() -> None:
    """A later format is not half understood."""
    line = json.loads(to_line(record(facts(), fleet())))
    line["version"] = 2
    with pytest.raises(RecordError, match="record version 2, this reads 1"):
        from_line(json.dumps(line))


def test_unknown_overrides_are_refused() -> None:
    """A typing error in a what-if is an error, not a what-if of nothing."""
    with pytest.raises(ConfigError, match="unknown routing setting: large_inputs"):
        replay([record(facts(), fleet())], {"large_inputs": 1})
