"""New keys and values into the pools, with and without rotation."""

from __future__ import annotations

import pytest
import torch

from kernel_device import DEVICE

pytest.importorskip("triton")

from gpt_oss_server.engine.kernels.kv_write import write_kv
from gpt_oss_server.engine.kernels.rotary import rotate_and_write

pytestmark = pytest.mark.usefixtures("one_thread")

SLOTS = [9, 3, 0, 30]


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=random).to(DEVICE, dtype)


def pools(
    kv_heads: int, k_dim: int, v_dim: int, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(
        torch.full((8, 4, kv_heads, dim), 7.0, dtype=dtype, device=DEVICE) for dim in (k_dim, v_dim)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_each_token_is_written_to_its_slot_and_nowhere_else(dtype: torch.dtype) -> None:
    """Bit for bit, from views whose heads and tokens are transposed; the rest of the pools and
    `written` stay as they were."""
    keys, values = pools(3, 12, 6, dtype)
    key = numbers(3, 4, 12, dtype=dtype).transpose(0, 1)
    value = numbers(3, 4, 6, dtype=dtype, seed=1).transpose(0, 1)
    written = torch.zeros(4, device=DEVICE)
    write_kv(keys, values, torch.tensor(SLOTS, device=DEVICE), key, value, written)
    for pool, new in ((keys, key), (values, value)):
        flat = pool.flatten(0, 1)
        assert torch.equal(flat[SLOTS], new)
        others = [slot for slot in range(32) if slot not in SLOTS]
        assert bool((flat[others] == 7.0).all())
    assert written.tolist() == [0.0] * 4


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["key", "value"])
def test_what_is_not_finite_is_stored_as_zero_and_told(bad: float, where: str) -> None:
    """Only the number itself becomes 0, and only its token's `written` is spoiled."""
    keys, values = pools(2, 8, 8)
    key, value = numbers(4, 2, 8), numbers(4, 2, 8, seed=1)
    {"key": key, "value": value}[where][2, 1, 5] = bad
    written = torch.zeros(4, device=DEVICE)
    write_kv(keys, values, torch.tensor(SLOTS, device=DEVICE), key, value, written)
    assert torch.isfinite(written).tolist() == [True, True, False, True]
    {"key": key, "value": value}[where][2, 1, 5] = 0.0
    assert torch.equal(keys.flatten(0, 1)[SLOTS], key)
    assert torch.equal(values.flatten(0, 1)[SLOTS], value)


def test_pools_in_another_order_of_memory() -> None:
    """Only strides tell where a head's rows lie: [blocks, heads, slots, dim] in memory."""
    keys = torch.zeros(8, 2, 4, 8, device=DEVICE).transpose(1, 2)
    values = torch.zeros(8, 2, 4, 8, device=DEVICE).transpose(1, 2)
    key, value = numbers(4, 2, 8), numbers(4, 2, 8, seed=1)
    write_kv(
        keys,
        values,
        torch.tensor(SLOTS, device=DEVICE),
        key,
        value,
        torch.zeros(4, device=DEVICE),
    )
    at = [(slot // 4, slot % 4) for slot in SLOTS]
    assert torch.equal(torch.stack([keys[block, slot] for block, slot in at]), key)
    assert torch.equal(torch.stack([values[block, slot] for block, slot in at]), value)


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The rotation's formula in float64."""
    half = cos.shape[1]
    x, cos, sin = x.double(), cos.double()[:, None], sin.double()[:, None]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 8e-3), (torch.float16, 1e-3)]
)
@pytest.mark.parametrize(("dim", "half"), [(64, 32), (96, 48), (12, 4)])
def test_rotation_and_writing_in_one(
    dtype: torch.dtype, tolerance: float, dim: int, half: int
) -> None:
    """From views into one fused projection: queries are returned rotated, keys stand rotated and
    values as they are in the pools. With fewer rotated dimensions than a head has, the rest
    passes."""
    heads, kv_heads = 6, 2
    fused = numbers(4, (heads + 2 * kv_heads) * dim, dtype=dtype)
    query, key, value = (
        part.unflatten(1, (-1, dim))
        for part in fused.split([heads * dim, kv_heads * dim, kv_heads * dim], dim=1)
    )
    angles = torch.arange(4, device=DEVICE)[:, None] * numbers(1, half, seed=2)
    # YaRN scales both by one factor.
    cos, sin = (angles.cos() * 1.3).to(dtype), (angles.sin() * 1.3).to(dtype)
    keys, values = pools(kv_heads, dim, dim, dtype)
    written = torch.zeros(4, device=DEVICE)
    slots = torch.tensor(SLOTS, device=DEVICE)
    out = rotate_and_write(query, key, value, cos, sin, slots, keys, values, written)
    assert out.dtype == dtype
    close = {"atol": tolerance, "rtol": tolerance}
    torch.testing.assert_close(out.double(), rotated(query, cos, sin), **close)
    torch.testing.assert_close(keys.flatten(0, 1)[SLOTS].double(), rotated(key, cos, sin), **close)
    assert torch.equal(values.flatten(0, 1)[SLOTS], value)
    others = [slot for slot in range(32) if slot not in SLOTS]
    assert bool((keys.flatten(0, 1)[others] == 7.0).all())
    assert written.tolist() == [0.0] * 4


@pytest.mark.parametrize("where", ["first half", "second half", "rest", "value"])
def test_rotation_guards_the_pools_too(where: str) -> None:
    """A NaN in any part of a key or value: what it touches is 0, the token is told, no other."""
    query, key, value = numbers(4, 4, 12), numbers(4, 2, 12, seed=1), numbers(4, 2, 12, seed=2)
    cos = sin = torch.ones(4, 4, device=DEVICE)
    column = {"first half": 1, "second half": 5, "rest": 9, "value": 3}[where]
    (value if where == "value" else key)[1, 0, column] = float("nan")
    keys, values = pools(2, 12, 12)
    written = torch.zeros(4, device=DEVICE)
    slots = torch.tensor(SLOTS, device=DEVICE)
    rotate_and_write(query, key, value, cos, sin, slots, keys, values, written)
    assert torch.isfinite(written).tolist() == [True, False, True, True]
    flat = (values if where == "value" else keys).flatten(0, 1)[SLOTS]
    zeros = {"first half": 2, "second half": 2, "rest": 1, "value": 1}[where]
    assert int((flat == 0).sum()) == zeros
    assert bool(torch.isfinite(flat).all())


def test_more_dimensions_than_a_head_has_are_not_rotated() -> None:
    """A cosine table of another model is refused."""
    new = numbers(1, 1, 8)
    keys, values = pools(1, 8, 8)
    cos = torch.ones(1, 5, device=DEVICE)
    slots = torch.tensor([0], device=DEVICE)
    with pytest.raises(ValueError, match="cannot rotate 10 of 8 dimensions"):
        rotate_and_write(
            new, new, new, cos, cos, slots, keys, values, torch.zeros(1, device=DEVICE)
        )


@pytest.mark.parametrize("rotate", [False, True])
def test_padding_is_written_nowhere(rotate: bool) -> None:
    """A token whose slot is below 0 leaves pools and `written` alone, whatever it holds."""
    keys, values = pools(2, 8, 8)
    key, value = numbers(2, 2, 8), numbers(2, 2, 8, seed=1)
    key[1] = value[1] = float("nan")
    slots = torch.tensor([3, -1], device=DEVICE)
    written = torch.zeros(2, device=DEVICE)
    if rotate:
        one, none = torch.ones(2, 4, device=DEVICE), torch.zeros(2, 4, device=DEVICE)
        rotate_and_write(key, key, value, one, none, slots, keys, values, written)
    else:
        write_kv(keys, values, slots, key, value, written)
    assert written.tolist() == [0.0, 0.0]
    for pool, new in ((keys, key), (values, value)):
        flat = pool.flatten(0, 1)
        assert torch.equal(flat[3], new[0])
        assert bool((flat[[slot for slot in range(32) if slot != 3]] == 7.0).all())
