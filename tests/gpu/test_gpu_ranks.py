"""One GPU on the paths of several: NCCL with a world of one rank, and mode auto."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine_runs import cpu_core, job, run
from gpt_oss_server.engine.core import EngineCore
from gpt_oss_server.engine.ranks.comms import Comms, open_store
from gpt_oss_server.engine.ranks.place import Place
from rank_engine import run_over_ranks, spec_for
from tiny_models import build, saved

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GPU = torch.device("cuda", 0)
ON_GPU: dict[str, Any] = {"device": "cuda", "dtype": "float32"}
JOBS = {key: job([7, 3, key, 19] * (3 * key + 1), max_tokens=16) for key in range(6)}


@pytest.fixture
def comms() -> Iterator[Comms]:
    """An NCCL group of this process alone."""
    opened = Comms.open(Place(), GPU, open_store(60.0), 60.0)
    yield opened
    opened.close()


@pytest.fixture(params=["gpt_oss", "llama"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return saved(build(request.param), tmp_path)


def expected(folder: str) -> dict[int, list[int]]:
    """What the engine says on one GPU in single mode."""
    return {key: one.tokens for key, one in run(cpu_core(folder, **ON_GPU), JOBS).items()}


def test_nccl_sums_and_gathers(comms: Comms) -> None:
    """A sum over one rank changes nothing, a gather has one part, and both are counted."""
    x = torch.randn(1000, device=GPU)
    before, entered = x.clone(), comms.entered
    assert torch.equal(comms.all_reduce(x), before)
    (part,) = comms.gather_to_leader(x) or []
    torch.cuda.synchronize()
    assert torch.equal(part, before)
    assert comms.entered == entered + 2


def test_a_tensor_rank_on_nccl(folder: str, comms: Comms) -> None:
    """Cutting, reading slices onto the GPU and the sums between, with one rank of one."""
    spec = spec_for(folder, gpu_mode="tensor", gpus=1, **ON_GPU)
    tokens, held = run_over_ranks(comms, spec, JOBS)
    assert tokens == expected(folder)
    assert "reading this rank's part of the weights" in held["progress"]
    assert comms.entered > len(JOBS)


def test_auto_on_one_gpu_is_single_mode(folder: str) -> None:
    """Everything fits on it, so everything is there, without hooks."""
    core = EngineCore(spec_for(folder, gpu_mode="auto", **ON_GPU))
    assert {key: one.tokens for key, one in run(core, JOBS).items()} == expected(folder)
    assert core.info().device == "cuda:0"


def test_auto_with_layers_offloaded_to_the_host(folder: str) -> None:
    """Weights on the host, KV and work on the GPU; the cost is said."""
    layers = {f"model.layers.{index}": "cpu" if index % 2 else "0" for index in range(4)}
    given = {"model.embed_tokens": "0", "model.norm": "0", "model.rotary_emb": "0", "lm_head": "0"}
    said: list[str] = []
    spec = spec_for(folder, gpu_mode="auto", device_map={**given, **layers}, **ON_GPU)
    core = EngineCore(spec, said.append)
    assert {key: one.tokens for key, one in run(core, JOBS).items()} == expected(folder)
    assert [line for line in said if "offloaded to cpu and cross to cuda:0" in line]
    rank, host = core.info().ranks
    assert (rank.device, rank.layers, host.device, host.layers) == ("cuda:0", 4, "cpu", 0)
    single = EngineCore(spec_for(folder, **ON_GPU)).info()
    assert rank.weights_bytes + host.weights_bytes == single.weights_bytes
    assert rank.kv_bytes == sum(g.num_blocks * g.block_bytes for g in core.info().kv_groups)
