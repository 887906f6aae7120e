"""A made-up language in which one word is one token, so that prompts have exact lengths.

Knows: the words, their token ids, how to draw prompts from a seed. Does not know: models, files,
torch. Every word is a space and two syllables (" babe"); ids below `FIRST_WORD` are the 256 bytes
and the pieces that the words are merged from.
"""

from __future__ import annotations

import random

CONSONANTS = "bcdfghjklmnpqrstvwxz"
VOWELS = "aeiou"
SYLLABLES = tuple(c + v for c in CONSONANTS for v in VOWELS)
BYTES = 256
FIRST_WORD = BYTES + 2 * len(SYLLABLES)
VOCAB_SIZE = 4096
SPECIALS = (
    "<|startoftext|>",
    "<|endoftext|>",
    "<|return|>",
    "<|constrain|>",
    "<|channel|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|call|>",
)
FIRST_SPECIAL = VOCAB_SIZE - len(SPECIALS)
# 37 is coprime to the 10,000 pairs of syllables: the words cover all first syllables evenly.
_STRIDE = 37
PAIRS = tuple(
    divmod(i * _STRIDE % len(SYLLABLES) ** 2, len(SYLLABLES))
    for i in range(FIRST_SPECIAL - FIRST_WORD)
)
WORDS = tuple(f" {SYLLABLES[a]}{SYLLABLES[b]}" for a, b in PAIRS)


def draw(rng: random.Random, tokens: int) -> list[int]:
    """Indices into `WORDS` of a prompt of exactly `tokens` tokens."""
    return rng.choices(range(len(WORDS)), k=tokens)


def text_of(words: list[int]) -> str:
    return "".join(WORDS[i] for i in words)


def ids_of(words: list[int]) -> list[int]:
    return [FIRST_WORD + i for i in words]


def prompts(seed: str, count: int, tokens: int) -> list[list[int]]:
    """`count` prompts of `tokens` words each, a pure function of the arguments. Two seeds share
    no prefix worth caching."""
    rng = random.Random(seed)
    return [draw(rng, tokens) for _ in range(count)]
