"""Does it fit, and how much KV is left: gpt-oss on common GPUs, and what cannot be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_tiny_models import TINY

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.memory.activations import activations_of
from gpt_oss_server.memory.errors import ShapeUnknown
from gpt_oss_server.memory.fit import FitRequest, GpuMode, fit
from gpt_oss_server.memory.weights import weights_of

GIB = 2**30
OSS = {"model_type": "gpt_oss", "dtype": "bfloat16"}
MXFP4 = {"quantization_config": {"quant_method": "mxfp4"}}
OSS_20B: dict[str, Any] = {**OSS, **MXFP4, "num_hidden_layers": 24, "num_local_experts": 32}
OSS_120B: dict[str, Any] = {**OSS, **MXFP4, "num_hidden_layers": 36, "num_local_experts": 128}


@pytest.mark.parametrize(
    ("config", "gib", "gpus", "mode", "fits", "kv_tokens", "concurrent"),
    [
        (OSS_20B, 24, 1, "single", True, 189072, (92, 23, 5, 1)),
        (OSS_20B, 16, 1, "single", False, 0, (0, 0, 0, 0)),
        (OSS_120B, 80, 1, "single", True, 177072, (86, 21, 5, 1)),
        (OSS_120B, 80, 4, "tensor", True, 6158576, (256, 256, 187, 46)),
        (OSS_120B, 80, 4, "pipeline", True, 5459520, (256, 256, 166, 41)),
        (OSS_120B, 48, 1, "single", False, 0, (0, 0, 0, 0)),
    ],
)
def test_gpt_oss_on_common_gpus(
    config: dict[str, Any],
    gib: int,
    gpus: int,
    mode: GpuMode,
    fits: bool,
    kv_tokens: int,
    concurrent: tuple[int, ...],
) -> None:
    """Token capacity and concurrent requests of 2k, 8k, 32k and 131k tokens."""
    report = fit(config, FitRequest(gib * GIB, gpus, mode))
    assert report.fits == fits
    assert report.kv_tokens == kv_tokens
    assert tuple(report.concurrent.values()) == concurrent
    assert report.gpus_used == gpus
    assert (report.shortfall_bytes == 0) == fits
    assert bool(report.reasons) != fits


def test_memory_adds_up() -> None:
    """Weights, activations, workspace and KV are the usable memory, to the byte, on each GPU."""
    asked = FitRequest(80 * GIB, 4, "pipeline", utilization=0.5)
    report = fit(OSS_120B, asked)
    assert report.weights_bytes == weights_of(OSS_120B).rank_bytes(pp=4)
    assert report.activations_bytes == activations_of(OSS_120B, 8192, 256).peak_bytes
    for weights, kv in zip(report.weights_bytes, report.kv_bytes, strict=True):
        assert weights + report.activations_bytes + kv + GIB == 40 * GIB


def test_shortfall_is_what_would_make_it_fit() -> None:
    """A GPU larger by the shortfall (over the utilization) fits; a byte less of it does not."""
    asked = FitRequest(15 * GIB, utilization=1.0)
    report = fit(OSS_20B, asked)
    assert not report.fits
    enough = asked.gpu_memory_bytes + report.shortfall_bytes
    assert fit(OSS_20B, replace(asked, gpu_memory_bytes=enough)).fits
    assert not fit(OSS_20B, replace(asked, gpu_memory_bytes=enough - 1)).fits
    assert "GPU 0: weights" in report.reasons[0]


@pytest.mark.parametrize(
    ("gpus", "mode", "reason"),
    [(3, "tensor", "64 attention heads"), (25, "pipeline", "24 layers"), (25, "auto", "24 layers")],
)
def test_an_impossible_layout_does_not_fit_whatever_the_memory(
    gpus: int, mode: GpuMode, reason: str
) -> None:
    """The report says what cannot be shared."""
    report = fit(OSS_20B, FitRequest(1000 * GIB, gpus, mode))
    assert not report.fits
    assert reason in report.reasons[0]
    assert set(report.concurrent.values()) == {0}


def test_single_mode_uses_one_gpu_of_many() -> None:
    """The others are no help to it."""
    one, many = (fit(OSS_20B, FitRequest(24 * GIB, gpus)) for gpus in (1, 8))
    assert one == many
    assert one.gpus_used == 1


def test_a_model_of_windows_has_no_longest_request_but_its_context() -> None:
    """Mistral with a window: any length fits, so the model's own context is the bound."""
    config = {**TINY["mistral"], "max_position_embeddings": 10**6, "dtype": "float32"}
    report = fit(config, FitRequest(2 * GIB))
    assert report.longest_request == 10**6
    assert report.kv_tokens < 10**6


def test_an_unknown_model_is_a_bound_and_says_why() -> None:
    """The report of an unknown architecture is not exact and carries every assumption."""
    config = {"model_type": "new", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 100}
    report = fit(config, FitRequest(4 * GIB), checkpoint_bytes=GIB)
    assert report.fits
    assert not report.exact
    assert report.weights_bytes == (GIB,)
    assert any("'new'" in reason for reason in report.reasons)
    with pytest.raises(ShapeUnknown, match="hidden_size"):
        fit({"model_type": "new"}, FitRequest(4 * GIB))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"gpus": 0}, "gpus"),
        ({"gpu_memory_bytes": 0}, "gpu_memory_bytes"),
        ({"utilization": 0.0}, "utilization"),
        ({"utilization": 1.5}, "utilization"),
        ({"utilization": float("nan")}, "utilization"),
        ({"block_size": -1}, "block_size"),
        ({"workspace_bytes": -1}, "workspace_bytes"),
    ],
)
def test_a_setting_that_is_no_machine_is_named(change: dict[str, Any], named: str) -> None:
    """Impossible settings are configuration errors."""
    with pytest.raises(ConfigError, match=named):
        replace(FitRequest(GIB), **change)


@settings(max_examples=60)
@given(
    gib=st.integers(10, 200),
    more=st.integers(0, 50),
    gpus=st.sampled_from([1, 2, 4, 8]),
    mode=st.sampled_from(["single", "auto", "tensor", "pipeline"]),
)
def test_more_memory_never_holds_less(gib: int, more: int, gpus: int, mode: GpuMode) -> None:
    """Tokens, longest request and concurrency grow with GPU memory."""
    small, large = (fit(OSS_120B, FitRequest(size * GIB, gpus, mode)) for size in (gib, gib + more))
    assert small.fits <= large.fits
    assert small.kv_tokens <= large.kv_tokens
    assert small.longest_request <= large.longest_request <= 131072
    assert all(small.concurrent[n] <= large.concurrent[n] for n in small.concurrent)
