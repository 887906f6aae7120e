# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,no-untyped-def"
"""Pieces of attention that run inside a kernel: scores, and the softmax summed as it goes.

The online softmax is that of Milakov and Gimelshein (2018) as FlashAttention uses it: per query
row the greatest score `top`, the sum of exponentials `total` and the weighted values `acc`, all
float32, in powers of two (`exp2` is one instruction).

A NaN score makes its own row NaN and no other. Masked scores are -inf: their weight is exactly 0.
"""

import triton
import triton.language as tl


@triton.jit
def product(a, b, acc, WIDEN: tl.constexpr):
    """a @ b + acc in float32. WIDEN multiplies in float32: what the interpreter, which has no
    16-bit products, needs; the products of 16-bit numbers are exact in float32 either way."""
    if WIDEN:
        acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        acc = tl.dot(a, b, acc, input_precision="ieee")
    return acc


@triton.jit
def scores(q, k, scale, softcap, SOFTCAP: tl.constexpr, WIDEN: tl.constexpr):
    """q [M, D] times k [N, D]: logits in powers of two, [M, N] float32. `scale` includes log2(e)
    unless SOFTCAP, which computes softcap * tanh(x / softcap) with `scale` divided by softcap."""
    zero = tl.zeros([q.shape[0], k.shape[0]], dtype=tl.float32)
    x = product(q, tl.trans(k), zero, WIDEN) * scale
    if SOFTCAP:
        # tanh by exp(-2|x|), which cannot overflow.
        small = tl.exp2(tl.abs(x) * -2.8853900817779268)
        tanh = (1.0 - small) / (1.0 + small)
        x = tl.where(x < 0.0, -tanh, tanh) * (softcap * 1.4426950408889634)
    return x


@triton.jit
def fold(x, v, top, total, acc, WIDEN: tl.constexpr):
    """Add keys with logits x [M, N] and values v [N, D] to the running state."""
    higher = tl.maximum(top, tl.max(x, 1))
    # A row that has seen no key yet is -inf on both sides.
    shift = tl.where(higher == float("-inf"), 0.0, higher)
    weight = tl.exp2(x - shift[:, None])
    decay = tl.exp2(top - shift)
    total = total * decay + tl.sum(weight, 1)
    acc = product(weight.to(v.dtype), v, acc * decay[:, None], WIDEN)
    return higher, total, acc


@triton.jit
def with_sink(sink, top, total, acc):
    """One more key per row with logit `sink` [M] (powers of two) and no value."""
    higher = tl.maximum(top, sink)
    decay = tl.exp2(top - higher)
    return total * decay + tl.exp2(sink - higher), acc * decay[:, None]


@triton.jit
def normalized(total, acc):
    """Weighted values by their total weight; 0 for a row without keys."""
    return acc / tl.where(total == 0.0, 1.0, total)[:, None]


@triton.jit
def log_sum(top, total):
    """log2 of the summed exponentials; -inf for a row without keys."""
    return top + tl.log2(tl.where(total == 0.0, 1.0, total))
