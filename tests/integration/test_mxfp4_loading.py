"""Loading MXFP4 streams: besides the weights that stay, no more than one tensor is in memory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

import kernel_device
from gpt_oss_server.engine.experts.loading import load_as_stored
from gpt_oss_server.engine.loader import load_model, read_config
from gpt_oss_server.engine.ranks.comms import Comms
from gpt_oss_server.engine.ranks.loading import load_part
from gpt_oss_server.engine.spec import EngineSpec
from mxfp4_models import saved_mxfp4
from rank_engine import spec_for
from rank_processes import stages, tensor_ranks
from storage_meter import PeakBytes

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

SIZES = {"hidden_size": 256, "intermediate_size": 480, "num_local_experts": 16}
"""Nine tenths are experts, as in the published models; 15 groups, which two ranks cannot halve."""
# Rotary tables, progress and such.
SMALL_BYTES = 64 << 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> str:
    return saved_mxfp4(tmp_path_factory.mktemp("mxfp4"), **SIZES)


def bytes_of(tensors: Iterable[torch.Tensor]) -> list[int]:
    return [tensor.numel() * tensor.element_size() for tensor in tensors]


def held_by(model: Any) -> int:
    """Parameters and buffers."""
    return sum(bytes_of([*model.parameters(), *model.buffers()]))


def largest_of(model: Any) -> int:
    """Of its parameters."""
    return max(bytes_of(model.parameters()))


def test_one_process_reads_tensor_by_tensor(folder: str) -> None:
    """As bfloat16: the model, and on the way at most one tensor as the file has it."""
    spec = EngineSpec(folder=folder, device="cpu", experts="torch", dtype="bfloat16")
    with PeakBytes() as measured:
        loaded = load_model(spec, lambda _: None)
    assert held_by(loaded.model) == loaded.weights_bytes
    assert loaded.weights_bytes <= measured.peak
    assert measured.peak <= loaded.weights_bytes + largest_of(loaded.model) + SMALL_BYTES


def _part(comms: Comms, spec: EngineSpec) -> tuple[int, int, int, list[str]]:
    """What a rank held at most while it loaded its part, that part, its largest tensor."""
    said: list[str] = []
    with PeakBytes() as measured:
        model = load_part(spec, comms.place, comms, said.append).loaded.model
    return measured.peak, held_by(model), largest_of(model), said


@pytest.mark.parametrize("mode", ["tensor", "pipeline"])
def test_a_rank_reads_its_part_tensor_by_tensor(folder: str, mode: str) -> None:
    """Never the whole model, nor its part twice; and says how far it is."""
    whole = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    spec = spec_for(folder, gpu_mode=mode, gpus=2, experts="torch", dtype="bfloat16")
    for peak, part, largest, said in (tensor_ranks if mode == "tensor" else stages)(2, _part, spec):
        assert part < 0.6 * whole
        # As the file has it a tensor is as large as both ranks' parts of it.
        assert part <= peak <= part + 2 * largest + SMALL_BYTES < whole
        shares = [int(line.split()[-2]) for line in said if line.startswith("loading weights: ")]
        assert len(shares) > 3
        assert shares == sorted(set(shares))
        assert shares[-1] == 100


@pytest.mark.skipif(not kernel_device.HAVE_TRITON, reason="needs Triton")
def test_rewriting_takes_the_space_of_one_expert(folder: str) -> None:
    """For kernels, expert by expert in place: some tens of bytes for each of its numbers."""
    from gpt_oss_server.engine.experts.replace import use_kernels

    spec = EngineSpec(folder=folder, device="cpu", experts="torch")
    config, cpu = read_config(Path(folder)), torch.device("cpu")
    model = load_as_stored(spec, config, torch.bfloat16, cpu, lambda _: None)
    before = held_by(model)
    with PeakBytes(model.parameters()) as measured:
        assert use_kernels(model) == 4
    assert held_by(model) == before
    numbers = 2 * SIZES["intermediate_size"] * SIZES["hidden_size"]
    assert 0 < measured.peak < 32 * numbers < before
