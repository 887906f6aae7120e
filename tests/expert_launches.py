"""What `tests/kernel_compile.py` compiles of experts: launches as gpt-oss-20b makes them."""

from __future__ import annotations

import torch

COUNT, SIZE, PER_TOKEN = 32, 2880, 4
COUNTS = (COUNT, 128)
"""Of gpt-oss-20b and 120b, which differ in nothing else that kernels know."""
TOKENS = (1, 64, 128, 256, 8192)
"""One for each class of rows per expert."""


def blank(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def routers() -> None:
    """For one token, a full small step, and many, padded or not; and the sum of their experts."""
    from gpt_oss_server.engine.kernels.grouped import combine
    from gpt_oss_server.engine.kernels.routing import place, route

    live = blank(1, dtype=torch.int32)
    for count in COUNTS:
        weight, bias = blank(count, SIZE), blank(count)
        for tokens in (1, 9, 40, 64, 300, 8192):
            hidden = blank(tokens, SIZE)
            found = route(hidden, weight, bias, PER_TOKEN, 16)
            route(hidden, weight, bias, PER_TOKEN, 16, live)
            place(found.ids, found.weights, count, 16)
            by_pair = blank(1, tokens * PER_TOKEN, SIZE)
            combine(by_pair, blank(count, SIZE), found, hidden.dtype)


def plain() -> None:
    """One token's experts, decode batches', a prefill's."""
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
    for tokens in TOKENS:
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
    for tokens in TOKENS:
        ids = blank(tokens, PER_TOKEN, dtype=torch.int32)
        tuning = mxfp4_tuning(ids.numel(), COUNT)
        routing = place(ids, blank(tokens, PER_TOKEN, dtype=torch.float32), COUNT, tuning.rows)
        rows = gated_product_mxfp4(blank(tokens, SIZE), up, gate, routing, tuning.up)
        product_by_pair_mxfp4(rows, down, routing, tuning.down, tuning.splits)
