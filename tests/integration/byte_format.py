"""A `ChatFormat` over bytes, small enough to predict every token of.

Ids 0 to 15 are special (2 ends a turn, 3 and 4 enclose reasoning); id 16 + b is byte b.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from typing import Any

from gpt_oss_server.errors import BadRequest
from gpt_oss_server.ports import OutputParser, Piece, PieceKind

END, THINK, THOUGHT, FIRST_BYTE = 2, 3, 4, 16


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(FIRST_BYTE + byte for byte in text.encode())


class ByteParser:
    def __init__(self, kind: PieceKind = "content") -> None:
        self._kind: PieceKind = kind
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: int) -> Piece:
        if token_id == THINK:
            self._kind = "reasoning"
        elif token_id == THOUGHT:
            self._kind = "content"
        elif token_id >= FIRST_BYTE:
            return Piece(self._kind, self._utf8.decode(bytes([token_id - FIRST_BYTE])))
        return Piece("none")

    def finish(self) -> list[Piece]:
        rest = self._utf8.decode(b"", final=True)
        return [Piece(self._kind, rest)] if rest else []


class ByteFormat:
    """Renders a message as `role:content` and a newline. The word `unrenderable` is refused, as
    a template of the model's own might; `explode` fails as a bug would."""

    stop_token_ids = (END,)
    vocab_size = FIRST_BYTE + 256

    def encode(self, text: str) -> list[int]:
        if text == "explode":
            raise RuntimeError(f"could not encode {text}")
        return list(ids_of(text))

    def fewest_tokens(self, text: str) -> int:
        return -(-len(text.encode()) // 2)

    def fewest_chat_tokens(self, messages: Sequence[Mapping[str, Any]]) -> int:
        return self.fewest_tokens("".join(message["content"] or "" for message in messages))

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        if token_id < FIRST_BYTE:
            return b"<%d>" % token_id
        return bytes([token_id - FIRST_BYTE])

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], *, reasoning_effort: str | None = None
    ) -> list[int]:
        lines = [f"{message['role']}:{message['content']}\n" for message in messages]
        if any("unrenderable" in line for line in lines):
            raise BadRequest("The template refuses this.", param="messages")
        return self.encode((reasoning_effort or "") + "".join(lines))

    def chat_parser(self, *, tools: bool = False) -> OutputParser:
        return ByteParser()

    def text_parser(self) -> OutputParser:
        return ByteParser()
