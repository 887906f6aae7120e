"""What the GPU benchmark computes from what it measured: floors, shares, traces, comparisons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_bench.figures import covered, hidden_share, quantile, uncovered
from gpu_bench.floors import Ceilings, decode_bytes, launches, prefill_s
from gpu_bench.peer_sections import compared, relative
from gpu_bench.shapes import config_of
from gpu_bench.traces import DEVICE_WORK, busy

from gpt_oss_server.memory.weights import weights_of

LIMITS = Ceilings(copy=3.0e12, product=8.0e14)


def config(form: str) -> dict[str, Any]:
    return config_of("20b", None, form, "bfloat16")


@pytest.mark.parametrize(
    ("form", "batch", "context", "gigabytes"),
    [
        ("bf16", 1, 1024, 7.245),
        ("mxfp4", 1, 1024, 3.736),
        ("bf16", 64, 2048, 44.086),
        ("mxfp4", 64, 2048, 16.024),
    ],
)
def test_bytes_of_a_decode_step(form: str, batch: int, context: int, gigabytes: float) -> None:
    """At 3.0 TB/s: 2.4 and 1.2 ms a token at batch 1, 14.7 and 5.3 ms a step at batch 64."""
    assert decode_bytes(config(form), batch, context) / 1e9 == pytest.approx(gigabytes, abs=1e-3)


def test_bytes_of_a_decode_step_by_hand() -> None:
    """Batch 1: everything but the embedding, with 4 of 32 experts; and its KV."""
    whole = weights_of(config("bf16"))
    expert = 2 * (3 * 2880 * 2880 + 3 * 2880) * 24
    kv = (12 * 1024 + 12 * 128) * 2048
    embedding = 2 * 201_088 * 2880
    expected = whole.total_bytes - embedding - 28 * expert + kv
    assert decode_bytes(config("bf16"), 1, 1024) == pytest.approx(expected, rel=1e-9)


def test_a_prefill_is_bound_by_products() -> None:
    """8,192 tokens in chunks of 2,048: 3.0 GFLOP of weights a token twice, and attention."""
    active = weights_of(config("bf16")).active_params - 201_088 * 2880
    pairs = 12 * (8192 * 8193 // 2) + 12 * (128 * 129 // 2 + (8192 - 128) * 128)
    flop = 2 * active * 8192 + pairs * 4 * 64 * 64
    assert prefill_s(config("bf16"), 8192, 2048, LIMITS) == pytest.approx(flop / 8.0e14)
    # Reading the weights is what chunks of one token cost.
    read = weights_of(config("bf16")).total_bytes - 2 * 201_088 * 2880
    assert prefill_s(config("bf16"), 3, 1, LIMITS) == pytest.approx(3 * read / 3.0e12)


def test_launches_of_a_step() -> None:
    """Twelve a layer, as the fused pass says of itself."""
    assert launches(config("bf16")) == 24 * 12 + 8


def test_quantiles_are_of_the_values() -> None:
    """Nearest rank; none of nothing."""
    values = [float(n) for n in range(1, 201)]
    assert [quantile(values, q) for q in (0.0, 0.5, 0.99, 1.0)] == [1.0, 100.0, 198.0, 200.0]
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


def test_what_overlaps_is_covered_once() -> None:
    """Intervals inside, beside and across each other."""
    assert covered([(4.0, 5.0), (0.0, 2.0), (1.0, 3.0), (1.5, 1.7), (5.0, 6.0)]) == 5.0
    assert covered([]) == 0.0


def test_what_is_between_intervals_is_not_covered() -> None:
    """Between the first begin and the last end; nothing of nothing, or of what overlaps."""
    assert uncovered([(4.0, 5.0), (0.0, 2.0), (1.0, 3.0), (7.5, 8.0)]) == 3.5
    assert uncovered([(0.0, 2.0), (1.0, 3.0)]) == 0.0
    assert uncovered([]) == 0.0


@pytest.mark.parametrize(
    ("idle", "host", "share"),
    [(0.0, 1.0, 1.0), (0.1, 1.0, 0.9), (1.0, 1.0, 0.0), (4.0, 1.0, 0.0), (0.0, 0.0, 1.0)],
)
def test_hidden_host_time(idle: float, host: float, share: float) -> None:
    """All of it where the device never waits, none where it waits for all of it or more."""
    assert hidden_share(idle, host) == pytest.approx(share)


def test_a_trace_becomes_kernels() -> None:
    """Device work only, by name, longest first; two at once are busy once."""
    events = [
        {"ph": "X", "cat": "kernel", "name": "a", "ts": 0, "dur": 10},
        {"ph": "X", "cat": "kernel", "name": "b", "ts": 5, "dur": 20},
        {"ph": "X", "cat": "kernel", "name": "a", "ts": 100.5, "dur": 2},
        {"ph": "X", "cat": "gpu_memcpy", "name": "copy", "ts": 200, "dur": 1},
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaGraphLaunch", "ts": 0, "dur": 900},
        {"ph": "i", "cat": "kernel", "name": "a", "ts": 0},
    ]
    found = busy(events, DEVICE_WORK)
    assert found.seconds == pytest.approx(28e-6)
    assert found.launches == 4
    assert [(one.name, one.count) for one in found.kernels] == [("b", 1), ("a", 2), ("copy", 1)]
    first, second, _ = found.table(2)
    assert (first["kernel"], first["launches"], first["microseconds"]) == ("b", 0.5, 10.0)
    assert second["share"] == round(12 / 28, 3)


def test_pauses_inside_a_graph_are_no_waiting_for_the_host() -> None:
    """All that one call began, by its correlation, was given at once: the device waits for the host
    between calls only. Work without a number stands for itself."""
    graph = [(0, 4), (6, 4), (12, 3)]
    events = [
        {"ph": "X", "cat": "kernel", "name": "a", "ts": ts, "dur": dur, "args": {"correlation": 7}}
        for ts, dur in graph
    ]
    events += [
        {"ph": "X", "cat": "kernel", "name": "b", "ts": 20, "dur": 1, "args": {"correlation": 8}},
        {"ph": "X", "cat": "gpu_memcpy", "name": "c", "ts": 24, "dur": 2},
        {"ph": "X", "cat": "gpu_memcpy", "name": "c", "ts": 27, "dur": 1},
    ]
    found = busy(events, DEVICE_WORK)
    assert found.seconds == pytest.approx(15e-6)
    assert found.idle_seconds == pytest.approx(9e-6)


def test_rows_that_differ_are_told_with_their_margin() -> None:
    """A near tie: one token differs by a margin that is less than what the logits differ by."""
    theirs = torch.tensor([[1.0, 0.99, -1.0], [0.0, 5.0, 0.0]])
    ours = torch.tensor([[0.98, 1.0, -1.0], [0.0, 5.0, 0.0]])
    kept = [{"prompt": [7, 8], "tokens": [1, 1]}]
    found = compared([ours], [theirs], kept)
    assert (found["rows"], found["equal"], found["rows_over_limit"]) == (2, 1, 0)
    (row,) = found["differing"]
    assert (row["prompt_tokens"], row["position"]) == (2, 0)
    assert row["margin"] == pytest.approx(0.01, rel=1e-3)
    assert row["largest_difference"] == pytest.approx(0.02, rel=1e-3)
    assert (
        found["error"]
        == relative([ours], [theirs])
        == pytest.approx((5e-4 / 27.9801) ** 0.5, rel=1e-3)
    )


def test_rows_that_are_wrong_are_counted() -> None:
    """Too far from transformers, or not a number."""
    theirs = torch.eye(3)
    ours = theirs.clone()
    ours[1, 1], ours[2, 2] = 1.1, float("nan")
    found = compared([ours], [theirs], [{"prompt": [1], "tokens": [0, 1, 2]}])
    assert found["rows_over_limit"] == 2


def test_the_page_on_performance_has_these_floors() -> None:
    """Bytes, operations and times of docs/performance.md's table, at the ceilings that it names."""
    page = (Path(__file__).parents[3] / "docs" / "performance.md").read_text()
    limits = Ceilings(copy=3.0e12, product=7.98e14)
    targets = {("bf16", 1): 200, ("mxfp4", 1): 280, ("bf16", 64): 2700, ("mxfp4", 64): 5000}
    for (form, batch), target in targets.items():
        context = 1024 if batch == 1 else 2048
        moved = decode_bytes(config(form), batch, context)
        least_s = moved / limits.copy
        share = least_s * target / batch
        assert f"| {moved / 1e9:.2f} GB | {least_s * 1e3:.2f} ms | {share:.0%}" in page.replace(
            " %", "%"
        ), (form, batch)
    least_s = prefill_s(config("bf16"), 8192, 2048, limits)
    flop = least_s * limits.product
    assert (
        f"| {flop / 1e12:.2f} TFLOP | {least_s * 1e3:.2f} ms | {least_s * 40_000 / 8192:.0%}"
        in (page.replace(" %", "%"))
    )
    assert f"{launches(config('bf16'))} launches" in page
