"""The experts' products, from plain and from MXFP4 weights, against float64 pair by pair."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expert_cases import ALPHA, LIMIT, SKEWS, Mixture, choices, expected, mixture, silu
from kernel_device import DEVICE
from mxfp4_models import random_mxfp4

pytest.importorskip("triton")

from gpt_oss_server.engine.experts.stored import widened
from gpt_oss_server.engine.kernels.expert_tuning import (
    ExpertTuning,
    Tile,
    fitted,
    mxfp4_tuning,
    plain_tuning,
)
from gpt_oss_server.engine.kernels.gates import Gate
from gpt_oss_server.engine.kernels.grouped import (
    Stacked,
    combine,
    gated_product,
    product_by_pair,
)
from gpt_oss_server.engine.kernels.mxfp4 import (
    Packed,
    gated_product_mxfp4,
    product_by_pair_mxfp4,
    relay,
)
from gpt_oss_server.engine.kernels.routing import Routing, place

pytestmark = pytest.mark.usefixtures("one_thread")

EXPERTS, PER_TOKEN = 5, 2
# Neither a power of two nor a multiple of a tile, as 2880 is none; MXFP4 needs multiples of 32.
HIDDEN, WIDTH = 80, 40
HIDDEN_4, WIDTH_4 = 96, 160
GATE = Gate("swiglu", alpha=ALPHA, limit=LIMIT)
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
SMALL = ExpertTuning(16, Tile(32, 32, 4, 2), Tile(32, 16, 4, 2), splits=2)
GROUPED = ExpertTuning(16, Tile(16, 16, 4, 2, group=2), Tile(64, 32, 4, 2, group=3))
MIX = mixture(EXPERTS, HIDDEN, WIDTH)


def hidden_rows(tokens: int, width: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    random = torch.Generator().manual_seed(tokens)
    return torch.randn(tokens, width, generator=random).to(dtype)


def shares(ids: torch.Tensor) -> torch.Tensor:
    return torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)).softmax(-1)


def computed(
    hidden: torch.Tensor, routing: Routing, mix: Mixture, tuning: ExpertTuning, gate: Gate = GATE
) -> torch.Tensor:
    """All three kernels, weights in the hidden states' type."""

    def there(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(DEVICE, hidden.dtype)

    up = Stacked(there(mix.up), there(mix.up_bias))
    down = Stacked(there(mix.down), there(mix.down_bias))
    rows = gated_product(hidden.to(DEVICE), up, gate, routing, tuning.up)
    by_pair = product_by_pair(rows, down, routing, tuning.down, tuning.splits)
    return combine(by_pair, down.bias, routing, hidden.dtype)


def check_plain(ids: torch.Tensor, dtype: torch.dtype, tuning: ExpertTuning) -> None:
    hidden, weights = hidden_rows(len(ids), HIDDEN, dtype), shares(ids)
    routing = place(ids.to(DEVICE), weights.to(DEVICE), EXPERTS, tuning.rows)
    mix = Mixture(*(one.to(dtype) for one in (MIX.up, MIX.up_bias, MIX.down, MIX.down_bias)))
    got = computed(hidden, routing, mix, tuning)
    assert got.dtype == dtype
    close(got, expected(hidden, ids, weights, mix), dtype)


def close(got: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> None:
    """Errors against the size of the result, not of each number: sums cancel."""
    scale = float(wanted.abs().max()) + 1e-3
    torch.testing.assert_close(
        got.double().cpu() / scale, wanted / scale, atol=TOLERANCE[dtype], rtol=0.0
    )


@settings(max_examples=12)
@given(
    skew=st.sampled_from(SKEWS),
    tokens=st.sampled_from((1, 2, 9, 33)),
    dtype=st.sampled_from((torch.float32, torch.bfloat16)),
    tuning=st.sampled_from((SMALL, GROUPED)),
)
def test_plain_weights(skew: str, tokens: int, dtype: torch.dtype, tuning: ExpertTuning) -> None:
    """Any number of tokens, any skew: all to one expert, experts with none."""
    check_plain(choices(skew, tokens, PER_TOKEN, EXPERTS, seed=tokens), dtype, tuning)


@pytest.mark.parametrize("tokens", [1, 33, 70, 200])
def test_plain_weights_as_tuned(tokens: int) -> None:
    """The tiles that the tables choose, cut to small matrices, one row class each."""
    tuning = fitted(plain_tuning(tokens * PER_TOKEN, EXPERTS), HIDDEN, WIDTH, 16, 4, 4, 200_000)
    check_plain(choices("random", tokens, PER_TOKEN, EXPERTS), torch.float32, tuning)


def test_halves_of_stored_rows() -> None:
    """The form of Qwen3's experts: [E, 2 I, H], gates before ups, SiLU, no biases."""
    tokens = 7
    ids = choices("random", tokens, PER_TOKEN, EXPERTS)
    hidden, weights = hidden_rows(tokens, HIDDEN), shares(ids)
    routing = place(ids.to(DEVICE), weights.to(DEVICE), EXPERTS, 16)
    stored = torch.cat((MIX.up[..., ::2], MIX.up[..., 1::2]), -1).transpose(1, 2).contiguous()
    up, down = Stacked(stored.to(DEVICE).transpose(1, 2), None), Stacked(MIX.down.to(DEVICE), None)
    rows = gated_product(hidden.to(DEVICE), up, Gate("silu", halves=True), routing, SMALL.up)
    got = combine(product_by_pair(rows, down, routing, SMALL.down), None, routing, hidden.dtype)
    plain = replace(
        MIX, up_bias=torch.zeros_like(MIX.up_bias), down_bias=torch.zeros_like(MIX.down_bias)
    )
    close(got, expected(hidden, ids, weights, plain, silu), torch.float32)


def test_experts_elsewhere_add_nothing() -> None:
    """Pairs of experts that are not here leave zeros, and what memory held is not read."""
    ids = torch.tensor([[0, 5], [-1, 9], [4, 2]], dtype=torch.int32)
    hidden, weights = hidden_rows(3, HIDDEN), shares(ids)
    routing = place(ids.to(DEVICE), weights.to(DEVICE), EXPERTS, 16)
    rows = gated_product(
        hidden.to(DEVICE),
        Stacked(MIX.up.to(DEVICE), MIX.up_bias.to(DEVICE)),
        GATE,
        routing,
        SMALL.up,
    )
    by_pair = product_by_pair(rows, Stacked(MIX.down.to(DEVICE), None), routing, SMALL.down)
    by_pair.view(3, PER_TOKEN, HIDDEN)[ids.to(DEVICE) % 256 >= EXPERTS] = float("nan")
    got = combine(by_pair, MIX.down_bias.to(DEVICE), routing, hidden.dtype)
    close(got, expected(hidden, ids, weights, MIX), torch.float32)
    assert not got[1].any()


def test_a_spoiled_row_spoils_no_other() -> None:
    """A token of NaN gives NaN, in the clamps too, and others the same bits as without it."""
    tokens = 6
    ids = choices("one expert", tokens, PER_TOKEN, EXPERTS)
    routing = place(ids.to(DEVICE), shares(ids).to(DEVICE), EXPERTS, 16)
    hidden = hidden_rows(tokens, HIDDEN)
    clean = computed(hidden, routing, MIX, SMALL)
    hidden[2] = float("nan")
    got = computed(hidden, routing, MIX, SMALL)
    assert torch.isnan(got[2]).all()
    others = [0, 1, 3, 4, 5]
    assert torch.equal(got[others], clean[others])


def test_a_token_does_not_depend_on_the_others() -> None:
    """The same bits alone in a batch and in other company, for the same tiles."""
    ids = choices("random", 20, PER_TOKEN, EXPERTS)
    weights, hidden = shares(ids), hidden_rows(20, HIDDEN)

    def result(count: int) -> torch.Tensor:
        routing = place(ids[:count].to(DEVICE), weights[:count].to(DEVICE), EXPERTS, 16)
        return computed(hidden[:count], routing, MIX, SMALL)

    assert torch.equal(result(20)[:1], result(1))


@cache
def packed(outputs: int, inputs: int, *, gated: bool) -> tuple[Packed, torch.Tensor]:
    """MXFP4 weights as kernels take them, and the same numbers [E, in, out]."""
    blocks, scales = random_mxfp4(EXPERTS, outputs, inputs)
    wide = torch.stack([widened(b, s, torch.float32) for b, s in zip(blocks, scales, strict=True)])
    random = torch.Generator().manual_seed(outputs)
    bias = torch.randn(EXPERTS, outputs, generator=random)
    blocks, scales = blocks.to(DEVICE), scales.to(DEVICE)
    words, by_group = relay(blocks, scales, gated=gated)
    assert (words.data_ptr(), by_group.data_ptr()) == (blocks.data_ptr(), scales.data_ptr())
    return Packed(words, by_group, bias.to(DEVICE)), wide.transpose(1, 2)


def check_mxfp4(ids: torch.Tensor, dtype: torch.dtype, tuning: ExpertTuning) -> None:
    up, wide_up = packed(2 * WIDTH_4, HIDDEN_4, gated=True)
    down, wide_down = packed(HIDDEN_4, WIDTH_4, gated=False)
    assert up.bias is not None
    assert down.bias is not None
    hidden, weights = hidden_rows(len(ids), HIDDEN_4, dtype), shares(ids)
    routing = place(ids.to(DEVICE), weights.to(DEVICE), EXPERTS, tuning.rows)
    rows = gated_product_mxfp4(hidden.to(DEVICE), up, GATE, routing, tuning.up)
    by_pair = product_by_pair_mxfp4(rows, down, routing, tuning.down, tuning.splits)
    got = combine(by_pair, down.bias, routing, dtype)
    mix = Mixture(wide_up, up.bias.cpu(), wide_down, down.bias.cpu())
    close(got, expected(hidden, ids, weights, mix), dtype)


SMALL_4 = ExpertTuning(16, Tile(32, 32, 4, 2), Tile(32, 64, 4, 2), splits=2)
GROUPED_4 = ExpertTuning(16, Tile(16, 64, 4, 2, group=2), Tile(64, 32, 4, 2, group=3))


@settings(max_examples=12)
@given(
    skew=st.sampled_from(SKEWS),
    tokens=st.sampled_from((1, 2, 9, 33)),
    dtype=st.sampled_from((torch.float32, torch.bfloat16)),
    tuning=st.sampled_from((SMALL_4, GROUPED_4)),
)
def test_mxfp4_weights(skew: str, tokens: int, dtype: torch.dtype, tuning: ExpertTuning) -> None:
    """As plain weights, from four bits a number."""
    check_mxfp4(choices(skew, tokens, PER_TOKEN, EXPERTS, seed=tokens), dtype, tuning)


@pytest.mark.parametrize("tokens", [1, 33, 70, 200])
def test_mxfp4_weights_as_tuned(tokens: int) -> None:
    """The tiles that the tables choose, cut to small matrices, one row class each."""
    chosen = mxfp4_tuning(tokens * PER_TOKEN, EXPERTS)
    tuning = fitted(chosen, HIDDEN_4, WIDTH_4, 32, 17 / 32, 4, 200_000)
    check_mxfp4(choices("random", tokens, PER_TOKEN, EXPERTS), torch.float32, tuning)


@pytest.mark.parametrize("scale", [0, 1, 64, 127, 128])
def test_every_number_is_exact(scale: int) -> None:
    """All sixteen numbers at all places of a group, smallest and largest scale too."""
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 16, 1, 16).contiguous()
    scales = torch.full((1, 16, 1), scale, dtype=torch.uint8)
    wide = widened(blocks[0], scales[0], torch.float32)
    weights = Packed(*relay(blocks.to(DEVICE), scales.to(DEVICE), gated=False), None)
    identity = torch.eye(32, device=DEVICE)
    ids = torch.zeros(32, 1, dtype=torch.int32, device=DEVICE)
    routing = place(ids, torch.ones(32, 1, device=DEVICE), 1, 32)
    got = product_by_pair_mxfp4(identity, weights, routing, Tile(16, 32, 4, 2))[0]
    assert torch.equal(got.cpu(), wide.T)


def test_scales_beyond_the_kernel_are_refused() -> None:
    """Rather than rounded to infinity."""
    blocks, scales = random_mxfp4(1, 16, 32)
    scales[0, 3, 0] = 129
    with pytest.raises(ValueError, match="a scale byte is above 128"):
        relay(blocks, scales, gated=False)


def test_gated_outputs_must_fill_blocks() -> None:
    """Eight gates and eight ups."""
    with pytest.raises(ValueError, match="24 gated outputs are not a multiple of 16"):
        relay(*random_mxfp4(1, 24, 32), gated=True)
