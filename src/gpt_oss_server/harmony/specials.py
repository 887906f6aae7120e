"""The special tokens that harmony's framing is made of.

Knows: their spellings and their ids in one vocabulary. Does not know: how messages are framed.
Source: https://github.com/openai/harmony/blob/main/docs/format.md, "Special Tokens".
"""

from __future__ import annotations

from dataclasses import dataclass

from gpt_oss_server.errors import StartupError
from gpt_oss_server.harmony.tokenizer import Tokenizer

SPELLINGS = {
    "start": "<|start|>",
    "end": "<|end|>",
    "message": "<|message|>",
    "channel": "<|channel|>",
    "constrain": "<|constrain|>",
    "return_": "<|return|>",
    "call": "<|call|>",
}


@dataclass(frozen=True)
class HarmonySpecials:
    """Token ids of the framing tokens."""

    start: int
    end: int
    message: int
    channel: int
    constrain: int
    return_: int
    call: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> HarmonySpecials:
        """Look the ids up. Raises StartupError naming what the vocabulary lacks."""
        if missing := missing_specials(tokenizer):
            raise StartupError(
                f"the tokenizer lacks harmony's special tokens {', '.join(missing)}: "
                "use the tokenizer that belongs to the model"
            )
        known = tokenizer.specials()
        return cls(**{name: known[text] for name, text in SPELLINGS.items()})


def missing_specials(tokenizer: Tokenizer) -> list[str]:
    """Spellings of the framing tokens that are not special tokens of this vocabulary."""
    known = tokenizer.specials()
    return [text for text in SPELLINGS.values() if text not in known]
