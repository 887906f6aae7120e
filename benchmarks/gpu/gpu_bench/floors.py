"""The least that a step must move and multiply, by arithmetic.

Knows: the project's memory arithmetic, the two ceilings of a machine. Does not know: kernels. A
floor is the larger of two times: bytes that must be read over what a large copy moves, and
operations over what a large product does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from gpt_oss_server.memory.architecture import ModelShape, shape_from_config
from gpt_oss_server.memory.weights import weights_of

LAUNCHES_A_LAYER = 12
LAUNCHES_BESIDE = 8


@dataclass(frozen=True)
class Ceilings:
    """Bytes per second that a large copy reads and writes, FLOP per second of a large product."""

    copy: float
    product: float


def decode_bytes(config: Mapping[str, Any], batch: int, context: int) -> float:
    """What one step of `batch` sequences reads: weights, of each mixture the experts that someone
    is expected to choose (E(1-(1-k/E)^B), routing being uniform and independent), and KV."""
    weights = sum(
        size * (1 - (1 - float(share)) ** batch) for share, size in _profile(config).items()
    )
    return weights + batch * _kv_bytes(shape_from_config(config), context, _itemsize(config))


def prefill_s(config: Mapping[str, Any], tokens: int, chunk: int, limits: Ceilings) -> float:
    """The least seconds of a prompt in chunks: each reads all weights, and multiplies each token
    with what it uses of them, and with the keys and values that it sees. The head is for one."""
    shape, total_s = shape_from_config(config), 0.0
    read = sum(_profile(config).values())
    per_token = 2 * (weights_of(config).active_params - shape.vocab_size * shape.hidden_size)
    for begin in range(0, tokens, chunk):
        end = min(begin + chunk, tokens)
        seen = sum(
            _pairs(begin, end, layer.window) * 2 * shape.num_heads * (layer.k_dim + layer.v_dim)
            for layer in shape.layers
        )
        flop = per_token * (end - begin) + seen
        total_s += max(flop / limits.product, read / limits.copy)
    return total_s


def launches(config: Mapping[str, Any]) -> int:
    """Of a decode step by the fused pass, sampling not counted."""
    return LAUNCHES_A_LAYER * len(shape_from_config(config).layers) + LAUNCHES_BESIDE


def _profile(config: Mapping[str, Any]) -> Mapping[Fraction, int]:
    (profile,) = weights_of(config).read_profile()
    return profile


def _itemsize(config: Mapping[str, Any]) -> int:
    return 4 if config["dtype"] == "float32" else 2


def _kv_bytes(shape: ModelShape, context: int, itemsize: int) -> int:
    return sum(
        min(context, layer.window or context)
        * layer.kv_heads
        * (layer.k_dim + layer.v_dim)
        * itemsize
        for layer in shape.layers
    )


def _pairs(begin: int, end: int, window: int | None) -> int:
    """Of queries at positions begin … end - 1 and the keys that each sees."""
    if window is None:
        return (end * (end + 1) - begin * (begin + 1)) // 2
    return sum(min(position + 1, window) for position in range(begin, end))
