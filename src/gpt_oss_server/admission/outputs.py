"""How long answers turn out, by the length of the prompt: bounded memory, no model.

Knows: histograms over powers of sqrt(2), one per power-of-two class of prompt length. Does not
know: requests, text. An answer cut off by its bound counts as that long (a lower bound). Old
observations fade: when a class reaches its limit all its counts are halved.
"""

from __future__ import annotations

import math

_BUCKETS = 48
_CLASSES = 24
# Upper edge, in tokens, of each bucket: 1, 2, 2, 3, 4, 6, 8, 12, 16, 23, 32, ... 2**23.5.
_EDGES = tuple(math.ceil(2 ** (index / 2)) for index in range(_BUCKETS))


class OutputLengths:
    """Feed with `observe`, ask with `predict`. Not thread-safe."""

    def __init__(self, quantile: float, *, min_samples: int = 20, max_samples: int = 2000) -> None:
        self._quantile = quantile
        self._min_samples = min_samples
        self._max_samples = max_samples
        self._counts: list[list[int]] = [[0] * _BUCKETS for _ in range(_CLASSES)]
        self._totals = [0] * _CLASSES
        self._cached: list[int | None] = [None] * _CLASSES

    def observe(self, prompt_tokens: int, output_tokens: int) -> None:
        """Add one finished answer."""
        index = _class_of(prompt_tokens)
        counts = self._counts[index]
        counts[_bucket_of(output_tokens)] += 1
        self._totals[index] += 1
        if self._totals[index] >= self._max_samples:
            self._counts[index] = [count // 2 for count in counts]
            self._totals[index] = sum(self._counts[index])
        self._cached[index] = None

    def predict(self, prompt_tokens: int) -> int | None:
        """The quantile of answers to prompts of this class, rounded up to a bucket's edge;
        None while too few were seen."""
        index = _class_of(prompt_tokens)
        total = self._totals[index]
        if total < self._min_samples:
            return None
        cached = self._cached[index]
        if cached is None:
            cached = self._cached[index] = self._quantile_of(index, total)
        return cached

    def _quantile_of(self, index: int, total: int) -> int:
        wanted = math.ceil(self._quantile * total)
        seen = 0
        for edge, count in zip(_EDGES, self._counts[index], strict=True):
            seen += count
            if seen >= wanted:
                return edge
        return _EDGES[-1]


def _class_of(prompt_tokens: int) -> int:
    return min(max(prompt_tokens, 0).bit_length(), _CLASSES - 1)


def _bucket_of(output_tokens: int) -> int:
    """The first bucket whose upper edge is not below `output_tokens`."""
    if output_tokens <= 1:
        return 0
    index = min(2 * (output_tokens.bit_length() - 1), _BUCKETS - 1)
    while index < _BUCKETS - 1 and _EDGES[index] < output_tokens:
        index += 1
    return index
