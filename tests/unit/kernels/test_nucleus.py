"""top_p's threshold by search: what it lets pass is what sorting keeps, and draws are the same."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
import torch

from gpt_oss_server.engine.nucleus import SortedNucleus
from gpt_oss_server.engine.sampler import Sampled, Sampler
from gpt_oss_server.engine.sequence import Sequence
from kernel_device import DEVICE

pytest.importorskip("triton")

from gpt_oss_server.engine.kernels.nucleus import SearchedNucleus

sys.path.append(str(Path(__file__).parents[1] / "engine"))
from sampler_rows import row

pytestmark = pytest.mark.usefixtures("one_thread")

TOP_P = [0.0, 1e-6, 0.1, 0.5, 0.9, 0.97, 0.999999, 1.0 - 1e-9]


def kept(nucleus: SortedNucleus | SearchedNucleus, scaled: torch.Tensor, p: float) -> torch.Tensor:
    """Which logits pass, [S, vocab]."""
    largest = torch.topk(scaled, min(nucleus.candidates, scaled.shape[1]), dim=-1).values
    top_p = torch.full((len(scaled), 1), p, dtype=torch.float64, device=scaled.device)
    return scaled >= nucleus.floor(scaled, largest, top_p)


@pytest.mark.parametrize("p", TOP_P)
@pytest.mark.parametrize("vocab", [1, 6, 300, pytest.param(2000, marks=pytest.mark.slow)])
def test_what_passes_is_what_sorting_keeps(vocab: int, p: float) -> None:
    """Peaked, flat, coarse (many equals), shifted and partly impossible rows, at any top_p."""
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(6, vocab, generator=generator)
    rows = [logits[0] * 5, logits[1] * 0.01, (logits[2] * 3).round(), logits[3] - 80, logits[4]]
    rows[4] = torch.where(torch.arange(vocab) % 3 == 0, rows[4], -torch.inf)
    scaled = torch.stack([*rows, torch.zeros(vocab)]).to(DEVICE)
    assert torch.equal(kept(SearchedNucleus(), scaled, p), kept(SortedNucleus(), scaled, p))


def test_masses_at_the_edge_are_told_apart() -> None:
    """A token whose larger ones have exactly top_p of the mass is not kept; half of that more, and
    it is."""
    scaled = torch.log(torch.tensor([[0.25, 0.5, 0.125, 0.125]], device=DEVICE))
    for p, expected in ((0.5 - 1e-6, 1), (0.5 + 1e-6, 2), (0.75 - 1e-6, 2), (0.75 + 1e-6, 4)):
        assert int(kept(SearchedNucleus(), scaled, p).sum()) == expected


def requests(count: int) -> list[Sequence]:
    """Rows of all kinds of parameters, mixed."""
    rng = random.Random(3)
    return [
        row(
            [1, 2, 3],
            [4] * rng.randrange(5),
            key=key,
            seed=key,
            temperature=rng.choice((0.0, 0.6, 1.0, 1.7)),
            top_p=rng.choice((1.0, 0.95, 0.5, 0.9999, 0.0)),
            top_k=rng.choice((0, 0, 1, 20, 400)),
            min_p=rng.choice((0.0, 0.0, 0.02)),
            presence_penalty=rng.choice((0.0, 0.5)),
            logit_bias=rng.choice(({}, {5: 3.0})),
            min_tokens=rng.choice((0, 3)),
            stop_ids=[9, 11],
            logprobs=rng.choice((None, 2)),
        )
        for key in range(count)
    ]


def test_a_sampler_draws_the_same_tokens_with_either() -> None:
    """The same seeds give the same tokens and log-probabilities, whoever finds the threshold."""
    device = torch.device(DEVICE)
    logits = torch.randn(60, 500, generator=torch.Generator().manual_seed(1)).mul(2).to(device)
    rows = requests(60)
    results: list[Sampled] = [
        Sampler(500, device, nucleus=nucleus).sample(logits, rows)
        for nucleus in (SortedNucleus(), SearchedNucleus())
    ]
    assert results[0].tokens == results[1].tokens
    assert results[0] == results[1]
    assert len(set(results[0].tokens)) > 20
