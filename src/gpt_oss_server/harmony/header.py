"""What stands between `<|start|>` and `<|message|>`: role, channel, recipient, content type.

Knows: harmony's header grammar, and when a text cannot be a header at all. Does not know: tokens,
message bodies.

A header is kept as the text of its three sections: before `<|channel|>` (role), behind it
(channel) and behind `<|constrain|>` (content type). The recipient `to=X` may stand in the first or
the second. Source: https://github.com/openai/harmony/blob/main/docs/format.md, "Receiving tool
calls", and its published parser, which also takes `to=X` without a space before what follows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from gpt_oss_server.ports import PieceKind

Section = Literal["implied", "role", "channel", "constrain"]

MAX_SECTION_CHARS: Final = 200
"""A function name may have 64 characters; no header section needs more than this."""

CHANNELS: Final = ("analysis", "commentary", "final")
FUNCTIONS: Final = "functions."

_NOT_TOOLS = frozenset({"assistant", "user", "all"})
_TYPES = ("json", "code", "text")
_KNOWN: dict[Section, tuple[str, ...]] = {
    "role": ("assistant", "user", "system", "developer", "tool", FUNCTIONS, "to=", *_TYPES),
    "channel": (*CHANNELS, "to=", *_TYPES),
    "constrain": _TYPES,
}
_RECIPIENT = re.compile(r"(?:^|\s)to=(\S*)")

# The role is implied where generation starts: only a recipient may stand before the channel.
_IMPLIED = re.compile(r"\s*(?:t|to|to=[\w.:/-]*(?:\s+[\w.:/-]*)?)?\s*", re.ASCII)
_WORDS = re.compile(r"\s*(?:[\w.:=/-]+\s+){0,2}[\w.:=/-]*\s*", re.ASCII)


@dataclass(frozen=True)
class Destination:
    """Where a message's body goes. `recipient` is the bare function name of a tool call."""

    kind: PieceKind
    recipient: str | None = None


def could_be_header(section: Section, text: str) -> bool:
    """Whether a section may read like this, or go on to. Cheap: called for every header token."""
    if len(text) > MAX_SECTION_CHARS:
        return False
    pattern = _IMPLIED if section == "implied" else _WORDS
    return pattern.fullmatch(text) is not None


def is_framing(section: Section, text: str) -> bool:
    """Whether a section of a header that never led to a message is mere framing (`analy`), as
    opposed to an answer that strayed into it (`Hello`)."""
    words = text.split()
    if section == "implied":
        return not text or bool(words and words[0].startswith("to="))
    known = _KNOWN[section]
    return all(
        word.startswith(("to=", FUNCTIONS)) or any(name.startswith(word) for name in known)
        for word in words
    )


def destination(role: str, channel: str) -> Destination:
    """What a complete header's sections mean.

    `to=functions.X` is a tool call on any channel, another recipient only on commentary (models
    sometimes forget the namespace); the analysis channel is reasoning; all the rest is content:
    final, commentary to the user (a preamble), unknown channels and no channel at all.
    """
    name = channel.split()[0] if channel.split() else ""
    match = _RECIPIENT.search(role) or _RECIPIENT.search(channel)
    recipient = match[1] if match else ""
    if recipient.startswith(FUNCTIONS):
        return Destination("tool_call", recipient.removeprefix(FUNCTIONS))
    if name == "commentary" and recipient and recipient not in _NOT_TOOLS:
        return Destination("tool_call", recipient)
    return Destination("reasoning" if name == "analysis" else "content")
