"""What `tests/kernel_compile.py` compiles of experts: launches as gpt-oss-20b makes them."""

from __future__ import annotations

import torch

COUNT, SIZE, PER_TOKEN = 32, 2880, 4


def blank(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def routers() -> None:
    """For one token, a full small step, and many."""
    from gpt_oss_server.engine.kernels.routing import place, route

    for tokens in (1, 64, 8192):
        hidden = blank(tokens, SIZE)
        found = route(hidden, blank(COUNT, SIZE), blank(COUNT), PER_TOKEN, 16)
        place(found.ids, found.weights, COUNT, 16)


def plain() -> None:
    """One token's experts, a decode batch's, a prefill's."""
    from gpt_oss_server.engine.kernels.expert_tuning import plain_tuning
    from gpt_oss_server.engine.kernels.gates import Gate
    from gpt_oss_server.engine.kernels.grouped import (
        Stacked,
        combine,
        gated_product,
        product_by_pair,
    )
    from gpt_oss_server.engine.kernels.routing import place

    up = Stacked(blank(COUNT, SIZE, 2 * SIZE), blank(COUNT, 2 * SIZE))
    down = Stacked(blank(COUNT, SIZE, SIZE), blank(COUNT, SIZE))
    gate = Gate("swiglu", alpha=1.702, limit=7.0)
    for tokens in (1, 64, 8192):
        ids = blank(tokens, PER_TOKEN, dtype=torch.int32)
        tuning = plain_tuning(ids.numel(), COUNT)
        routing = place(ids, blank(tokens, PER_TOKEN, dtype=torch.float32), COUNT, tuning.rows)
        rows = gated_product(blank(tokens, SIZE), up, gate, routing, tuning.up)
        by_pair = product_by_pair(rows, down, routing, tuning.down, tuning.splits)
        combine(by_pair, down.bias, routing, rows.dtype)


def mxfp4() -> None:
    """The same from four bits."""
    from gpt_oss_server.engine.kernels.expert_tuning import mxfp4_tuning
    from gpt_oss_server.engine.kernels.gates import Gate
    from gpt_oss_server.engine.kernels.mxfp4 import (
        Packed,
        gated_product_mxfp4,
        product_by_pair_mxfp4,
    )
    from gpt_oss_server.engine.kernels.routing import place

    def packed(outputs: int) -> Packed:
        words = blank(COUNT, outputs, SIZE // 8, dtype=torch.int32)
        scales = blank(COUNT, SIZE // 32, outputs, dtype=torch.uint8)
        return Packed(words, scales, blank(COUNT, outputs))

    up, down = packed(2 * SIZE), packed(SIZE)
    gate = Gate("swiglu", alpha=1.702, limit=7.0)
    for tokens in (1, 64, 8192):
        ids = blank(tokens, PER_TOKEN, dtype=torch.int32)
        tuning = mxfp4_tuning(ids.numel(), COUNT)
        routing = place(ids, blank(tokens, PER_TOKEN, dtype=torch.float32), COUNT, tuning.rows)
        rows = gated_product_mxfp4(blank(tokens, SIZE), up, gate, routing, tuning.up)
        product_by_pair_mxfp4(rows, down, routing, tuning.down, tuning.splits)
