"""What every attention backend computes, against a dense computation in float64.

Triton's kernels run in its interpreter here. Add a backend by adding its maker to `BACKENDS`.
`tests/gpu` runs the same table on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_cases import LARGE, Case, Problem, dense_answer, lay_out
from gpt_oss_server.engine.attention import tiled
from gpt_oss_server.engine.attention.interface import (
    AttentionBackend,
    LayerKv,
    StepContext,
    paged_attention,
    write_kv,
)
from gpt_oss_server.engine.attention.reference import ReferenceBackend
from gpt_oss_server.engine.attention.tiled import TiledBackend
from gpt_oss_server.engine.kernels.paged_tuning import DecodeTuning, PrefillTuning
from kernel_device import HAVE_TRITON

pytestmark = pytest.mark.usefixtures("one_thread")

MakeBackend = Callable[[int], AttentionBackend]


def triton_backend(block_size: int, small: bool = False) -> AttentionBackend:
    """Interpreted: every tensor here is on the CPU. `small` as for `small_tiles`."""
    from gpt_oss_server.engine.attention.triton import TritonBackend
    from gpt_oss_server.engine.kernels.usable import interpreted

    if not interpreted():
        pytest.skip("on a GPU machine the kernels are compiled: tests/gpu runs this table there")
    if not small:
        return TritonBackend()
    return TritonBackend(
        DecodeTuning(8, 8, items_per_multiprocessor=16, warps=4, stages=2),
        PrefillTuning(16, 8, 8, items_per_multiprocessor=16, warps=4, stages=2),
    )


BACKENDS: dict[str, MakeBackend] = {
    "reference": lambda block_size: ReferenceBackend(),
    "tiled": TiledBackend,
}
if HAVE_TRITON:
    BACKENDS["triton"] = triton_backend
# An interpreted kernel takes a tenth of a second.
EXAMPLES = {"reference": 40, "tiled": 40, "triton": 12}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}

MIXED = ((0, 5), (9, 1), (3, 4), (16, 1), (0, 1), (7, 9))
CASES = {
    "one token": Case(seqs=((0, 1),)),
    "mixed": Case(seqs=MIXED),
    "decode only": Case(seqs=((9, 1), (16, 1), (0, 1), (3, 1))),
    "decode beside a prefill": Case(seqs=((30, 1), (0, 33), (2, 1))),
    "chunk after a long prefix": Case(seqs=((61, 6),)),
    "multi-head": Case(seqs=MIXED, heads=3, kv_heads=3),
    "multi-query": Case(seqs=MIXED, heads=6, kv_heads=1),
    "sinks": Case(seqs=MIXED, sinks=True),
    "window": Case(seqs=MIXED, window=5),
    "window of one": Case(seqs=MIXED, window=1),
    "window of a block": Case(seqs=MIXED, window=4),
    "window wider than all": Case(seqs=MIXED, window=100),
    "window, long": Case(seqs=((70, 1), (40, 20), (0, 50)), window=11, sinks=True),
    "softcap": Case(seqs=MIXED, softcap=2.0),
    "softcap, window": Case(seqs=MIXED, softcap=2.0, window=6, sinks=True),
    "wider keys": Case(seqs=MIXED, k_dim=12, v_dim=8),
    "wider values": Case(seqs=MIXED, k_dim=6, v_dim=10, window=5, sinks=True),
    "one-token blocks": Case(seqs=MIXED, block_size=1, window=3),
    "large blocks": Case(seqs=MIXED, block_size=64),
    "bfloat16": Case(seqs=MIXED, dtype=torch.bfloat16, sinks=True),
    "bfloat16, window, softcap": Case(
        seqs=MIXED, dtype=torch.bfloat16, window=6, softcap=3.0, k_dim=16, v_dim=8
    ),
}


@pytest.fixture(params=BACKENDS)
def make_backend(request: pytest.FixtureRequest) -> MakeBackend:
    """Looked up when called: `shrink` may have changed it by then."""
    return lambda block_size: BACKENDS[cast("str", request.param)](block_size)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles, partitions and waves so small that a few dozen tokens need many of each."""
    shrink(monkeypatch)


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled, "PREFILL_TILE", 4)
    monkeypatch.setattr(tiled, "PREFILL_PARTITION_TOKENS", 8)
    monkeypatch.setattr(tiled, "DECODE_PARTITION_TOKENS", 12)
    monkeypatch.setattr(tiled, "WAVE_TOKENS", 24)
    if HAVE_TRITON:
        monkeypatch.setitem(BACKENDS, "triton", lambda block_size: triton_backend(block_size, True))


def attend(make_backend: MakeBackend, problem: Problem) -> torch.Tensor:
    plan = make_backend(problem.case.block_size).plan(problem.step)
    with torch.inference_mode():
        return plan.attend(
            problem.layer,
            problem.query,
            scale=problem.scale,
            sinks=problem.sinks,
            softcap=problem.case.softcap,
        )


def check(make_backend: MakeBackend, case: Case) -> None:
    problem = lay_out(case)
    got = attend(make_backend, problem)
    assert got.dtype == case.dtype
    tolerance = TOLERANCE[case.dtype]
    torch.testing.assert_close(got.double(), dense_answer(problem), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_equals_dense_attention(make_backend: MakeBackend, name: str) -> None:
    """Each case of the table, with the sizes that are used in service."""
    check(make_backend, CASES[name])


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("name", CASES)
def test_equals_dense_attention_in_many_parts(make_backend: MakeBackend, name: str) -> None:
    """Each case cut into many tiles, partitions and waves."""
    check(make_backend, CASES[name])


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kv_heads = draw(st.sampled_from([1, 2]))
    return Case(
        seqs=tuple(
            draw(
                st.lists(
                    st.tuples(st.integers(0, 40), st.sampled_from([1, 1, 2, 5, 17])),
                    min_size=1,
                    max_size=5,
                )
            )
        ),
        heads=kv_heads * draw(st.sampled_from([1, 2, 3])),
        kv_heads=kv_heads,
        k_dim=draw(st.sampled_from([4, 8])),
        v_dim=draw(st.sampled_from([4, 8])),
        window=draw(st.none() | st.integers(1, 30)),
        softcap=draw(st.sampled_from([None, 2.0])),
        sinks=draw(st.booleans()),
        block_size=draw(st.sampled_from([1, 2, 4, 16])),
        seed=draw(st.integers(0, 5)),
    )


@pytest.mark.parametrize("small", [False, True], ids=["as served", "in many parts"])
@pytest.mark.parametrize("name", BACKENDS)
def test_equals_dense_attention_on_anything(name: str, small: bool) -> None:
    """Any batch, geometry and window."""

    @settings(max_examples=EXAMPLES[name], deadline=None)
    @given(cases())
    def holds(case: Case) -> None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            if small:
                shrink(monkeypatch)
            check(BACKENDS[name], case)

    holds()


@pytest.mark.parametrize("small", [False, True], ids=["as served", "in many parts"])
def test_a_sequence_does_not_depend_on_its_batch(
    make_backend: MakeBackend, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone or beside others, a sequence's attention is the same up to rounding."""
    if small:
        shrink(monkeypatch)
    together = lay_out(Case(seqs=MIXED, window=7, sinks=True))
    got = attend(make_backend, together)
    for row, seq in enumerate(MIXED):
        one = lay_out(Case(seqs=(seq,), window=7, sinks=True))
        one.query.copy_(together.query[together.rows(row)])
        assert one.sinks is not None
        assert together.sinks is not None
        one.sinks.copy_(together.sinks)
        slots = range(seq[0] + seq[1])
        held = [at for at in slots if at >= max(0, seq[0] - 6)]
        table = one.step.host.tables[0][0]
        for at in held:
            block, offset = int(table[at // 4]), at % 4
            one.layer.keys[block, offset] = together.keys[row][at]
            one.layer.values[block, offset] = together.values[row][at]
        torch.testing.assert_close(
            attend(make_backend, one), got[together.rows(row)], atol=1e-5, rtol=1e-5
        )


def test_one_plan_serves_layers_of_every_group(make_backend: MakeBackend) -> None:
    """Layers of full and sliding groups with different tables take turns on one plan."""
    full = lay_out(Case(seqs=MIXED))
    sliding = lay_out(Case(seqs=MIXED, window=5, seed=1))
    host = full.step.host
    tables = (host.tables[0], sliding.step.host.tables[0])
    step = type(full.step)(
        token_ids=full.step.token_ids,
        positions=full.step.positions,
        slots=(full.step.slots[0], sliding.step.slots[0]),
        sample_rows=full.step.sample_rows,
        query_start=full.step.query_start,
        seq_lens=full.step.seq_lens,
        tables=(full.step.tables[0], sliding.step.tables[0]),
        host=type(host)(host.query_start, host.seq_lens, tables),
    )
    plan = make_backend(4).plan(step)
    layers = [
        (full.layer, full),
        (LayerKv(1, 5, sliding.layer.keys, sliding.layer.values), sliding),
    ]
    for layer, problem in layers * 2:
        got = plan.attend(
            layer, problem.query, scale=problem.scale, sinks=problem.sinks, softcap=None
        )
        torch.testing.assert_close(got.double(), dense_answer(problem), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")  # numpy's, interpreted
@pytest.mark.parametrize("window", [None, 6])
def test_nan_of_one_sequence_reaches_no_other(
    make_backend: MakeBackend, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sequence whose query, keys and values are NaN leaves the others' results bit for bit."""
    shrink(monkeypatch)
    clean = lay_out(Case(seqs=MIXED, window=window, sinks=True))
    expected = attend(make_backend, clean)
    sick = lay_out(Case(seqs=MIXED, window=window, sinks=True))
    for ill in (0, 3):
        rows = sick.rows(ill)
        sick.query[rows] = float("nan")
        nan = torch.full((rows.stop - rows.start, 2, 8), float("nan"))
        write_kv(sick.layer, sick.step.slots[0][rows], nan, nan)
    got = attend(make_backend, sick)
    for row in range(len(MIXED)):
        healthy = row not in (0, 3)
        assert bool(torch.isfinite(got[sick.rows(row)]).all()) == healthy
        if healthy:
            assert torch.equal(got[sick.rows(row)], expected[sick.rows(row)])


def test_written_nan_stays_out_of_reused_blocks(make_backend: MakeBackend) -> None:
    """Blocks that held a failed sequence's NaN and inf are safe under the next one's mask."""
    problem = lay_out(Case(seqs=((0, 5), (9, 1)), window=6))
    layer = problem.layer
    before = layer.keys.clone(), layer.values.clone()
    every = torch.arange(layer.keys.shape[0] * layer.keys.shape[1])
    for bad in (float("nan"), float("inf"), float("-inf")):
        write_kv(layer, every, *(torch.full((len(every), 2, 8), bad) for _ in range(2)))
        assert not layer.keys.any()
        assert not layer.values.any()
    for pool, old in zip((layer.keys, layer.values), before, strict=True):
        written = old != LARGE
        pool[written] = old[written]
    got = attend(make_backend, problem)
    torch.testing.assert_close(got.double(), dense_answer(problem), atol=1e-5, rtol=1e-5)


def context(problem: Problem, backend: AttentionBackend) -> StepContext:
    """What the runner hands through `model.forward`."""
    written = torch.zeros(len(problem.query))
    return StepContext([problem.layer], problem.step, backend.plan(problem.step), written)


class Attention(torch.nn.Module):
    """What transformers hands over as `module`."""

    def __init__(self, layer_idx: int | None) -> None:
        super().__init__()
        self.layer_idx = layer_idx


def test_the_registered_function_writes_then_attends(make_backend: MakeBackend) -> None:
    """transformers' entry point stores this step's keys and values before it attends, with the
    default scale, and returns [1, T, heads, v_dim]."""
    problem = lay_out(Case(seqs=MIXED, sinks=True))
    step = problem.step
    flat = [pool.flatten(0, 1) for pool in (problem.layer.keys, problem.layer.values)]
    new_keys, new_values = (pool[step.slots[0]].transpose(0, 1).unsqueeze(0) for pool in flat)
    for pool in flat:
        pool[step.slots[0]] = LARGE
    out, weights = paged_attention(
        Attention(0),
        problem.query.transpose(0, 1).unsqueeze(0),
        new_keys.clone(),
        new_values.clone(),
        None,
        s_aux=problem.sinks,
        step_context=context(problem, make_backend(4)),
    )
    assert weights is None
    assert out.shape == (1, *problem.query.shape)
    torch.testing.assert_close(out[0].double(), dense_answer(problem), atol=1e-5, rtol=1e-5)


def test_attention_outside_a_step_is_refused() -> None:
    """Calling the model without a step, or from a module without a layer, is a clear error."""
    tensor = torch.zeros(1, 2, 1, 8)
    with pytest.raises(RuntimeError, match="outside an engine step"):
        paged_attention(Attention(0), tensor, tensor, tensor, None)
    problem = lay_out(Case(seqs=((0, 1),)))
    step_context = context(problem, ReferenceBackend())
    with pytest.raises(RuntimeError, match="no layer index"):
        paged_attention(Attention(None), tensor, tensor, tensor, None, step_context=step_context)


def test_a_tensor_on_the_wrong_device_is_refused() -> None:
    """An input on another device than the pool stops before any kernel runs."""
    problem = lay_out(Case(seqs=((0, 1),)))
    step_context = context(problem, ReferenceBackend())
    elsewhere = torch.zeros(1, 2, 1, 8, device="meta")
    with pytest.raises(RuntimeError, match="layer 0: input is on meta, its KV pool on cpu"):
        paged_attention(
            Attention(0), elsewhere, elsewhere, elsewhere, None, step_context=step_context
        )
