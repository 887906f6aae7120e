"""What is said of one parameter, with values that show it.

Knows: nouns. Does not know: any parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["honoured", "no effect", "refused"]


@dataclass(frozen=True)
class Claim:
    """One row of a table.

    Attributes:
        kind: what becomes of it.
        note: for the reader, in Markdown.
        taken: values that are answered 200.
        refused: values that are answered 400 with an error that names the parameter.
        given: other parameters that these values need.
        shows: whether the first of `taken` changes what the engine is asked for or what the
            client gets, so that a test can see it; False where only the note can tell.
    """

    kind: Kind
    note: str = ""
    taken: tuple[Any, ...] = ()
    refused: tuple[Any, ...] = ()
    given: Mapping[str, Any] = field(default_factory=dict)
    shows: bool = True


def honoured(*taken: Any, note: str = "", **more: Any) -> Claim:
    """It does what OpenAI documents."""
    return Claim("honoured", note, taken, **more)


def no_effect(*taken: Any, note: str, **more: Any) -> Claim:
    """It is taken and changes nothing, as OpenAI documents or may do."""
    return Claim("no effect", note, taken, shows=False, **more)


def refused(*values: Any, note: str = "", taken: tuple[Any, ...] = (), **more: Any) -> Claim:
    """It cannot be honoured. `taken` are values that change nothing anyway."""
    return Claim("refused", note, taken, values, shows=False, **more)
