# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,no-untyped-def"
"""New keys and values into their slots of the pools, watched for numbers that are not finite.

Bytes: each key and value read once and written once, `4 * T * kv_heads * dim * itemsize`: 2 MB
for 512 tokens of gpt-oss, under 2 us; for a decode step the launch is all of it. One launch, where
PyTorch takes eight. `rotary` does the same for keys that are not yet rotated.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def stored_number(x, DTYPE: tl.constexpr):
    """x as DTYPE, 0 where that is not finite, and whether it is."""
    x = x.to(DTYPE)
    finite = tl.abs(x.to(tl.float32)) < float("inf")
    return tl.where(finite, x, 0.0).to(DTYPE), finite


@triton.jit
def _copy(new, pool, held, DIM: tl.constexpr, PAD: tl.constexpr):
    """Rows `new` [H] to rows `pool` [H]; how many numbers were not finite."""
    dims = tl.arange(0, PAD)
    mask = held[:, None] & (dims < DIM)[None, :]
    number, finite = stored_number(
        tl.load(new[:, None] + dims[None, :], mask, 0.0), pool.dtype.element_ty
    )
    tl.store(pool[:, None] + dims[None, :], number, mask)
    return tl.sum(tl.sum(tl.where(finite, 0, 1), 1), 0)


@triton.jit
def _write_kernel(
    key,
    value,
    slots,
    keys,
    values,
    written,
    k_token,
    k_head,
    v_token,
    v_head,
    k_block,
    k_slot,
    k_pool_head,
    v_block,
    v_slot,
    v_pool_head,
    KV_HEADS: tl.constexpr,
    HEADS_PAD: tl.constexpr,
    K_DIM: tl.constexpr,
    K_PAD: tl.constexpr,
    V_DIM: tl.constexpr,
    V_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program writes one token."""
    token = tl.program_id(0).to(tl.int64)
    at = tl.load(slots + token)
    if at < 0:
        return
    block = at // BLOCK
    slot = at % BLOCK
    heads = tl.arange(0, HEADS_PAD)
    held = heads < KV_HEADS
    bad = _copy(
        key + token * k_token + heads * k_head,
        keys + block * k_block + slot * k_slot + heads * k_pool_head,
        held,
        K_DIM,
        K_PAD,
    )
    bad += _copy(
        value + token * v_token + heads * v_head,
        values + block * v_block + slot * v_slot + heads * v_pool_head,
        held,
        V_DIM,
        V_PAD,
    )
    tl.store(written + token, float("nan"), bad > 0)


def write_kv(
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    written: torch.Tensor,
) -> None:
    """Store `key` and `value` [T, kv_heads, dim] at `slots` [T] int64 of the pools `keys` and
    `values` [num_blocks, block_size, kv_heads, dim]. Numbers that are not finite are stored as 0
    and make their token's `written` [T] float32 NaN. A token whose slot is negative is padding, of
    which nothing is written. Last dimensions contiguous. One launch."""
    kv_heads, k_dim = keys.shape[2:]
    v_dim = values.shape[3]
    _write_kernel[(len(slots),)](
        key,
        value,
        slots,
        keys,
        values,
        written,
        *key.stride()[:2],
        *value.stride()[:2],
        *keys.stride()[:3],
        *values.stride()[:3],
        KV_HEADS=kv_heads,
        HEADS_PAD=triton.next_power_of_2(kv_heads),
        K_DIM=k_dim,
        K_PAD=triton.next_power_of_2(k_dim),
        V_DIM=v_dim,
        V_PAD=triton.next_power_of_2(v_dim),
        BLOCK=keys.shape[1],
        num_warps=4 if kv_heads * (k_dim + v_dim) >= 512 else 1,
    )
