"""Ranks that measure the largest steps together, each what it takes of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gpt_oss_server.engine.ranks.comms import Comms
from gpt_oss_server.engine.ranks.outfit import load
from gpt_oss_server.engine.spec import EngineSpec
from rank_processes import stages, tensor_ranks
from storage_meter import StorageMeter
from tiny_models import build, saved

BUDGET = 64 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(build("gpt_oss", vocab_size=3000), tmp_path_factory.mktemp("profiled"))


def _measured(comms: Comms, spec: EngineSpec) -> dict[str, Any]:
    """In a rank: what it found, and what it has left for KV."""
    torch.manual_seed(0)
    said: list[str] = []
    mine = load(spec, comms.place, comms, said.append, None, lambda _: StorageMeter())
    assert mine.profile is not None
    return {
        "peak": mine.profile.step.allocated_bytes,
        "aside": mine.profile.set_aside_bytes,
        "budget": mine.budget_bytes,
        "weights": mine.part.loaded.weights_bytes,
        "told": mine.report().budget_bytes,
        "said": said,
    }


@pytest.mark.parametrize("mode", ["tensor", "pipeline"])
def test_each_rank_sets_aside_what_it_measured(folder: str, mode: str) -> None:
    """Both compute the same steps to their end. The leader, which samples, needs more than the
    other; each tells what it has left, and the least of that decides for all."""
    spec = EngineSpec(
        folder=folder,
        device="cpu",
        max_num_seqs=4,
        max_batch_tokens=128,
        max_model_len=128,
        memory_budget_bytes=2 * BUDGET,
        gpu_mode=mode,  # type: ignore[arg-type]
        gpus=2,
        threads=1,
    )
    found = (tensor_ranks if mode == "tensor" else stages)(2, _measured, spec)
    for rank in found:
        assert rank["budget"] == rank["told"] == BUDGET - rank["weights"] - rank["aside"]
        assert "profiling the largest steps" in rank["said"]
        assert rank["aside"] >= rank["peak"] > 0
    leader, other = (found[0], found[1]) if mode == "tensor" else (found[1], found[0])
    assert leader["aside"] > other["aside"]
    # The logits of four sequences and what sampling makes of them.
    assert leader["aside"] > 4 * 3000 * 16
