"""A model's vocabulary as the grammar library needs it.

Knows: which ids are text and which bytes they stand for. Does not know: grammars or sequences.

The library sees special tokens as empty and so can never allow one; the end of a grammar is a
virtual token behind the vocabulary, which stands for whatever may end the text at that point.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from llguidance import LLTokenizer, TokenizerWrapper

from gpt_oss_server.engine.guided_grammar import GrammarError
from gpt_oss_server.errors import StartupError
from gpt_oss_server.harmony.tokenizer import Tokenizer

Bits = npt.NDArray[np.int32]
"""A set of token ids, bit i of word i // 32."""

BITS_PER_WORD = 32


@dataclass(frozen=True)
class GuidedVocabulary:
    """`text_bits` [words] are the ids that stand for text; `byte_ids[b]` is the token of the
    single byte b, -1 where there is none, and `byte_words`, `byte_flags` [256] say where its bit
    is; `end_id` is the virtual end."""

    tokenizer: LLTokenizer
    end_id: int
    text_bits: Bits
    byte_ids: tuple[int, ...]
    byte_words: npt.NDArray[np.int64]
    byte_flags: Bits

    @property
    def words(self) -> int:
        return len(self.text_bits)

    def single_bytes(self, bits: Bits) -> list[int]:
        """The bytes whose own tokens are in a set of ids, in order."""
        found = bits[self.byte_words] & self.byte_flags
        return np.flatnonzero(found).tolist()

    def ids_of(self, text: bytes) -> list[int]:
        """Tokens for `text`, few rather than canonical; -1 for a byte that has none."""
        # A path may begin inside a character: its remaining bytes are tokens of their own.
        lead = 0
        while lead < len(text) and 0x80 <= text[lead] < 0xC0:
            lead += 1
        head = [self.byte_ids[byte] for byte in text[:lead]]
        try:
            return [*head, *self.tokenizer.greedy_tokenize(text[lead:].decode())]
        except UnicodeDecodeError:
            return [*head, *(self.byte_ids[byte] for byte in text[lead:])]

    def bytes_of(self, token: int) -> bytes:
        return self.tokenizer.decode_bytes([token])

    def is_text(self, token: int) -> bool:
        return 0 <= token < self.end_id and has_bit(self.text_bits, token)


class _Wrapped:
    """The shape that llguidance's TokenizerWrapper asks for."""

    def __init__(self, tokens: list[bytes], tokenizer: Tokenizer) -> None:
        self.eos_token_id = len(tokens)
        self.bos_token_id = None
        self.special_token_ids = [self.eos_token_id]
        # 0xFF begins no UTF-8 text: no grammar can spell the virtual end.
        self.tokens = [*tokens, b"\xffend"]
        self._tokenizer = tokenizer

    def __call__(self, text: bytes | str) -> list[int]:
        if isinstance(text, bytes):
            text = text.decode("utf-8", errors="replace")
        return self._tokenizer.encode(text)


def load_vocabulary(folder: Path, vocab_size: int) -> GuidedVocabulary:
    """The vocabulary of a model folder, cut or padded to the model's output layer. Takes a second
    for 200,000 tokens. Raises GrammarError where the tokens do not stand for fixed bytes."""
    try:
        tokenizer = Tokenizer.from_folder(folder)
    except StartupError:
        raise GrammarError("this model has no tokenizer that a grammar could guide") from None
    if not tokenizer.is_byte_based:
        raise GrammarError("this model's tokens do not stand for fixed bytes")
    hidden = tokenizer.special_ids
    tokens = [b"" if i in hidden else tokenizer.token_bytes(i) for i in range(vocab_size)]
    single = {token[0]: i for i, token in reversed(list(enumerate(tokens))) if len(token) == 1}
    text_bits = np.zeros(-(-(vocab_size + 1) // BITS_PER_WORD), dtype=np.int32)
    set_bits(text_bits, [i for i, token in enumerate(tokens) if token])
    byte_ids = np.array([single.get(byte, -1) for byte in range(256)])
    flags = np.left_shift(np.uint32(1), (byte_ids % BITS_PER_WORD).astype(np.uint32))
    return GuidedVocabulary(
        tokenizer=LLTokenizer(TokenizerWrapper(_Wrapped(tokens, tokenizer))),
        end_id=vocab_size,
        text_bits=text_bits,
        byte_ids=tuple(byte_ids.tolist()),
        byte_words=byte_ids // BITS_PER_WORD,
        byte_flags=np.where(byte_ids < 0, np.uint32(0), flags).view(np.int32),
    )


def has_bit(bits: Bits, token: int) -> bool:
    return bool(int(bits[token // BITS_PER_WORD]) >> (token % BITS_PER_WORD) & 1)


def set_bits(bits: Bits, tokens: list[int]) -> None:
    """Add tokens to a set."""
    ids = np.asarray(tokens, dtype=np.int64)
    flags = np.left_shift(np.uint32(1), (ids % BITS_PER_WORD).astype(np.uint32))
    np.bitwise_or.at(bits.view(np.uint32), ids // BITS_PER_WORD, flags)


def clear_bits(bits: Bits, tokens: list[int]) -> None:
    """Take tokens out of a set."""
    ids = np.asarray(tokens, dtype=np.int64)
    flags = np.left_shift(np.uint32(1), (ids % BITS_PER_WORD).astype(np.uint32))
    np.bitwise_and.at(bits.view(np.uint32), ids // BITS_PER_WORD, np.bitwise_not(flags))
