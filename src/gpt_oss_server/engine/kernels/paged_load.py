# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,no-untyped-def"
"""Keys or values of one KV head, found by position through a block table, inside a kernel.

A loop loads the block ids of its *next* turn and carries them: were they loaded in the turn that
uses them, the compiler would spend the stages of its software pipeline on the table, and keep one
tile of keys and values on the way where it now keeps `stages - 1`.
"""

import triton
import triton.language as tl


@triton.jit
def load_rows(rows, held, DIM: tl.constexpr, PAD: tl.constexpr, MASKED: tl.constexpr):
    """What `rows` [N] point at: [N, PAD], 0 beyond DIM and, if MASKED, where not `held` [N]."""
    dims = tl.arange(0, PAD)
    at = rows[:, None] + dims[None, :]
    if MASKED and DIM == PAD:
        found = tl.load(at, held[:, None], 0.0)
    elif MASKED:
        found = tl.load(at, held[:, None] & (dims < DIM)[None, :], 0.0)
    elif DIM == PAD:
        found = tl.load(at)
    else:
        found = tl.load(at, (dims < DIM)[None, :], 0.0)
    return found


@triton.jit
def load_blocks(table, at, stop, BLOCK: tl.constexpr):
    """Block ids [N] of positions `at` [N] of the sequence whose row of the table is `table`; 0,
    and nothing is read, from `stop` on."""
    return tl.load(table + at // BLOCK, at < stop, 0).to(tl.int64)
