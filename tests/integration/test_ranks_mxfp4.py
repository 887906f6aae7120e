"""Ranks that keep MXFP4 experts in four bits say what one process says that does so too, and hold
what was predicted."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import kernel_device
from engine_runs import cpu_core, job, run
from gpt_oss_server.engine.core import EngineCore
from gpt_oss_server.engine.experts import choice
from gpt_oss_server.engine.ranks.comms import Comms
from gpt_oss_server.engine.ranks.loading import load_part
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.errors import StartupError
from gpt_oss_server.memory.weights import weights_of
from gpt_oss_server.types import Job
from mxfp4_models import saved_mxfp4
from rank_engine import run_over_ranks, spec_for
from rank_processes import stages, tensor_ranks
from tiny_models import VOCAB, build, saved

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # transformers says that it widens MXFP4 without the package kernels.
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

WIDTH = 160
"""Five groups of 32: neither two ranks nor four have as many each."""
JOBS = {key: job([7, 3, key, 19] * (5 * key + 1), max_tokens=10) for key in range(4)}
FEW = {key: job([7, 3, key, 19] * (2 * key + 1), max_tokens=4) for key in range(2)}
SPREAD = {"": "cpu", "model.layers.1": "disk", "model.layers.3.mlp": "disk", "lm_head": "disk"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> str:
    return saved_mxfp4(tmp_path_factory.mktemp("mxfp4"), intermediate_size=WIDTH)


def said(folder: str, jobs: Mapping[int, Job], **settings: Any) -> dict[int, list[int]]:
    """By one process."""
    results = run(cpu_core(folder, **settings), dict(jobs))
    return {key: result.tokens for key, result in results.items()}


def over_ranks(
    mode: str, gpus: int, folder: str, jobs: Mapping[int, Job], work: Any, **settings: Any
) -> tuple[list[dict[int, list[int]]], list[Mapping[str, Any]]]:
    """What leaders said, and what each rank holds."""
    start = tensor_ranks if mode == "tensor" else stages
    spec = spec_for(folder, gpu_mode=mode, gpus=gpus, **settings)
    answers = start(gpus, work, spec, jobs)
    return [a[0] for a in answers if a[0] is not None], [a[1] for a in answers]


def interpreted(comms: Comms, spec: EngineSpec, jobs: Mapping[int, Job]) -> Any:
    """`run_over_ranks` where kernels run in Triton's interpreter."""
    os.environ["TRITON_INTERPRET"] = "1"
    return run_over_ranks(comms, spec, jobs)


def by_count(comms: Comms, spec: EngineSpec, jobs: Mapping[int, Job]) -> Any:
    """`run_over_ranks` where each rank has some of the experts whole."""
    return run_over_ranks(comms, spec, jobs, "count")


def predicted(folder: str, mode: str, gpus: int, *, dequantized: bool = False) -> list[int]:
    """Weight bytes of every rank."""
    config = json.loads((Path(folder) / "config.json").read_text())
    weights = weights_of(config, dtype="float32", dequantized=dequantized)
    if mode == "tensor":
        return list(weights.rank_bytes(gpus)) * gpus
    return list(weights.rank_bytes(1, gpus))


def weights_held(held: list[Mapping[str, Any]]) -> list[int]:
    return [rank["weights_bytes"] - rank["buffer_bytes"] for rank in held]


@pytest.mark.parametrize(("mode", "gpus"), [("tensor", 2), ("tensor", 4), ("pipeline", 2)])
def test_the_same_in_four_bits(folder: str, mode: str, gpus: int) -> None:
    """Token for token in float32, and to the byte what is predicted, also where ranks have no equal
    number of groups."""
    expected = said(folder, JOBS, experts="torch")
    assert len({token for tokens in expected.values() for token in tokens}) > 10
    answers, held = over_ranks(mode, gpus, folder, JOBS, run_over_ranks, experts="torch")
    assert answers == [expected]
    assert weights_held(held) == predicted(folder, mode, gpus)
    for rank in held:
        assert "reading this rank's part of the weights" in rank["progress"]
        assert "loading weights: 100 %" in rank["progress"]
        assert not [line for line in rank["progress"] if "are held as" in line]


@pytest.mark.skipif(not kernel_device.HAVE_TRITON, reason="needs Triton")
@pytest.mark.skipif(kernel_device.DEVICE == "cuda", reason="tests/gpu runs the compiled kernels")
@pytest.mark.parametrize(("mode", "gpus"), [("tensor", 2), ("pipeline", 2)])
def test_the_same_by_kernels(folder: str, mode: str, gpus: int) -> None:
    """In Triton's interpreter: each rank's part is cut in the published layout, then rewritten."""
    settings = {"experts": "triton", "dtype": "float32"}
    expected = said(folder, FEW, **settings)
    answers, held = over_ranks(mode, gpus, folder, FEW, interpreted, **settings)
    assert answers == [expected]
    assert weights_held(held) == predicted(folder, mode, gpus)
    for rank in held:
        layers = len(rank["layers"])
        line = f"experts of {layers} layers are computed by Triton kernels"
        assert line in rank["progress"]


def test_whole_experts(folder: str) -> None:
    """By count, each rank has some experts of every layer."""
    answers, _ = over_ranks("tensor", 2, folder, JOBS, by_count, experts="torch")
    assert answers == [said(folder, JOBS, experts="torch")]


@pytest.mark.parametrize(("mode", "gpus"), [("tensor", 2), ("pipeline", 2)])
def test_where_they_are_made_wide_it_is_said(folder: str, mode: str, gpus: int) -> None:
    """By transformers' choice: the line has the reason, the bytes are those of wide weights."""
    settings = {"experts": "transformers", "dtype": "bfloat16"}
    _, held = over_ranks(mode, gpus, folder, FEW, run_over_ranks, **settings)
    line = "MXFP4 experts are held as bfloat16, 3.8 times their bytes: --experts transformers"
    assert all(line in rank["progress"] for rank in held)
    wide = predicted(folder, mode, gpus, dequantized=True)
    assert [2 * size for size in weights_held(held)] == wide


@pytest.mark.parametrize(("mode", "gpus"), [("tensor", 2), ("pipeline", 2)])
def test_random_weights_are_those_of_one_process(
    folder: str, tmp_path: Path, mode: str, gpus: int
) -> None:
    """The same for a seed, however they are cut."""
    (tmp_path / "config.json").write_bytes((Path(folder) / "config.json").read_bytes())
    settings = {"experts": "torch", "load_format": "random", "weights_seed": 7}
    answers, held = over_ranks(mode, gpus, str(tmp_path), JOBS, run_over_ranks, **settings)
    assert answers == [said(str(tmp_path), JOBS, **settings)]
    assert weights_held(held) == predicted(folder, mode, gpus)


def _without_kernels(comms: Comms, spec: EngineSpec) -> list[str]:
    """What a rank says while it loads, where the second one's device cannot run kernels."""
    choice.why_not = lambda device: "none here" if comms.place.rank else None
    os.environ["TRITON_INTERPRET"] = "1"
    said: list[str] = []
    choice.kernels_wanted = lambda *_: comms.place.rank == 0
    load_part(spec, comms.place, comms, said.append)
    return said


def test_all_ranks_hold_them_alike(folder: str) -> None:
    """Where one cannot compute from four bits, none keeps them: parts would not fit together."""
    spec = spec_for(folder, gpu_mode="tensor", gpus=2, dtype="bfloat16")
    first, second = tensor_ranks(2, _without_kernels, spec)
    start = "MXFP4 experts are held as bfloat16, 3.8 times their bytes: "
    assert f"{start}another rank's GPU cannot" in first
    assert f"{start}none here; --experts torch keeps them in 4 bits, and is slow" in second


def _load(comms: Comms, spec: EngineSpec) -> str:
    try:
        load_part(spec, comms.place, comms, lambda _: None)
    except StartupError as error:
        return str(error)
    return "loaded"


def test_more_ranks_than_groups(tmp_path: Path) -> None:
    """One line with the numbers."""
    folder = saved_mxfp4(tmp_path, intermediate_size=32)
    spec = spec_for(folder, gpu_mode="tensor", gpus=2, experts="torch")
    lines = tensor_ranks(2, _load, spec)
    expected = "--gpu-mode tensor: 1 groups of 32 columns of an expert do not divide over 2 GPUs"
    assert all(line.startswith(expected) for line in lines)


def test_tensors_that_are_missing(folder: str, tmp_path: Path) -> None:
    """Every rank stops with one line that names one of them."""
    (tmp_path / "config.json").write_bytes((Path(folder) / "config.json").read_bytes())
    tensors: dict[str, torch.Tensor] = {}
    for file in Path(folder).glob("*.safetensors"):
        tensors |= load_file(file)
    del tensors["model.layers.1.mlp.experts.down_proj_scales"]
    save_file(tensors, tmp_path / "model.safetensors")
    spec = spec_for(str(tmp_path), gpu_mode="tensor", gpus=2, experts="torch")
    for line in tensor_ranks(2, _load, spec):
        assert (
            "lacks 1 of the model's tensors (model.layers.1.mlp.experts.down_proj_scales)" in line
        )


@pytest.mark.parametrize("experts", ["torch", "triton"])
def test_a_map_with_layers_on_disk(folder: str, experts: str) -> None:
    """Mode auto: what is on disk stays there in four bits and is read from the checkpoint's own
    files; kernels compute what is where it is used."""
    if experts == "triton" and not kernel_device.HAVE_TRITON:
        pytest.skip("needs Triton")
    settings = {"experts": experts, "dtype": "float32"}
    lines: list[str] = []
    spec = spec_for(folder, gpu_mode="auto", device_map=SPREAD, **settings)
    core = EngineCore(spec, lines.append)
    (rank,) = core.info().ranks
    results = run(core, dict(FEW))
    assert {key: one.tokens for key, one in results.items()} == said(folder, FEW, experts="torch")
    assert "experts of 2 layers are made wide in each step, one by one" in lines or (
        experts == "torch"
    )
    whole = EngineCore(spec_for(folder, experts="torch")).info().weights_bytes
    assert rank.weights_bytes == whole - on_disk(folder)
    assert not [line for line in lines if "are held as" in line]


@pytest.mark.skipif(not kernel_device.HAVE_TRITON, reason="needs Triton")
@pytest.mark.skipif(kernel_device.DEVICE == "cuda", reason="for the interpreter")
def test_kernels_compute_plain_weights_too(tmp_path: Path) -> None:
    """Mode auto of a checkpoint that is not in four bits: kernels are there where they are asked
    for, but for what is on disk."""
    folder = saved(build("gpt_oss"), tmp_path)
    lines: list[str] = []
    spec = spec_for(folder, gpu_mode="auto", device_map=SPREAD, experts="triton")
    core = EngineCore(spec, lines.append)
    assert "experts of 2 layers are computed by Triton kernels" in lines
    results = run(core, dict(FEW))
    assert {key: one.tokens for key, one in results.items()} == said(folder, FEW)
    assert not [line for line in lines if "made wide" in line or "are held as" in line]


def on_disk(folder: str) -> int:
    """Bytes of the tensors that `SPREAD` leaves in the files."""
    names = ("model.layers.1.", "model.layers.3.mlp.", "lm_head.")
    size = 0
    for file in Path(folder).glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            if name.startswith(names):
                size += tensor.numel() * tensor.element_size()
    assert size > VOCAB * 64 * 4
    return size
