"""How many tokens a step may compute: what the settings say, less while memory is short.

Knows: counts of tokens and steps. Does not know: memory, sequences, clocks. Deterministic.

After a step for which there was no memory, the next may have half as many prefill tokens beside
its decoding sequences; where it only decodes, half as many sequences, which then take turns. It is
the number of tokens that makes a step large, not what sequences hold: their blocks are in a pool
that was allocated at the start, and preempting one would give the device nothing back.

The budget doubles again after `FIRST_PATIENCE_STEPS` steps that went well. What took the memory may
be there to stay (another process), and each such try costs a failed step: one that fails doubles
the patience, up to `MOST_PATIENCE_STEPS`, and only a budget that is whole for as long is believed.
How often it had to be halved at once does not count: that is one shortage, and it may have passed.
"""

from __future__ import annotations

FIRST_PATIENCE_STEPS = 16
MOST_PATIENCE_STEPS = 4096


class StepBudget:
    """`tokens` is what the next step may compute, at most `whole_tokens`."""

    def __init__(self, whole_tokens: int) -> None:
        self.whole_tokens = whole_tokens
        self.tokens = whole_tokens
        self._patience = FIRST_PATIENCE_STEPS
        self._passed = 0
        self._trying = False

    @property
    def reduced(self) -> bool:
        return self.tokens < self.whole_tokens

    def shrink(self, decode_tokens: int, prefill_tokens: int) -> bool:
        """A step of so many tokens ran out of memory. Returns whether there is a smaller one."""
        fewer = decode_tokens + prefill_tokens // 2 if prefill_tokens else decode_tokens // 2
        if self._trying:
            self._patience = min(2 * self._patience, MOST_PATIENCE_STEPS)
        self._passed, self._trying = 0, False
        # Never below one: whoever comes next must be able to try.
        self.tokens = max(1, fewer)
        return fewer > 0

    def passed(self) -> None:
        """A step went well."""
        if not (self.reduced or self._trying):
            return
        self._passed += 1
        if self._passed < self._patience:
            return
        self._passed, self._trying = 0, self.reduced
        if self.reduced:
            self.tokens = min(2 * self.tokens, self.whole_tokens)
        else:
            self._patience = FIRST_PATIENCE_STEPS
