"""The attention kernels compiled, on a CUDA device: the table, real sizes, captured graphs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from attention_cases import Case, Problem, dense_answer, lay_out
from gpt_oss_server.engine.step import HostLayout

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}
MIXED = ((0, 5), (9, 1), (3, 4), (16, 1), (0, 1), (7, 9), (120, 1), (90, 70), (700, 1), (200, 33))
SMALL = Case(seqs=MIXED)
GPT_OSS = Case(seqs=MIXED, heads=16, kv_heads=2, k_dim=64, v_dim=64, sinks=True, block_size=16)
BF16, FP16 = torch.bfloat16, torch.float16
CASES = {
    "mixed": SMALL,
    "decode only": replace(SMALL, seqs=((9, 1), (16, 1), (0, 1), (900, 1))),
    "sinks": replace(SMALL, sinks=True),
    "window": replace(SMALL, window=5, sinks=True),
    "softcap": replace(SMALL, softcap=2.0, window=11),
    "wider keys": replace(SMALL, k_dim=12, v_dim=8),
    "multi-head": replace(SMALL, heads=3, kv_heads=3),
    "multi-query": replace(SMALL, heads=6, kv_heads=1),
    "one-token blocks": replace(SMALL, block_size=1, window=3),
    "gpt-oss, float32": GPT_OSS,
    "gpt-oss, bfloat16": replace(GPT_OSS, dtype=BF16),
    "gpt-oss, bfloat16, window": replace(GPT_OSS, dtype=BF16, window=128),
    "gpt-oss, float16": replace(GPT_OSS, dtype=FP16),
    "96, bfloat16": replace(GPT_OSS, dtype=BF16, k_dim=96, v_dim=96),
    "128, bfloat16": replace(GPT_OSS, dtype=BF16, k_dim=128, v_dim=128),
    "128, float16, window, softcap": replace(
        GPT_OSS, dtype=FP16, k_dim=128, v_dim=128, window=100, softcap=5.0
    ),
    "256, bfloat16": replace(GPT_OSS, dtype=BF16, heads=4, k_dim=256, v_dim=256),
    "192 and 128, bfloat16": replace(GPT_OSS, dtype=BF16, heads=4, k_dim=192, v_dim=128),
}


def attend(problem: Problem, small: bool = False) -> torch.Tensor:
    from gpt_oss_server.engine.attention.triton import TritonBackend
    from gpt_oss_server.engine.kernels.paged_tuning import DecodeTuning, PrefillTuning

    backend = TritonBackend()
    if small:
        backend = TritonBackend(
            DecodeTuning(16, 16, 8, warps=4, stages=2), PrefillTuning(32, 16, 16, 8, 4, 2)
        )
    with torch.inference_mode():
        return backend.plan(problem.step).attend(
            problem.layer,
            problem.query,
            scale=problem.scale,
            sinks=problem.sinks,
            softcap=problem.case.softcap,
        )


def check(got: torch.Tensor, problem: Problem) -> None:
    tolerance = TOLERANCE[problem.case.dtype]
    torch.testing.assert_close(
        got.double().cpu(), dense_answer(problem), atol=tolerance, rtol=tolerance
    )


@pytest.mark.parametrize("small", [False, True], ids=["as served", "in many parts"])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_dense_answer(name: str, small: bool) -> None:
    """Every case, with the tiles that are served and with many small parts."""
    problem = lay_out(CASES[name], "cuda")
    check(attend(problem, small), problem)


def test_the_same_inputs_give_the_same_bits() -> None:
    """Twenty runs of a step that is split and merged: no race, no order of arrival."""
    problem = lay_out(replace(GPT_OSS, dtype=BF16), "cuda")
    first = attend(problem)
    for _ in range(20):
        assert torch.equal(attend(problem), first)


@pytest.mark.parametrize("window", [None, 20])
def test_a_captured_step_is_replayed_with_other_lengths(window: int | None) -> None:
    """Captured on four sequences of one length; replayed for others, one row of them padding."""
    seqs = ((150, 1), (3, 1), (64, 1))
    problem = lay_out(replace(GPT_OSS, seqs=seqs, window=window, dtype=BF16), "cuda")
    step, device = problem.step, problem.query.device
    columns = step.tables[0].shape[1]
    lens = torch.ones(4, dtype=torch.int32, device=device)
    table = torch.zeros(4, columns, dtype=torch.int32, device=device)
    query = torch.zeros(4, *problem.query.shape[1:], dtype=BF16, device=device)
    problem.step = replace(
        step,
        query_start=torch.arange(5, dtype=torch.int32, device=device),
        seq_lens=lens,
        tables=(table,),
        host=HostLayout(np.arange(5), np.ones(4, dtype=np.int64), ()),
    )
    wanted = dense_answer(problem)
    real, problem.query = problem.query, query
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        attend(problem, small=True)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attend(problem, small=True)
    lens.copy_(torch.tensor([151, 4, 65, 0]))
    table[:3].copy_(step.tables[0])
    table[3] = 1 << 20
    query[:3].copy_(real)
    with torch.inference_mode():  # as it was made: elsewhere it may not be written to
        out.fill_(float("nan"))
    graph.replay()
    torch.testing.assert_close(out[:3].double().cpu(), wanted, atol=3e-2, rtol=3e-2)
    assert not out[3].any()
