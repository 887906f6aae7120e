"""Which bytes a token stands for, worked out from a tokenizer's decoder.

Knows: byte-level vocabularies (GPT-2's alphabet: gpt-oss, Llama 3, Qwen) and sentencepiece-style
ones (`▁` for a space, `<0xAB>` for a byte: Llama 2, Mistral, Gemma). Does not know: how tokens are
gathered into text (`detokenize.py`).

Sources: GPT-2's `bytes_to_unicode` for the alphabet; the decoders of the `tokenizers` library
(ByteLevel, Replace, ByteFallback, Strip, Metaspace) for what each spelling means.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class ByteCodec:
    """How a vocabulary spells bytes.

    `of_piece` turns an ordinary vocabulary entry into its bytes, `of_added` an added token's
    content. `strips_space` says that decoding drops one space at the very start of a text (the one
    that encoding put there).
    """

    of_piece: Callable[[str], bytes]
    of_added: Callable[[str], bytes]
    strips_space: bool = False


def codec_of(decoder: Mapping[str, Any] | None) -> ByteCodec | None:
    """The codec for a decoder, given as in `tokenizer.json`; None if tokens are not bytes."""
    if decoder is None:
        return None
    steps: Sequence[Mapping[str, Any]] = (
        decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    )
    kinds = {step["type"] for step in steps}
    if "ByteLevel" in kinds:
        return _byte_level() if kinds <= {"ByteLevel", "Fuse", "ByteFallback"} else None
    if kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        return _sentencepiece(steps)
    return None


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each of the 256 bytes, as character → byte."""
    visible = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    stand_ins = {chr(256 + rank): byte for rank, byte in enumerate(hidden)}
    return {chr(byte): byte for byte in visible} | stand_ins


def _byte_level() -> ByteCodec:
    alphabet = byte_alphabet()

    def of_piece(piece: str) -> bytes:
        try:
            return bytes([alphabet[char] for char in piece])
        except KeyError:  # not spelled in the alphabet: the decoder takes it as plain text
            return piece.encode()

    return ByteCodec(of_piece, str.encode)


def _sentencepiece(steps: Sequence[Mapping[str, Any]]) -> ByteCodec | None:
    """Replace and Metaspace give the space's spelling, Strip and Metaspace the leading space."""
    space: str | None = None
    byte_fallback = strips = False
    for step in steps:
        match step["type"]:
            case "Replace":
                if step["content"] != " " or "String" not in step["pattern"]:
                    return None
                space = step["pattern"]["String"]
            case "Metaspace":
                space = step["replacement"]
                strips = step.get("prepend_scheme", "always") != "never"
            case "Strip":
                if step["content"] != " " or step["start"] > 1 or step["stop"] != 0:
                    return None
                strips = step["start"] == 1
            case "ByteFallback":
                byte_fallback = True
    if space is None:
        return None
    marker = space

    def of_piece(piece: str) -> bytes:
        if byte_fallback and (match := _BYTE_TOKEN.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        return piece.replace(marker, " ").encode()

    return ByteCodec(of_piece, lambda content: content.replace(marker, " ").encode(), strips)
