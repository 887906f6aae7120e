"""Every row of figures in docs/memory.md is what the code computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gpt_oss_server.memory.activations import activations_of
from gpt_oss_server.memory.architecture import shape_from_config
from gpt_oss_server.memory.fit import FitRequest, GpuMode, fit
from gpt_oss_server.memory.kv import (
    Contiguous,
    kv_bytes,
    kv_bytes_per_token,
    sliding_cap_bytes,
    tokens_that_fit,
)
from gpt_oss_server.memory.weights import weights_of

MIB, GIB = 2**20, 2**30
TEXT = (Path(__file__).parents[3] / "docs" / "memory.md").read_text(encoding="utf-8")
MXFP4 = {"quantization_config": {"quant_method": "mxfp4"}}
OSS = {"model_type": "gpt_oss", "dtype": "bfloat16", **MXFP4}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt-oss-20b": {**OSS, "num_hidden_layers": 24, "num_local_experts": 32},
    "gpt-oss-120b": {**OSS, "num_hidden_layers": 36, "num_local_experts": 128},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_kv_row(name: str) -> None:
    """Bytes per token, sliding maximum and the largest request."""
    shape = shape_from_config(CONFIGS[name])
    half = len(shape.layers) // 2
    largest = kv_bytes(shape, 131072, Contiguous())
    row = (
        f"| {name} | {half} + {half} | {kv_bytes_per_token(shape):,} "
        f"| {sliding_cap_bytes(shape) / MIB:.1f} MiB | {largest / MIB:,.1f} MiB |"
    )
    assert row in TEXT
    assert largest < 6000 * MIB


@pytest.mark.parametrize("tokens", [16384, 32768, 65536])
def test_threshold_row(tokens: int) -> None:
    """What to set `large_kv_mb` to for a length."""
    sizes = [
        kv_bytes(shape_from_config(config), tokens, Contiguous()) / MIB
        for config in CONFIGS.values()
    ]
    assert f"| {tokens:,} | {sizes[0]:,.1f} | {sizes[1]:,.1f} |" in TEXT


def test_lengths_that_pass_the_default_thresholds() -> None:
    """3000 MB in gpt-oss tokens, 6000 MB in Llama-3.1-8B tokens."""
    lengths = [
        tokens_that_fit(shape_from_config(config), 3000 * MIB, Contiguous())
        for config in CONFIGS.values()
    ]
    assert f"passed at {lengths[0]:,} tokens (20b) and {lengths[1]:,} tokens (120b)" in TEXT
    llama = shape_from_config({"model_type": "llama", "num_key_value_heads": 8})
    assert f"needs {kv_bytes_per_token(llama):,} bytes" in TEXT
    assert f"passes 6000 MB at {tokens_that_fit(llama, 6000 * MIB, Contiguous()):,} tokens" in TEXT


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_row(name: str) -> None:
    """Parameters, active parameters, bf16 and MXFP4 sizes."""
    stored = weights_of(CONFIGS[name])
    loaded = weights_of(CONFIGS[name], dequantized=True)
    row = (
        f"| {name} | {stored.params / 1e9:.2f} B | {stored.active_params / 1e9:.2f} B "
        f"| {loaded.total_bytes / GIB:.2f} GiB | {stored.total_bytes / GIB:.2f} GiB |"
    )
    assert row in TEXT


def test_activation_figure() -> None:
    """The peak of the default step."""
    peak = activations_of(CONFIGS["gpt-oss-20b"], 8192, 256).peak_bytes
    assert f"stays under {peak / GIB:.2f} GiB" in TEXT


@pytest.mark.parametrize(
    ("name", "gpus", "gib", "mode"),
    [
        ("gpt-oss-20b", 1, 24, "single"),
        ("gpt-oss-20b", 1, 80, "single"),
        ("gpt-oss-120b", 1, 80, "single"),
        ("gpt-oss-120b", 4, 80, "tensor"),
        ("gpt-oss-120b", 4, 80, "pipeline"),
    ],
)
def test_fit_row(name: str, gpus: int, gib: int, mode: GpuMode) -> None:
    """One layout: weights per GPU, KV tokens, longest request, concurrency."""
    report = fit(CONFIGS[name], FitRequest(gib * GIB, gpus, mode))
    concurrent = " / ".join(str(count) for count in report.concurrent.values())
    row = (
        f"| {name} | {gpus} × {gib} GiB | {mode} | {max(report.weights_bytes) / GIB:.2f} GiB "
        f"| {report.kv_tokens:,} | {report.longest_request:,} | {concurrent} |"
    )
    assert row in TEXT
