"""Ranks that measure the largest steps together, each what it takes of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gpt_oss_server.engine.phases import Phases
from gpt_oss_server.engine.ranks.comms import Comms
from gpt_oss_server.engine.ranks.outfit import load
from gpt_oss_server.engine.ranks.rank import Expected, Rank
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.errors import StartupError
from rank_processes import stages, tensor_ranks
from storage_meter import StorageMeter
from tiny_models import build, saved

BUDGET = 64 << 20
HIDDEN = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(build("gpt_oss", vocab_size=3000), tmp_path_factory.mktemp("profiled"))


def _measured(comms: Comms, spec: EngineSpec) -> dict[str, Any]:
    """In a rank: what it found, and what it has left for KV."""
    torch.manual_seed(0)
    said: list[str] = []
    phases = Phases()
    tokens: list[int] = []
    compute = Rank.compute

    def counted(self: Rank, expected: Expected) -> Any:
        outcome = compute(self, expected)
        tokens.append(outcome[0].token_ids.numel())
        return outcome

    Rank.compute = counted  # type: ignore[method-assign]
    mine = load(spec, comms.place, comms, said.append, phases, lambda _: StorageMeter())
    assert mine.profile is not None
    return {
        "peak": mine.profile.step.allocated_bytes,
        "aside": mine.profile.set_aside_bytes,
        "budget": mine.budget_bytes,
        "weights": mine.part.loaded.weights_bytes,
        "told": mine.report().budget_bytes,
        "said": said,
        "phases": [phase.name for phase in phases.passed],
        "tokens": tokens,
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
    # Of a pipeline another step is in flight: its hidden states, and whether they are finite.
    more = 0 if mode == "tensor" else 128 * (HIDDEN + 1) * 4
    for rank in found:
        left = BUDGET - rank["weights"] - rank["aside"] - more
        assert rank["budget"] == rank["told"] == left
        assert "profiling the largest steps" in rank["said"]
        assert rank["aside"] >= rank["peak"] > 0
        assert rank["phases"] == ["load", "profile", "warm"]
        # Of every class of sizes by which kernels are compiled, that the limits allow.
        assert {16, 64, 1} <= set(rank["tokens"])
    leader, other = (found[0], found[1]) if mode == "tensor" else (found[1], found[0])
    assert leader["aside"] > other["aside"]
    # The logits of four sequences and what sampling makes of them.
    assert leader["aside"] > 4 * 3000 * 16


def _short(comms: Comms, spec: EngineSpec) -> str:
    """In a rank: how its start ends where the second one has no memory for the largest steps."""
    if comms.place.rank == 1:

        def refuse(self: Rank, expected: Expected) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate a lot")

        Rank.compute = refuse  # type: ignore[method-assign]
    try:
        load(spec, comms.place, comms, lambda _: None, None, lambda _: StorageMeter())
    except StartupError as error:
        return str(error)
    except RuntimeError:
        return "the other one is gone"
    return "loaded"


def test_a_rank_without_memory_for_them_says_what_to_lower(folder: str) -> None:
    """One line, as of a single process. (Nobody ends the other here, as a crew would: its exchange
    fails.)"""
    spec = EngineSpec(
        folder=folder,
        device="cpu",
        max_num_seqs=4,
        max_batch_tokens=128,
        max_model_len=128,
        memory_budget_bytes=2 * BUDGET,
        gpu_mode="tensor",
        gpus=2,
        threads=1,
    )
    lines = tensor_ranks(2, _short, spec)
    assert lines[1].startswith(
        "too little memory on cpu: a step of 128 tokens of 4 sequences does not fit beside the "
        "weights; lower --max-batch-tokens or --max-num-seqs (OutOfMemoryError at "
    )
    assert lines[0] == "the other one is gone"
