"""MXFP4 checkpoints: loaded as they are stored, computed with PyTorch, as large as predicted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from gpt_oss_server.engine.experts.stored import Mxfp4Experts, widened
from gpt_oss_server.engine.kernels.gates import Gate
from gpt_oss_server.engine.loader import load_model
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.errors import StartupError
from gpt_oss_server.memory.weights import weights_of
from mxfp4_models import random_mxfp4, saved_mxfp4

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # transformers says that it widens MXFP4 without the package kernels.
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

TOKENS = torch.tensor([[1, 7, 200, 31, 5, 5, 90]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_mxfp4(tmp_path_factory.mktemp("mxfp4"))


def spec(folder: str, **settings: Any) -> EngineSpec:
    return EngineSpec(folder=folder, **{"device": "cpu", "experts": "torch", **settings})


def load(folder: str, **settings: Any) -> Any:
    return load_model(spec(folder, **settings), lambda _: None)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(TOKENS).logits
    return found


def buffers_bytes(model: Any) -> int:
    return sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_are_those_of_transformers(dtype: torch.dtype) -> None:
    """Bit for bit, in the type that is asked for."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks, scales = random_mxfp4(3, 6, 96)
    theirs = convert_moe_packed_tensors(blocks, scales, dtype=dtype)
    ours = torch.stack([widened(b, s, dtype) for b, s in zip(blocks, scales, strict=True)])
    assert torch.equal(ours.transpose(1, 2), theirs)


def test_logits_are_those_of_transformers(folder: str) -> None:
    """In float32, where transformers widens all experts at load."""
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.testing.assert_close(logits(load(folder).model), logits(theirs), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_is_as_predicted(folder: str, dtype: str) -> None:
    """What is held beside buffers is what the config's arithmetic says, stored and widened."""
    config = json.loads((Path(folder) / "config.json").read_text())
    for experts, dequantized in (("torch", False), ("transformers", True)):
        loaded = load(folder, experts=experts, dtype=dtype)
        predicted = weights_of(config, dtype=dtype, dequantized=dequantized).total_bytes
        if not dequantized:
            assert loaded.weights_bytes - buffers_bytes(loaded.model) == predicted
        else:
            # Packed for this CPU since, but counted before.
            assert loaded.weights_bytes >= predicted


def test_active_parameters_count_numbers(folder: str) -> None:
    """Two a byte, of the chosen experts: the same as of the wide model."""
    wide = load(folder, experts="transformers")
    assert load(folder).active_parameters == wide.active_parameters


def test_tensors_that_are_missing(folder: str, tmp_path: Path) -> None:
    """One line that names one of them."""
    for file in Path(folder).glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    tensors = {}
    for file in set(index["weight_map"].values()):
        tensors |= load_file(Path(folder) / file)
    del tensors["model.layers.1.mlp.experts.down_proj_scales"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(StartupError, match=r"lacks 1 .*layers\.1\.mlp\.experts\.down_proj_scales"):
        load(str(tmp_path))


def test_progress_is_shown(folder: str) -> None:
    """Growing, to the end."""
    lines: list[str] = []
    load_model(spec(folder), lines.append)
    shares = [int(line.split()[-2]) for line in lines if line.startswith("loading weights: ")]
    assert len(shares) > 3
    assert shares == sorted(set(shares))
    assert shares[-1] == 100


def test_random_weights_in_four_bits(tmp_path: Path, folder: str) -> None:
    """From a config alone: the same for a seed, as large as loaded ones, finite."""
    (tmp_path / "config.json").write_bytes((Path(folder) / "config.json").read_bytes())
    settings: dict[str, Any] = {"load_format": "random"}
    first = load(str(tmp_path), **settings)
    again, other = (load(str(tmp_path), weights_seed=seed, **settings) for seed in (0, 1))
    assert first.weights_bytes == load(folder).weights_bytes
    assert torch.isfinite(logits(first.model)).all()
    assert torch.equal(logits(first.model), logits(again.model))
    assert not torch.equal(logits(first.model), logits(other.model))


def test_sizes_must_be_whole_groups() -> None:
    """32 numbers share a scale."""
    with pytest.raises(ValueError, match="sizes 64 and 40 are no multiples of 32"):
        Mxfp4Experts(2, 64, 40, Gate("swiglu"), torch.float32)
