"""Prompts that no two requests share the beginning of, sized in tokens of whatever tokenizer.

Knows: made-up words, a seeded generator, how many tokens so many words were. Does not know: the
tokenizer, who is asked.
"""

from __future__ import annotations

import random

CONSONANTS, VOWELS = "bcdfghklmnprstvw", "aeiou"
WORDS = 600


class Prompts:
    """`learn` from two requests that were answered; before that a word is taken for two tokens."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self._words = sorted(
            {
                "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(2))
                for _ in range(WORDS)
            }
        )
        self._per_word = 2.0
        self._around = 0.0

    def learn(self, few: tuple[int, int], many: tuple[int, int]) -> None:
        """From (words, tokens) of two prompts: tokens per word, and those around them (a chat
        template's)."""
        self._per_word = max(0.1, (many[1] - few[1]) / (many[0] - few[0]))
        self._around = max(0.0, few[1] - self._per_word * few[0])

    def of(self, tokens: int) -> str:
        """About that many tokens."""
        return self.words(max(1, round((tokens - self._around) / self._per_word)))

    def words(self, count: int) -> str:
        return " ".join(self.rng.choices(self._words, k=count))

    def near(self, tokens: int) -> int:
        """A number within a fifth of this one."""
        return max(1, round(tokens * self.rng.uniform(0.8, 1.2)))
