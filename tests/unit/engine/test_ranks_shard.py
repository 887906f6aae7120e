"""What a tensor-parallel rank keeps: parts that put together are the whole."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt_oss_server.engine.experts.stored import Mxfp4Experts
from gpt_oss_server.engine.kernels.gates import Gate
from gpt_oss_server.engine.ranks.shard import (
    BLANK,
    Cut,
    by_heads,
    by_kv_heads,
    by_vocabulary,
    even,
    expert_cuts,
    halves,
    mxfp4_cuts,
    pairs,
    shares,
)
from gpt_oss_server.errors import StartupError
from mxfp4_models import random_mxfp4


def numbered(*shape: int) -> torch.Tensor:
    """A tensor whose every element is another."""
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)


@given(tp=st.integers(1, 5), each=st.integers(1, 4), other=st.integers(1, 3), dim=st.integers(0, 2))
def test_even_parts_are_the_whole(tp: int, each: int, other: int, dim: int) -> None:
    """Concatenated by rank along the dimension; each of the shape that was promised."""
    shape = [other] * 3
    shape[dim] = tp * each
    whole = numbered(*shape)
    cuts = [even(tp * each, dim, rank, tp, "rows") for rank in range(tp)]
    parts = [cut.of(whole) for cut in cuts]
    assert torch.equal(torch.cat(parts, dim), whole)
    assert [cut.shape(whole.shape) for cut in cuts] == [tuple(part.shape) for part in parts]


@given(tp=st.integers(1, 4), each=st.integers(1, 3))
def test_gate_and_up_stay_together(tp: int, each: int) -> None:
    """A rank's share of gate is where its share of up is, in either order."""
    width = tp * each
    gate, up = numbered(width), -1 - numbered(width)
    stacked, mixed = torch.cat((gate, up)), torch.stack((gate, up), 1).flatten()
    for rank in range(tp):
        mine = slice(rank * each, (rank + 1) * each)
        part = halves(2 * width, 0, rank, tp, "columns").of(stacked)
        assert torch.equal(part, torch.cat((gate[mine], up[mine])))
        part = pairs(2 * width, 0, rank, tp, "columns").of(mixed)
        assert torch.equal(part, torch.stack((gate[mine], up[mine]), 1).flatten())


@given(
    heads=st.integers(1, 8), groups=st.integers(1, 4), dim=st.integers(1, 3), tp=st.integers(1, 16)
)
def test_queries_find_their_keys(heads: int, groups: int, dim: int, tp: int) -> None:
    """Every query head that a rank has attends, by its place among the local ones, with the key
    head that it attends with in the whole model."""
    queries = heads * groups
    if queries % tp or (heads % tp and tp % heads):
        return
    for rank in range(tp):
        q = by_heads(queries * dim, dim, rank, tp).of(numbered(queries * dim)) // dim
        k = by_kv_heads(heads * dim, dim, rank, tp).of(numbered(heads * dim)) // dim
        q_heads, k_heads = q[::dim].int().tolist(), k[::dim].int().tolist()
        assert k[::dim].repeat_interleave(dim).equal(k)  # no head is cut
        local = len(q_heads) // len(k_heads)
        for place, head in enumerate(q_heads):
            assert k_heads[place // local] == head // groups
        assert len(k_heads) == max(1, heads // tp)


@pytest.mark.parametrize(("heads", "tp"), [(8, 3), (8, 12), (6, 4)])
def test_key_heads_that_cannot_be_shared(heads: int, tp: int) -> None:
    """Neither a share nor a copy each: an error with the numbers."""
    with pytest.raises(StartupError, match=f"{heads} key heads .* over {tp} GPUs"):
        by_kv_heads(heads * 4, 4, 0, tp)
    with pytest.raises(StartupError, match="10 attention heads do not divide over 4 GPUs"):
        by_heads(40, 4, 0, 4)


@given(rows=st.integers(1, 40), tp=st.integers(1, 8))
def test_a_vocabulary_of_any_size(rows: int, tp: int) -> None:
    """Equal parts, zeros behind the last token, nothing lost."""
    whole = 1 + numbered(rows, 2)
    parts = [by_vocabulary(rows, rank, tp).of(whole) for rank in range(tp)]
    assert {len(part) for part in parts} == {-(-rows // tp)}
    together = torch.cat(parts)
    assert torch.equal(together[:rows], whole)
    assert not together[rows:].any()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("concatenated", [False, True])
def test_slices_of_experts_compute_their_share(transposed: bool, concatenated: bool) -> None:
    """The sum over ranks of what narrow experts return is what the whole ones do, bias and all."""
    torch.manual_seed(0)
    experts, hidden, width, tp = 3, 4, 6, 3
    shapes = {"gate_up_proj": (experts, 2 * width, hidden), "down_proj": (experts, hidden, width)}
    tensors = {name: torch.randn(shape).double() for name, shape in shapes.items()}
    if transposed:
        tensors = {name: tensor.transpose(1, 2) for name, tensor in tensors.items()}
    tensors["gate_up_proj_bias"] = torch.randn(experts, 2 * width).double()
    tensors["down_proj_bias"] = torch.randn(experts, hidden).double()
    x = torch.randn(5, hidden).double()

    def run(t: dict[str, torch.Tensor], expert: int) -> torch.Tensor:
        first, down = t["gate_up_proj"][expert], t["down_proj"][expert]
        first, down = (first.T, down.T) if transposed else (first, down)
        both = x @ first.T + t["gate_up_proj_bias"][expert]
        gate, up = both.chunk(2, -1) if concatenated else (both[:, ::2], both[:, 1::2])
        return (torch.sigmoid(gate) * up) @ down.T + t["down_proj_bias"][expert]

    ranks = []
    for rank in range(tp):
        cuts = expert_cuts(
            {name: tensor.shape for name, tensor in tensors.items()},
            transposed=transposed,
            concatenated=concatenated,
            split="width",
            tp_rank=rank,
            tp=tp,
        )
        ranks.append({name: cut.of(tensors[name]) for name, cut in cuts.items()})
    for expert in range(experts):
        total = torch.stack([run(part, expert) for part in ranks]).sum(0)
        torch.testing.assert_close(total, run(tensors, expert))
    numbers = sum(tensor.numel() for tensor in ranks[1].values())
    whole = sum(tensor.numel() for tensor in tensors.values())
    assert numbers == (whole - experts * hidden) // tp + experts * hidden


@given(tp=st.integers(1, 6), count=st.integers(1, 20), unit=st.integers(1, 3))
def test_shares_of_runs_that_are_not_cut(tp: int, count: int, unit: int) -> None:
    """As many on each rank, at most one run of zeros, all of the whole, in order."""
    if count < tp:
        return
    whole = 1 + numbered(count * unit)
    cuts = [shares(count, 0, rank, tp, unit) for rank in range(tp)]
    parts = [cut.of(whole) for cut in cuts]
    assert {len(part) for part in parts} == {-(-count // tp) * unit}
    assert all(cut.pad in (0, unit) for cut in cuts)
    assert torch.equal(torch.cat([part[part > 0] for part in parts]), whole)
    assert [cut.shape(whole.shape) for cut in cuts] == [tuple(part.shape) for part in parts]


@pytest.mark.parametrize("tp", [2, 3, 4, 5])
def test_slices_of_experts_in_four_bits(tp: int) -> None:
    """Cut as they are stored, then computed: the sum over ranks is what the whole ones give, also
    where five groups are no equal number for each; and no rank has more than another."""
    experts, hidden, width = 3, 64, 160
    tensors: dict[str, torch.Tensor] = {}
    for name, outputs, inputs in (
        ("gate_up_proj", 2 * width, hidden),
        ("down_proj", hidden, width),
    ):
        blocks, scales = random_mxfp4(experts, outputs, inputs, seed=len(tensors))
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        tensors[f"{name}_bias"] = torch.randn(experts, outputs)
    x, ids = torch.randn(5, hidden), torch.tensor([[0, 2], [1, 0], [2, 1], [0, 1], [2, 0]])
    weights = torch.rand(5, 2)

    def computed(held: dict[str, torch.Tensor]) -> torch.Tensor:
        local = held["down_proj_scales"].shape[2] * 32
        module = Mxfp4Experts(experts, hidden, local, Gate("swiglu"), torch.float32)
        for name, tensor in held.items():
            setattr(module, name, torch.nn.Parameter(tensor.contiguous(), requires_grad=False))
        return module(x, ids, weights)

    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    parts = []
    for rank in range(tp):
        cuts = mxfp4_cuts(shapes, split="width", tp_rank=rank, tp=tp)
        parts.append({name: cut.of(tensors[name]) for name, cut in cuts.items()})
    total = torch.stack([computed(part) for part in parts]).sum(0)
    torch.testing.assert_close(total, computed(tensors), atol=1e-4, rtol=1e-4)
    sizes = [{name: tensor.shape for name, tensor in part.items()} for part in parts]
    assert all(size == sizes[0] for size in sizes)


def test_fewer_groups_than_ranks() -> None:
    """One line with the numbers, and a way out."""
    shapes = {"down_proj_scales": (4, 64, 2), "down_proj_bias": (4, 64)}
    with pytest.raises(StartupError, match=r"2 groups of 32 .* over 3 GPUs: use --experts transf"):
        mxfp4_cuts(shapes, split="width", tp_rank=0, tp=3)


def test_whole_experts() -> None:
    """By count a rank has every tensor of some of the experts."""
    cuts = expert_cuts(
        {"up_proj": (4, 8, 3), "down_proj": (4, 3, 8)},
        transposed=False,
        concatenated=True,
        split="count",
        tp_rank=1,
        tp=2,
    )
    assert cuts == dict.fromkeys(("up_proj", "down_proj"), Cut(0, ((2, 4),)))


def test_zeros_in_place_of_what_another_rank_adds() -> None:
    """As large as the whole, and nothing in it."""
    assert BLANK.shape((2, 3)) == (2, 3)
    assert torch.equal(BLANK.of(numbered(2, 3)), torch.zeros(2, 3))
