"""Who computes the experts, by setting, device and checkpoint."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpt_oss_server.engine.experts import choice
from gpt_oss_server.engine.experts.choice import (
    ExpertsChoice,
    choose_experts,
    is_mxfp4,
    wide_line,
)
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.errors import StartupError

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
HALF, FULL = torch.bfloat16, torch.float32
STORED = SimpleNamespace(model_type="gpt_oss", quantization_config={"quant_method": "mxfp4"})
PLAIN = SimpleNamespace(model_type="gpt_oss")


def chosen(
    experts: Any, config: Any, dtype: torch.dtype, device: torch.device
) -> tuple[bool, bool]:
    found = choose_experts(EngineSpec(folder="", experts=experts), config, dtype, device)
    assert isinstance(found, ExpertsChoice)
    return found.kernels, found.as_stored


@pytest.mark.parametrize(
    ("experts", "config", "dtype", "device", "expected"),
    [
        ("auto", STORED, HALF, CUDA, (True, True)),
        ("auto", PLAIN, HALF, CUDA, (True, False)),
        ("auto", PLAIN, FULL, CUDA, (False, False)),  # slow there, and nobody serves it
        ("auto", STORED, FULL, CPU, (False, False)),
        ("triton", STORED, FULL, CUDA, (True, True)),
        ("torch", STORED, HALF, CUDA, (False, True)),
        ("torch", STORED, FULL, CPU, (False, True)),
        ("torch", PLAIN, FULL, CPU, (False, False)),
        ("transformers", STORED, HALF, CUDA, (False, False)),
    ],
)
def test_where_kernels_run(
    monkeypatch: pytest.MonkeyPatch,
    experts: str,
    config: Any,
    dtype: torch.dtype,
    device: torch.device,
    expected: tuple[bool, bool],
) -> None:
    """(kernels, as stored), with Triton."""
    monkeypatch.setattr(choice, "why_not", lambda _: None)
    assert chosen(experts, config, dtype, device) == expected


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """auto falls back, triton says why not."""
    monkeypatch.setattr(choice, "why_not", lambda _: "Triton is not installed")
    assert chosen("auto", STORED, HALF, CUDA) == (False, False)
    with pytest.raises(StartupError, match="--experts triton: Triton is not installed; use"):
        chosen("triton", STORED, HALF, CUDA)


@pytest.mark.parametrize(
    ("experts", "config", "dtype", "device", "line"),
    [
        ("auto", STORED, HALF, CUDA, None),
        ("torch", STORED, FULL, CPU, None),
        ("auto", PLAIN, FULL, CPU, None),
        (
            "auto",
            STORED,
            FULL,
            CUDA,
            "float32, 7.5 times their bytes: kernels are chosen for half types, not for float32; "
            "--experts torch keeps them in 4 bits, and is slow",
        ),
        (
            "auto",
            STORED,
            HALF,
            CPU,
            "bfloat16, 3.8 times their bytes: not on cpu; --experts torch keeps them in 4 bits, "
            "and is slow",
        ),
        (
            "transformers",
            STORED,
            HALF,
            CUDA,
            "bfloat16, 3.8 times their bytes: --experts transformers",
        ),
    ],
)
def test_what_is_made_wide_is_said(
    monkeypatch: pytest.MonkeyPatch,
    experts: Any,
    config: Any,
    dtype: torch.dtype,
    device: torch.device,
    line: str | None,
) -> None:
    """How much larger, and why; nothing where nothing is."""
    monkeypatch.setattr(choice, "why_not", lambda on: "not on cpu" if on == CPU else None)
    found = choose_experts(EngineSpec(folder="", experts=experts), config, dtype, device)
    assert found.as_stored is (line is None and config is STORED)
    said = wide_line(found, dtype)
    assert said == (None if line is None else f"MXFP4 experts are held as {line}")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (STORED, True),
        (PLAIN, False),
        (SimpleNamespace(model_type="llama", quantization_config={"quant_method": "mxfp4"}), False),
        (SimpleNamespace(model_type="gpt_oss", quantization_config={"quant_method": "fp8"}), False),
        (SimpleNamespace(model_type="gpt_oss", quantization_config=None), False),
    ],
)
def test_what_is_mxfp4(config: Any, expected: bool) -> None:
    """By the config, for the model type that is published so."""
    assert is_mxfp4(config) is expected


def test_transformers_own_description_of_mxfp4() -> None:
    """An object whose method is an enumeration."""
    from transformers import GptOssConfig, Mxfp4Config

    assert is_mxfp4(GptOssConfig(quantization_config=Mxfp4Config()))
