"""`truncation: auto`: a conversation that is too long loses its beginning.

Knows: which beginnings of a conversation can be left out. Does not know: items, how messages are
rendered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Message = dict[str, Any]
_INSTRUCTIONS = ("system", "developer")
OPEN_OUTPUT_TOKENS = 1024
"""The room left for an answer whose bound is open, if the context has four times as much."""


def room_for_prompt(max_model_len: int, max_output_tokens: int | None) -> int:
    """The most tokens that the prompt may have."""
    wanted = max_output_tokens or min(OPEN_OUTPUT_TOKENS, max_model_len // 4)
    return max_model_len - min(wanted, max_model_len - 1)


def render_fitting(
    messages: Sequence[Message],
    render: Callable[[Sequence[Message]], list[int]],
    fewest_tokens: Callable[[Sequence[Message]], int],
    room_tokens: int,
) -> list[int]:
    """The prompt of as much of the conversation's end as has room, instructions always included.

    Where not even the last message has room, its prompt comes back nevertheless: too long, for
    the caller to refuse. `fewest_tokens` is a cheap lower bound of the length of `render`'s result.
    """

    def fitting(kept: Sequence[Message]) -> list[int] | None:
        if fewest_tokens(kept) > room_tokens:
            return None
        ids = render(kept)
        return ids if len(ids) <= room_tokens else None

    if (ids := fitting(messages)) is not None:
        return ids
    cuts = _cuts(messages)
    low, high, best = 0, len(cuts), None
    while low < high:
        middle = (low + high) // 2
        if (ids := fitting(_from(messages, cuts[middle]))) is not None:
            best, high = ids, middle
        else:
            low = middle + 1
    return best if best is not None else render(_from(messages, cuts[-1] if cuts else 0))


def _cuts(messages: Sequence[Message]) -> list[int]:
    """Where the conversation may begin: not with a tool's output, whose call would be missing."""
    return [
        index
        for index, message in enumerate(messages)
        if message["role"] not in (*_INSTRUCTIONS, "tool")
    ]


def _from(messages: Sequence[Message], cut: int) -> list[Message]:
    """What is left. An output further on whose call was before the cut goes with it."""
    kept = [message for message in messages[:cut] if message["role"] in _INSTRUCTIONS]
    called: set[str] = set()
    for message in messages[cut:]:
        called.update(call["id"] for call in message.get("tool_calls") or ())
        if message["role"] != "tool" or message["tool_call_id"] in called:
            kept.append(message)
    return kept
