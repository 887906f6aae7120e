"""Models whose experts kernels compute: the same logits and tokens as transformers'."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine_runs import cpu_core, job, run
from kernel_device import DEVICE
from mxfp4_models import saved_mxfp4
from tiny_models import VOCAB, build, generated, saved

pytest.importorskip("triton")

from gpt_oss_server.engine.experts.loading import load_as_stored
from gpt_oss_server.engine.experts.modules import (
    KernelExperts,
    KernelMixture,
    Mxfp4KernelExperts,
    PlainKernelExperts,
)
from gpt_oss_server.engine.experts.replace import gate_of, use_kernels
from gpt_oss_server.engine.kernels.gates import Gate
from gpt_oss_server.engine.loader import load_model, read_config
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.errors import StartupError

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

LAYERS = {"num_hidden_layers": 2}
TOKENS = torch.tensor([[1, 7, 200, 31, 5, 5, 90]], device=DEVICE)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(TOKENS).logits
    return found


def modules_of(model: Any, kind: type) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


@pytest.mark.parametrize(
    ("name", "mixtures"), [("gpt_oss", 2), ("qwen3_moe", 0), ("deepseek_v3", 0)]
)
def test_logits_stay(name: str, mixtures: int) -> None:
    """In float32; gpt-oss with its router, the others' experts behind their own."""
    model = build(name, **LAYERS).to(DEVICE)
    before = logits(model)
    replaced = use_kernels(model)
    assert replaced == modules_of(model, PlainKernelExperts) == (1 if name == "deepseek_v3" else 2)
    assert modules_of(model, KernelMixture) == mixtures
    torch.testing.assert_close(logits(model), before, atol=2e-4, rtol=1e-4)


def test_nothing_to_replace() -> None:
    """A dense model stays as it is."""
    model = build("llama", **LAYERS)
    assert use_kernels(model) == 0
    assert modules_of(model, KernelExperts) == 0


def test_an_activation_that_kernels_do_not_know() -> None:
    """Is found by trying it, and the module stays."""
    model = build("qwen3_moe", hidden_act="gelu", **LAYERS)
    assert use_kernels(model) == 0


def test_gates_are_told_apart() -> None:
    """By what they compute."""
    experts = build("gpt_oss", **LAYERS).model.layers[0].mlp.experts
    assert gate_of(experts) == Gate("swiglu", alpha=1.702, limit=7.0)
    assert gate_of(build("qwen3_moe", **LAYERS).model.layers[0].mlp.experts) == Gate("silu", True)


def test_mxfp4_is_computed_from_four_bits(tmp_path: Path) -> None:
    """Logits as transformers'."""
    folder = saved_mxfp4(tmp_path, **LAYERS)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(DEVICE)
    spec = EngineSpec(folder=folder, device=DEVICE, dtype="float32", experts="triton")
    lines: list[str] = []
    loaded = load_model(spec, lines.append)
    assert "experts of 2 layers are computed by Triton kernels" in lines
    assert modules_of(loaded.model, Mxfp4KernelExperts) == 2
    torch.testing.assert_close(logits(loaded.model), logits(theirs), atol=2e-4, rtol=1e-4)


def test_four_bits_are_rewritten_in_place(tmp_path: Path) -> None:
    """The same bytes at the same addresses before and after."""
    folder = saved_mxfp4(tmp_path, **LAYERS)
    device = torch.device(DEVICE)
    spec = EngineSpec(folder=folder, device=DEVICE)
    model = load_as_stored(spec, read_config(tmp_path), torch.bfloat16, device, lambda _: None)

    def memory() -> dict[int, int]:
        held = [*model.parameters(), *model.buffers()]
        return {one.data_ptr(): one.numel() * one.element_size() for one in held}

    before = memory()
    assert use_kernels(model) == 2
    assert memory() == before


def test_scales_beyond_the_kernel_stop_the_start(tmp_path: Path) -> None:
    """With what to do instead."""
    from safetensors.torch import load_file, save_file

    folder = saved_mxfp4(tmp_path, **LAYERS)
    for file in tmp_path.glob("*.safetensors"):
        tensors = load_file(file)
        for name, tensor in tensors.items():
            if name.endswith("down_proj_scales"):
                tensor[0, 0, 0] = 200
        save_file(tensors, file)
    with pytest.raises(StartupError, match=r"a scale byte is above 128.*use --experts torch"):
        load_model(EngineSpec(folder=folder, device=DEVICE, experts="triton"), lambda _: None)


@pytest.mark.parametrize("stored", [False, True], ids=["plain", "mxfp4"])
def test_greedy_tokens_are_transformers(tmp_path: Path, stored: bool) -> None:
    """Token for token through the engine in float32, in batches with chunked prompts."""
    if stored:
        folder = saved_mxfp4(tmp_path, **LAYERS)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(DEVICE)
    else:
        model = build("gpt_oss", **LAYERS).to(DEVICE)
        folder = saved(model, tmp_path)
    rng = random.Random(0)
    jobs = {
        key: job([rng.randrange(2, VOCAB - 5) for _ in range(length)], max_tokens=5)
        for key, length in enumerate((1, 20, 60))
    }
    core = cpu_core(folder, experts="triton", device=DEVICE, dtype="float32", max_batch_tokens=40)
    results = run(core, jobs)
    for key, one in jobs.items():
        assert results[key].tokens == generated(model, one.prompt, 5)


def test_a_step_of_no_tokens() -> None:
    """A rank may have none."""
    model = build("gpt_oss", **LAYERS).to(DEVICE)
    use_kernels(model)
    mixture = model.model.layers[0].mlp
    nothing = torch.empty(1, 0, 64, device=DEVICE)
    assert mixture(nothing)[0].shape == nothing.shape
    ids = torch.empty(0, 2, dtype=torch.int64, device=DEVICE)
    assert mixture.experts(nothing[0], ids, ids.float()).shape == (0, 64)


def test_padding_rows_become_zeros() -> None:
    """Of a step that is padded for a captured graph; the rest as without padding."""
    model = build("gpt_oss", **LAYERS).to(DEVICE)
    use_kernels(model)
    mixture = model.model.layers[0].mlp
    rows = torch.randn(6, 64, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    live = torch.tensor([4], dtype=torch.int32, device=DEVICE)
    with torch.no_grad():
        padded, alone = mixture.mixed(rows, live)[0], mixture.mixed(rows[:4])[0]
    assert not padded[4:].any()
    torch.testing.assert_close(padded[:4], alone)
