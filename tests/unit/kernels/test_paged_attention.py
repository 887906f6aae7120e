"""What the contract of attention backends leaves open for the kernels: real head sizes, exact
ends of blocks and tiles, other orders of memory, replay with other lengths, unwritten scratch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from attention_cases import Case, Problem, dense_answer, lay_out
from gpt_oss_server.engine.attention.interface import LayerKv
from gpt_oss_server.engine.kernels.paged_tuning import DecodeTuning, PrefillTuning
from gpt_oss_server.engine.step import HostLayout
from kernel_device import DEVICE

pytest.importorskip("triton")

from gpt_oss_server.engine.attention.triton import TritonBackend

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
SMALL = TritonBackend(
    DecodeTuning(16, 16, items_per_multiprocessor=8, warps=4, stages=2),
    PrefillTuning(32, 16, 16, items_per_multiprocessor=8, warps=4, stages=2),
)
AS_SERVED = TritonBackend()


def attend(backend: TritonBackend, problem: Problem) -> torch.Tensor:
    return backend.plan(problem.step).attend(
        problem.layer,
        problem.query,
        scale=problem.scale,
        sinks=problem.sinks,
        softcap=problem.case.softcap,
    )


def check(backend: TritonBackend, problem: Problem) -> None:
    tolerance = TOLERANCE[problem.case.dtype]
    torch.testing.assert_close(
        attend(backend, problem).double().cpu(),
        dense_answer(problem),
        atol=tolerance,
        rtol=tolerance,
    )


@pytest.fixture
def nan_in_new_memory() -> Iterator[None]:
    """Memory that was allocated and not written holds NaN, as it may on a GPU."""
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill


GPT_OSS = Case(
    seqs=((150, 1), (0, 20), (15, 1), (31, 17)),
    heads=16,
    kv_heads=2,
    k_dim=64,
    v_dim=64,
    sinks=True,
    block_size=16,
)
SIZES = {
    "gpt-oss, bfloat16": replace(GPT_OSS, dtype=torch.bfloat16),
    "gpt-oss, bfloat16, window": replace(GPT_OSS, dtype=torch.bfloat16, window=128),
    "gpt-oss, float16": replace(GPT_OSS, dtype=torch.float16, window=20),
    "96, float32": replace(GPT_OSS, heads=4, k_dim=96, v_dim=96),
    "128, bfloat16": replace(GPT_OSS, heads=4, k_dim=128, v_dim=128, dtype=torch.bfloat16),
    "192 and 128": replace(GPT_OSS, heads=2, k_dim=192, v_dim=128, softcap=5.0),
    "five heads to one": replace(GPT_OSS, heads=5, kv_heads=1),
    "twenty heads to one": replace(GPT_OSS, heads=20, kv_heads=1, seqs=((40, 1), (3, 9))),
}


@pytest.mark.usefixtures("nan_in_new_memory")
@pytest.mark.parametrize("backend", [AS_SERVED, SMALL], ids=["as served", "in many parts"])
@pytest.mark.parametrize("name", SIZES)
def test_head_sizes_and_types(name: str, backend: TritonBackend) -> None:
    """Real geometries, whole and in many parts; memory that no kernel wrote is never read."""
    check(backend, lay_out(SIZES[name], DEVICE))


ENDS = {
    "ends at a block": ((15, 1), (31, 1), (0, 16), (0, 32), (16, 16)),
    "one past a block": ((16, 1), (32, 1), (0, 17), (16, 17)),
    "ends at a tile": ((63, 1), (127, 1), (64, 64)),
    "chunks of one prompt": ((0, 48), (48, 48), (96, 4)),
    "empty prefix": ((0, 1), (0, 2), (0, 3)),
}


@pytest.mark.parametrize("window", [None, 16, 17])
@pytest.mark.parametrize("name", ENDS)
def test_ends_of_blocks_tiles_and_chunks(name: str, window: int | None) -> None:
    """Lengths and windows that end exactly where a block or tile does, and one beside it."""
    case = Case(
        seqs=ENDS[name], block_size=16, window=window, sinks=True, k_dim=16, v_dim=16, kv_heads=1
    )
    check(SMALL, lay_out(case, DEVICE))


def test_pools_and_queries_in_another_order_of_memory() -> None:
    """Heads outside slots in the pools, and queries that are [heads, tokens] in memory."""
    problem = lay_out(replace(GPT_OSS, window=30), DEVICE)

    def heads_first(pool: torch.Tensor) -> torch.Tensor:
        return pool.transpose(1, 2).contiguous().transpose(1, 2)

    layer = problem.layer
    problem.layer = LayerKv(0, layer.window, heads_first(layer.keys), heads_first(layer.values))
    problem.query = problem.query.transpose(0, 1).contiguous().transpose(0, 1)
    assert not problem.query.is_contiguous()
    check(SMALL, problem)


def test_a_last_dimension_with_gaps_is_copied_first() -> None:
    """Kernels read rows; a query whose numbers are not side by side is still right."""
    problem = lay_out(Case(), DEVICE)
    wide = torch.zeros(*problem.query.shape, 2, device=DEVICE)
    wide[..., 0] = problem.query
    problem.query = wide[..., 0]
    assert problem.query.stride(-1) == 2
    check(SMALL, problem)


@pytest.mark.parametrize("window", [None, 20])
def test_only_the_device_knows_lengths_and_tables(window: int | None) -> None:
    """A decode step planned by a host that knows other lengths and no tables, as in a captured
    graph, attends what the device's tensors say."""
    seqs = ((150, 1), (3, 1), (64, 1))
    problem = lay_out(replace(GPT_OSS, seqs=seqs, window=window), DEVICE)
    expected = dense_answer(problem)
    host = HostLayout(problem.step.host.query_start, np.ones(3, dtype=np.int64), ())
    problem.step = replace(problem.step, host=host)
    got = attend(SMALL, problem)
    torch.testing.assert_close(got.double().cpu(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("nan_in_new_memory")
@pytest.mark.parametrize("window", [None, 20])
def test_rows_of_a_graph_without_a_sequence_are_zero(window: int | None) -> None:
    """Padding rows (length 0) read no table and give zeros; the others are unchanged."""
    problem = lay_out(replace(GPT_OSS, seqs=((150, 1), (9, 1)), window=window), DEVICE)
    expected = dense_answer(problem)
    step = problem.step
    more = torch.full((2, step.tables[0].shape[1]), 1 << 20, dtype=torch.int32, device=DEVICE)
    problem.step = replace(
        step,
        query_start=torch.arange(5, dtype=torch.int32, device=DEVICE),
        seq_lens=torch.cat([step.seq_lens, torch.zeros_like(step.seq_lens)]),
        tables=(torch.cat([step.tables[0], more]),),
        host=HostLayout(np.arange(5), np.ones(4, dtype=np.int64), ()),
    )
    problem.query = torch.cat([problem.query, torch.full_like(problem.query, 3.0)])
    got = attend(SMALL, problem)
    torch.testing.assert_close(got[:2].double().cpu(), expected, atol=1e-5, rtol=1e-5)
    assert not got[2:].any()
