"""Initial weights with which a model can copy before it has learned anything.

Knows: how an attention head looks at the token before, and how another finds where the current
token stood earlier and takes what followed (https://arxiv.org/abs/2209.11895), preferring the place
where the token before it was the same, too: most words follow a space of their own, which says
nothing of where one was. Does not know: training, data.

Found by chance, these two cost most of the training that half an hour allows. Nothing is frozen:
training sharpens them, or puts them to another use.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

QUICK_PAIRS: Final = 6
"""Pairs of dimensions that RoPE turns fast enough to tell neighbouring positions apart."""
SLOW_PAIRS: Final = 7
"""From this pair on RoPE hardly turns within a conversation: there, contents can be compared."""
LOOK_BACK: Final = 5.0
MATCH: Final = 1.8
MATCH_SECOND: Final = 0.7
REMEMBER: Final = 3.0
GAIN: Final = 3.0


def prepare_copying(model: Any) -> None:
    """Set the first layer's first two heads to look back, and the heads of full layers to match."""
    inner = model.model
    rotary, kinds = inner.rotary_emb, model.config.layer_types
    spread = float(inner.embed_tokens.weight.std())
    first = inner.layers[0].self_attn
    size, width = first.head_dim, model.config.hidden_size
    half = size // 2
    slow = [*range(SLOW_PAIRS, half), *range(half + SLOW_PAIRS, size)]
    rank = len(slow)
    frame = torch.linalg.qr(torch.randn(width, width)).Q
    read, write, write_second = (frame[:, n * rank : (n + 1) * rank] for n in range(3))
    _look_back(first, rotary)
    first.v_proj.weight[:rank] = read.T
    first.o_proj.weight[:, :rank] = REMEMBER * write * spread
    first.o_proj.weight[:, size : size + rank] = REMEMBER * write_second * spread
    copied = torch.linalg.qr(torch.randn(width, width)).Q
    full = [inner.layers[n].self_attn for n, k in enumerate(kinds) if k == "full_attention"]
    for n, attention in enumerate(full[:2]):
        for kv_head in range(2):
            part = copied[:, (2 * n + kv_head) * size :][:, :size]
            subspaces = (read, write, write_second)
            _match(attention, kv_head, slow, subspaces, part * spread)


def _look_back(attention: Any, rotary: Any) -> None:
    """The first head attends to the previous token, the second to the one before.

    Keys get a constant vector, queries the same one turned by the rotation of `offset` positions,
    so that their product is largest exactly there.
    """
    size = attention.head_dim
    half = size // 2
    turns = rotary.inv_freq[:QUICK_PAIRS].float()
    attention.k_proj.bias[:QUICK_PAIRS] = LOOK_BACK
    for head, offset in ((0, 1), (1, 2)):
        bias = attention.q_proj.bias[head * size : (head + 1) * size]
        bias[:QUICK_PAIRS] = LOOK_BACK * torch.cos(offset * turns)
        bias[half : half + QUICK_PAIRS] = -LOOK_BACK * torch.sin(offset * turns)


def _match(
    attention: Any,
    kv_head: int,
    slow: list[int],
    subspaces: tuple[Tensor, Tensor, Tensor],
    copied: Tensor,
) -> None:
    """The first query head of a key head attends to where the token before equals the current
    one, best where the one before that is the same as well, and passes on what stands there.

    Subspaces are those of a token, of the one before it and of the one before that. Both matches
    share their dimensions; a rotation keeps them apart.
    """
    size = attention.head_dim
    head = kv_head * attention.num_key_value_groups
    read, write, write_second = subspaces
    apart = torch.linalg.qr(torch.randn(len(slow), len(slow))).Q
    query = MATCH * read.T + MATCH_SECOND * apart @ write.T
    key = MATCH * write.T + MATCH_SECOND * apart @ write_second.T
    attention.q_proj.weight[[head * size + d for d in slow]] = query
    attention.k_proj.weight[[kv_head * size + d for d in slow]] = key
    norm = copied.norm(dim=0, keepdim=True)
    attention.v_proj.weight[kv_head * size : (kv_head + 1) * size] = (copied / norm).T
    attention.o_proj.weight[:, head * size : (head + 1) * size] = GAIN * copied
