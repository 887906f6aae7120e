"""Parameter counts and weight bytes against real models and published figures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from memory_tiny_models import TINY, build

from gpt_oss_server.memory.errors import ImpossibleSplit, ShapeUnknown
from gpt_oss_server.memory.weight_parts import Matrix, WeightPart
from gpt_oss_server.memory.weight_rules import RULES
from gpt_oss_server.memory.weights import weights_of

GIB = 2**30
MXFP4 = {"quantization_config": {"quant_method": "mxfp4"}}


def gpt_oss(layers: int, experts: int, **more: Any) -> dict[str, Any]:
    """A config.json of gpt-oss, only what its two sizes differ in."""
    sizes = {"num_hidden_layers": layers, "num_local_experts": experts}
    return {"model_type": "gpt_oss", "dtype": "bfloat16", **sizes, **more}


@pytest.mark.parametrize("name", TINY)
def test_parameters_equal_the_real_model(name: str) -> None:
    """Counted parameters are those of the real model, or a stated estimate above them."""
    model = build(name)
    real = sum(parameter.numel() for parameter in model.parameters())
    weights = weights_of(TINY[name] | {"dtype": "float32"})
    if TINY[name]["model_type"] in RULES:
        assert weights.params == real
        assert weights.total_bytes == 4 * real
        assert weights.exact
    else:
        assert real <= weights.params < 2 * real
        assert not weights.exact
        assert "not a bound" in weights.warnings[0]


@pytest.mark.parametrize(
    ("layers", "experts", "params", "active", "bf16", "mxfp4"),
    [
        (24, 32, 20_914_757_184, 3_608_307_264, 38.957, 12.816),
        (36, 128, 116_829_156_672, 5_132_849_472, 217.611, 60.768),
    ],
)
def test_gpt_oss_figures(
    layers: int, experts: int, params: int, active: int, bf16: float, mxfp4: float
) -> None:
    """20.91 B / 3.61 B active and 116.83 B / 5.13 B; bf16 and MXFP4 in GiB."""
    weights = weights_of(gpt_oss(layers, experts))
    assert weights.params == params
    assert weights.active_params == active
    assert weights.total_bytes == 2 * params
    assert round(weights.total_bytes / GIB, 3) == bf16
    quantized = weights_of(gpt_oss(layers, experts, **MXFP4))
    assert round(quantized.total_bytes / GIB, 3) == mxfp4
    assert weights_of(gpt_oss(layers, experts, **MXFP4), dequantized=True).total_bytes == 2 * params


def test_mxfp4_is_seventeen_bytes_for_thirty_two_numbers() -> None:
    """Blocks of 16 bytes and a scale byte; a started group counts whole; biases stay."""
    part = WeightPart("experts", (Matrix(2, 3, 33),), vectors=5, mxfp4=True)
    assert part.bytes(2, "mxfp4") == 2 * 3 * 2 * 17 + 5 * 2
    assert part.bytes(2, "fp8") == part.bytes(2) == 203 * 2


def test_fp8_is_a_byte_and_a_scale_per_block() -> None:
    """DeepSeek's FP8: one float32 for each started block of 128 by 128."""
    part = WeightPart("mlp", (Matrix(1, 129, 128),), fp8=True)
    assert part.bytes(2, "fp8") == 129 * 128 + 2 * 4


def test_deepseek_v3_is_671_billion() -> None:
    """The published 671 B parameters with 37 B active (without the extra prediction layer)."""
    fp8 = {"quantization_config": {"quant_method": "fp8"}}
    weights = weights_of({"model_type": "deepseek_v3", "dtype": "bfloat16", **fp8})
    assert weights.params == 671_026_404_352
    assert round(weights.active_params / 1e9, 1) == 36.6
    assert round(weights.total_bytes / 1e9) == 673


@pytest.mark.parametrize("name", ["gpt_oss", "llama", "mixtral", "gemma2", "deepseek_v2"])
def test_ranks_add_up_to_the_model(name: str) -> None:
    """Pipeline stages add up; tensor ranks together hold the model and what is replicated."""
    weights = weights_of(TINY[name] | {"dtype": "float32"})
    assert weights.rank_bytes() == (weights.total_bytes,)
    stages = weights.rank_bytes(pp=3)
    extra = weights.embedding.bytes(4) if weights.tied else 0
    assert sum(stages) == weights.total_bytes + extra
    (rank,) = weights.rank_bytes(tp=2)
    replicated = sum(
        part.bytes(4) for layer in weights.layers for part in layer if part.split == "replicated"
    ) + weights.final_norm.bytes(4)
    # 97 tokens over two ranks: 49 each, so a row of 48 numbers too many.
    padding = (1 if weights.tied else 2) * 48 * 4
    assert 2 * rank == weights.total_bytes + replicated + padding


def test_replicated_kv_heads_cost_more_than_their_share() -> None:
    """Sixteen ranks of gpt-oss: two share each of the eight KV heads, so K and V weigh 1/8 each."""
    weights = weights_of(gpt_oss(24, 32))
    kv = next(part for part in weights.layers[0] if part.split == "kv_heads")
    eighth, sixteenth = kv.bytes(2) // 8, kv.bytes(2) // 16
    whole_share = sum(
        part.bytes(2) if part.split == "replicated" else -(-part.bytes(2) // 16)
        for layer in weights.layers
        for part in layer
    )
    whole_share += weights.final_norm.bytes(2)
    whole_share += (weights.embedding.bytes(2) + weights.head.bytes(2)) // 16
    assert weights.rank_bytes(tp=16) == (whole_share + 24 * (eighth - sixteenth),)


@pytest.mark.parametrize(("tp", "pp"), [(3, 1), (128, 1), (1, 25), (1, 0)])
def test_impossible_splits_are_errors(tp: int, pp: int) -> None:
    """64 heads, 8 KV heads and 24 layers cannot be shared by just any number of ranks."""
    with pytest.raises(ImpossibleSplit):
        weights_of(gpt_oss(24, 32)).rank_bytes(tp, pp)


def test_ranks_share_mxfp4_by_whole_groups() -> None:
    """90 groups of 32 columns: half of the bytes on each of two ranks, 23 of 90 on each of four;
    on a rank each, at most."""
    weights = weights_of(gpt_oss(24, 32, **MXFP4))
    part = next(part for part in weights.layers[0] if part.mxfp4)
    whole = part.bytes(2, "mxfp4")
    rest = {tp: weights.rank_bytes(tp)[0] - 24 * whole * -(-90 // tp) // 90 for tp in (2, 4)}
    plain = {
        tp: weights_of(gpt_oss(24, 32)).rank_bytes(tp)[0] - 24 * part.bytes(2) // tp
        for tp in (2, 4)
    }
    assert rest == plain
    few = weights_of(gpt_oss(24, 32, intermediate_size=96, **MXFP4))
    assert few.rank_bytes(2) < few.rank_bytes()
    with pytest.raises(ImpossibleSplit, match=r"experts of 3 groups of 32 columns .* over 4"):
        few.rank_bytes(4)


def test_an_indivisible_width_is_an_error() -> None:
    """Ranks cannot share columns of an expert that do not divide."""
    with pytest.raises(ImpossibleSplit, match="experts of width 45"):
        weights_of(gpt_oss(24, 32, intermediate_size=45)).rank_bytes(2)


def test_stages_are_as_fast_as_their_slowest() -> None:
    """The head counts as what it weighs, the embedding as nothing that is read; of equally fast
    cuts the one whose fullest stage is smallest."""
    weights = weights_of(gpt_oss(24, 32))
    assert [len(layers) for layers in weights.stages(2)] == [12, 12]
    quantized = weights_of(gpt_oss(24, 32, **MXFP4))
    assert [len(layers) for layers in quantized.stages(2)] == [13, 11]
    assert [layers.start for layers in weights.stages(3)] == [0, 8, 16]


def test_stages_keep_within_a_limit() -> None:
    """13 layers and the embedding are the fuller stage: a limit below that moves a layer over."""
    weights = weights_of(gpt_oss(24, 32, **MXFP4))
    fastest = weights.rank_bytes(pp=2)
    assert fastest[0] > fastest[1]
    assert [len(layers) for layers in weights.stages(2, fastest[0] - 1)] == [12, 12]
    assert max(weights.rank_bytes(pp=2, limit_bytes=fastest[0] - 1)) < fastest[0]


def test_a_checkpoint_size_replaces_a_bound_only() -> None:
    """The index's total size is used for an unknown model, split in proportion, and said."""
    unknown = {"model_type": "new", "dtype": "float16", "vocab_size": 10, "n_embd": 8}
    unknown |= {"n_layer": 2, "n_head": 2}
    weights = weights_of(unknown, checkpoint_bytes=5000)
    assert weights.total_bytes == 5000
    assert 5000 <= sum(weights.rank_bytes(pp=2)) <= 5002
    assert weights.rank_bytes(tp=4) == (5000,)  # nothing is known to be shared
    assert "its checkpoint's size" in weights.warnings[0]
    assert weights_of(gpt_oss(24, 32), checkpoint_bytes=5000).total_bytes == 2 * 20_914_757_184


@pytest.mark.parametrize(
    ("change", "total", "warned"),
    [
        ({"dtype": None}, 4, "no dtype"),
        ({"dtype": None, "torch_dtype": "float16"}, 2, None),
        ({"dtype": "torch.float32"}, 4, None),
        ({"quantization_config": {"quant_method": "awq"}}, 2, "quantization 'awq'"),
        ({"vision_config": {"hidden_size": 3}}, 2, "vision and audio parts"),
    ],
)
def test_what_is_assumed_is_said(change: dict[str, Any], total: int, warned: str | None) -> None:
    """A dtype or quantization that is not known counts as the larger, with a warning."""
    weights = weights_of(TINY["llama"] | {"dtype": "bfloat16"} | change)
    assert weights.total_bytes == total * weights.params
    assert weights.exact == (warned is None)
    assert [warned in text for text in weights.warnings if warned] == [True] * bool(warned)


def test_a_dtype_that_is_none_is_an_error() -> None:
    """A dtype that weights cannot have is named."""
    with pytest.raises(ShapeUnknown, match="int3"):
        weights_of(TINY["llama"], dtype="int3")


@given(rows=st.integers(1, 300), columns=st.integers(1, 300), count=st.integers(1, 4))
def test_stored_bytes_equal_real_tensors(rows: int, columns: int, count: int) -> None:
    """Plain, MXFP4 and FP8 matrices are as large as tensors of the stored layout."""
    matrix = Matrix(count, rows, columns)
    groups = -(-columns // 32)
    blocks = torch.empty(count, rows, groups, 16, dtype=torch.uint8, device="meta")
    scales = torch.empty(count, rows, groups, dtype=torch.uint8, device="meta")
    plain = torch.empty(count, rows, columns, dtype=torch.bfloat16, device="meta")
    inverse = torch.empty(count, -(-rows // 128), -(-columns // 128), device="meta")
    assert matrix.bytes(2, "none") == plain.numel() * 2
    assert matrix.bytes(2, "mxfp4") == blocks.numel() + scales.numel()
    assert matrix.bytes(2, "fp8") == plain.numel() + inverse.numel() * 4
