"""Choosing experts and sorting pairs on the device."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expert_cases import SKEWS, choices
from kernel_device import DEVICE

pytest.importorskip("triton")

from gpt_oss_server.engine.kernels import routing
from gpt_oss_server.engine.kernels.routing import Routing, place, route, tile_capacity

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL, LARGE = (1, 3, 16, 64), (65, 130)


def check(found: Routing, live_tokens: int) -> None:
    """Every live pair is in `order` once, by expert, in its own order; tiles cover each once."""
    ids = found.ids.cpu()
    flat = ids.flatten().tolist()
    pairs = [pair for pair, expert in enumerate(flat) if 0 <= expert < found.experts]
    assert all(pair // found.per_token < live_tokens for pair in pairs)
    order = found.order[: len(pairs)].tolist()
    assert order == sorted(pairs, key=lambda pair: (flat[pair], pair))
    covered: list[int] = []
    for expert, row, stop in found.tiles.T.tolist():
        if expert >= 0:
            rows = range(row, min(row + found.block_rows, stop))
            assert len(rows) > 0
            assert {flat[order[one]] for one in rows} == {expert}
            covered += rows
    assert covered == list(range(len(pairs)))


def router(experts: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(experts)
    weight = torch.randn(experts, width, generator=random)
    return weight.to(DEVICE), torch.randn(experts, generator=random).to(DEVICE)


def rows(tokens: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.mark.parametrize("tokens", SMALL + LARGE)
@pytest.mark.parametrize(("experts", "per_token"), [(4, 2), (6, 4), (32, 4)])
def test_chooses_as_transformers(tokens: int, experts: int, per_token: int) -> None:
    """The largest logits in their order, softmax over them, whichever launches make it."""
    hidden, (weight, bias) = rows(tokens, 72), router(experts, 72)
    found = route(hidden, weight, bias, per_token, 16)
    values, ids = torch.topk(hidden @ weight.T + bias, per_token, -1)
    assert found.ids.tolist() == ids.tolist()
    torch.testing.assert_close(found.weights, values.softmax(-1), atol=1e-5, rtol=1e-5)
    check(found, tokens)


@pytest.mark.parametrize("tokens", [5, 70])
def test_shares_of_all_experts(tokens: int) -> None:
    """Qwen3's weights before it makes them sum to one; and no bias."""
    hidden, (weight, _) = rows(tokens, 64), router(8, 64)
    found = route(hidden, weight, None, 3, 16, over_all=True)
    values, ids = (hidden @ weight.T).softmax(-1).topk(3, -1)
    assert found.ids.tolist() == ids.tolist()
    torch.testing.assert_close(found.weights, values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("tokens", "live"), [(8, 5), (8, 0), (8, 8), (8, 100), (100, 33)])
def test_padding_is_not_computed(tokens: int, live: int) -> None:
    """Rows from `live` on choose nobody, and the first rows choose as they would alone."""
    hidden, (weight, bias) = rows(tokens, 64), router(8, 64)
    hidden[live:] = float("nan")
    count = torch.tensor([live], dtype=torch.int32, device=DEVICE)
    found = route(hidden, weight, bias, 2, 16, count)
    check(found, live)
    assert (found.ids[live:] == 8).all()
    if live:
        alone = route(hidden[:live], weight, bias, 2, 16)
        assert torch.equal(found.ids[:live], alone.ids)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("tokens", [3, 80])
def test_what_is_not_a_number_still_routes(tokens: int) -> None:
    """A spoiled token chooses distinct real experts, and no other token is touched."""
    hidden, (weight, bias) = rows(tokens, 64), router(6, 64)
    clean = route(hidden, weight, bias, 4, 16)
    hidden[1] = float("nan")
    hidden[2] = float("inf")
    found = route(hidden, weight, bias, 4, 16)
    check(found, tokens)
    for token in (1, 2):
        assert len(set(found.ids[token].tolist())) == 4
        assert torch.isnan(found.weights[token]).any()
    others = [token for token in range(tokens) if token not in (1, 2)]
    assert torch.equal(found.ids[others], clean.ids[others])
    assert torch.equal(found.weights[others], clean.weights[others])


def test_half_types_are_summed_in_float32() -> None:
    """A bfloat16 router's choice is that of its numbers, exactly summed."""
    hidden = rows(20, 96).to(torch.bfloat16)
    weight, bias = (one.to(torch.bfloat16) for one in router(8, 96))
    found = route(hidden, weight, bias, 2, 16)
    logits = hidden.double() @ weight.double().T + bias.double()
    assert found.ids.tolist() == logits.topk(2, -1).indices.tolist()


def test_ties_go_to_the_lower_expert() -> None:
    """Equal logits are taken in the order of experts."""
    found = route(rows(2, 64), torch.zeros(5, 64, device=DEVICE), None, 3, 16)
    assert found.ids.tolist() == [[0, 1, 2], [0, 1, 2]]


@settings(max_examples=25)
@given(
    skew=st.sampled_from(SKEWS),
    tokens=st.sampled_from((1, 2, 33, 64, 65, 100)),
    shape=st.sampled_from(((4, 2), (5, 1), (9, 4))),
    block_rows=st.sampled_from((16, 32)),
)
def test_any_choice_is_sorted(
    skew: str, tokens: int, shape: tuple[int, int], block_rows: int
) -> None:
    """Pairs sorted by expert, cut into tiles, for choices made elsewhere, few or many."""
    experts, per_token = shape
    ids = choices(skew, tokens, per_token, experts).to(DEVICE)
    weights = torch.rand(ids.shape, device=DEVICE)
    found = place(ids, weights, experts, block_rows)
    check(found, tokens)
    assert torch.equal(found.weights, weights)
    assert found.tiles.shape[1] == tile_capacity(ids.numel(), experts, block_rows)


def test_experts_of_others_are_left_out() -> None:
    """Ids below 0 or beyond the last expert have no place."""
    ids = torch.tensor([[0, 7], [-1, 3], [9, 4], [2, 1]], device=DEVICE)
    found = place(ids, torch.ones(4, 2, device=DEVICE), 4, 16)
    check(found, 4)
    assert found.order[:4].tolist() == [0, 7, 6, 3]


def test_the_capacity_is_what_the_worst_case_needs() -> None:
    """Against every way of giving 7 pairs to 3 experts, tiles of 2 rows."""
    needed = [
        sum(-(-count // 2) for count in (a, b, 7 - a - b)) for a in range(8) for b in range(8 - a)
    ]
    assert tile_capacity(7, 3, 2) == max(needed)


def test_shapes_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error before anything is launched."""
    monkeypatch.setattr(routing, "_partial_logits", None)
    with pytest.raises(ValueError, match="cannot choose 5 for rows of 64"):
        route(rows(2, 64), router(4, 64)[0], None, 5, 16)
    with pytest.raises(ValueError, match="cannot choose 2 for rows of 32"):
        route(rows(2, 32), router(4, 64)[0], None, 2, 16)
