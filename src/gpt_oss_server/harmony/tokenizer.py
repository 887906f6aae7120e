"""A thin wrapper over `tokenizers.Tokenizer` that keeps text and special tokens apart.

Knows: how to load a tokenizer from a model folder, that text typed by a user must never become a
special token, what bytes each token stands for. Does not know: chat formats, torch, transformers
(except to convert a folder that has no `tokenizer.json`, once, at start-up).

Three things about the `tokenizers` library shape this module. Added tokens are matched inside any
text it encodes: `encode_special_tokens = True` turns that off for the special ones, after which
`<|start|>` in a message is just nine characters. `encode` holds Python's lock for as long as it
runs, `encode_batch_fast` releases it (and skips offsets that nobody needs), so everything goes
through the latter, one text a call: several at once are spread over threads that the library has
only once, where a small request would wait for a large one. And a string with a lone surrogate,
which JSON can express, is refused: such a character becomes U+FFFD.

Safe for use from several threads.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from gpt_oss_server.errors import StartupError
from gpt_oss_server.harmony.detokenize import ByteDetokenizer, Detokenizer, WindowDetokenizer
from gpt_oss_server.harmony.token_bounds import longest_token_bytes
from gpt_oss_server.harmony.token_bytes import codec_of


class Tokenizer:
    """Text to ids and back.

    Args:
        backend: the library's tokenizer; owned by this object from now on.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        self._backend = backend
        self._added = {
            token_id: (token.content, token.special)
            for token_id, token in backend.get_added_tokens_decoder().items()
        }
        self._codec = codec_of(_decoder_spec(backend))
        self._bytes: dict[int, bytes] = {}
        self._texts: dict[int, str | None] = {}
        vocab = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocab.values(), default=-1) + 1
        """One more than the highest id."""
        self.special_ids = frozenset(i for i, (_, special) in self._added.items() if special)
        self.longest_token_bytes = longest_token_bytes(backend)
        """The most bytes of a text that one token can stand for; None where that is unknown."""

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Load from a model folder. Raises StartupError in one line if that is impossible."""
        return cls(load_backend(folder))

    @property
    def is_byte_based(self) -> bool:
        """Whether every token stands for fixed bytes."""
        return self._codec is not None

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Plain text to ids; special tokens spelled out in the text stay text.

        `add_special_tokens` adds what the tokenizer itself puts round a text (a BOS for Llama).
        """
        return self.encode_all([text], add_special_tokens=add_special_tokens)[0]

    def encode_all(
        self, texts: Sequence[str], *, add_special_tokens: bool = False
    ) -> list[list[int]]:
        """`encode` for several texts, without Python's lock."""
        encode, clean = self._backend.encode_batch_fast, map(without_surrogates, texts)
        return [encode([text], add_special_tokens=add_special_tokens)[0].ids for text in clean]

    def fewest_tokens(self, texts: Iterable[str]) -> int:
        """A lower bound of the tokens of these texts together, found without tokenising; 0 where
        the vocabulary allows none."""
        if self.longest_token_bytes is None:
            return 0
        return -(-sum(map(_utf8_bytes, texts)) // self.longest_token_bytes)

    def decode(self, ids: Sequence[int]) -> str:
        """Ids to text, specials as their strings; invalid bytes become U+FFFD, unknown ids ""."""
        if self._codec is None:
            known = [i for i in ids if 0 <= i < self.vocab_size]
            return str(self._backend.decode(known, skip_special_tokens=False))
        text = b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self._codec.strips_space else text

    def detokenizer(self, *, continuation: bool = False) -> Detokenizer:
        """A fresh incremental decoder. A `continuation` of a text keeps its leading space, where
        `decode` would drop the one that marks the start of a text."""
        if self._codec is None:
            return WindowDetokenizer(self.decode)
        strip = self._codec.strips_space and not continuation
        return ByteDetokenizer(self.token_bytes, self.token_text, strip_space=strip)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token; empty for an id outside the vocabulary."""
        found = self._bytes.get(token_id)
        if found is None:
            found = self._bytes[token_id] = self._find_bytes(token_id)
        return found

    def token_text(self, token_id: int) -> str | None:
        """The text of one token, or None if its bytes are not whole characters."""
        try:
            return self._texts[token_id]
        except KeyError:
            pass
        try:
            text: str | None = self.token_bytes(token_id).decode("utf-8")
        except UnicodeDecodeError:
            text = None
        self._texts[token_id] = text
        return text

    def id_of(self, token: str) -> int | None:
        """The id of a token by its exact spelling in the vocabulary."""
        found = self._backend.token_to_id(token)
        return None if found is None else int(found)

    def specials(self) -> dict[str, int]:
        """Every special token's text and id."""
        return {text: i for i, (text, special) in self._added.items() if special}

    def to_json(self) -> str:
        """The whole tokenizer in `tokenizer.json`'s form."""
        return str(self._backend.to_str())

    def _find_bytes(self, token_id: int) -> bytes:
        if not 0 <= token_id < self.vocab_size:
            return b""
        if self._codec is None:
            return str(self._backend.decode([token_id], skip_special_tokens=False)).encode()
        if token_id in self._added:
            return self._codec.of_added(self._added[token_id][0])
        piece = self._backend.id_to_token(token_id)
        return b"" if piece is None else self._codec.of_piece(piece)


def _utf8_bytes(text: str) -> int:
    # A lone surrogate counts as one byte, less than the three of what it becomes.
    return len(text) if text.isascii() else len(text.encode(errors="replace"))


def without_surrogates(text: str) -> str:
    """The text, with lone surrogates (not encodable as UTF-8) replaced by U+FFFD."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def load_backend(folder: Path) -> tokenizers.Tokenizer:
    """The library's tokenizer of a model folder; converts old formats through transformers."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return _converted(folder)
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise StartupError(f"cannot read the tokenizer {path}: {error}") from error


def _converted(folder: Path) -> tokenizers.Tokenizer:
    """transformers knows how to build a fast tokenizer from sentencepiece and tiktoken files."""
    from transformers import AutoTokenizer  # heavy: imports torch

    advice = f"{folder} has no tokenizer.json and its tokenizer cannot be converted"
    try:
        wrapped = AutoTokenizer.from_pretrained(str(folder))
    except (ImportError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise StartupError(f"{advice}: {first_line}") from error
    backend = getattr(wrapped, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise StartupError(f"{advice}: no fast tokenizer exists for it")
    return backend


def _decoder_spec(backend: tokenizers.Tokenizer) -> dict[str, Any] | None:
    """The decoder as `tokenizer.json` describes it, without writing out the vocabulary."""
    if backend.decoder is None:
        return None
    spec: dict[str, Any] = json.loads(backend.decoder.__getstate__())
    return spec
