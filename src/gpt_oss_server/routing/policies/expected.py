"""How long answers to prompts of a length turn out on average, learned as they end.

Knows: running means by powers of two of the prompt's length. Does not know: requests, text. Old
answers fade. (`admission.outputs` keeps quantiles for reservations; load is a matter of means.)
"""

from __future__ import annotations

_CLASSES = 24


class ExpectedOutputs:
    """Feed with `observe`, ask with `predict`. A class with few answers leans on the mean of all,
    which leans on `assumed_tokens`."""

    def __init__(self, assumed_tokens: float = 256.0, memory: int = 2000) -> None:
        self._assumed = assumed_tokens
        self._memory = memory
        self._counts = [0.0] * (_CLASSES + 1)
        self._sums = [0.0] * (_CLASSES + 1)

    def observe(self, input_tokens: int, output_tokens: int) -> None:
        """Add one finished answer."""
        for place in (min(input_tokens.bit_length(), _CLASSES - 1), _CLASSES):
            self._counts[place] += 1.0
            self._sums[place] += output_tokens
            if self._counts[place] >= self._memory:
                self._counts[place] *= 0.5
                self._sums[place] *= 0.5

    def predict(self, input_tokens: int) -> float:
        """The mean of answers to prompts of this length's class, shrunk while few are known."""
        overall = (self._sums[_CLASSES] + 4 * self._assumed) / (self._counts[_CLASSES] + 4)
        place = min(input_tokens.bit_length(), _CLASSES - 1)
        return (self._sums[place] + 8 * overall) / (self._counts[place] + 8)
