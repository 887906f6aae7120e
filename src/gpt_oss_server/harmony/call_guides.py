"""Calls in the form of a chat template, as a machine over the model's tokens.

Knows: what of a call is fixed text and where arguments stand in it. Does not know: how a template
is read (`call_forms`), grammars, the engine that follows a guide.

    head of a function → its arguments → tail → the end, or the head of another call
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from gpt_oss_server.harmony.call_forms import CallForm
from gpt_oss_server.types import (
    GUIDE_END,
    FixedText,
    FreeText,
    Grammar,
    GrammarText,
    GuidedSpec,
)

_BETWEEN: Final = "\n"


def template_call_guide(
    form: CallForm,
    encode: Callable[[str], Sequence[int]],
    ends: Sequence[int],
    arguments: Mapping[str, Grammar],
    *,
    required: bool,
    parallel: bool,
) -> GuidedSpec | None:
    """Holds a turn to calls of the functions, with arguments of their grammars.

    Args:
        encode: text to ids, with the model's own marks as the tokens they are.
        ends: tokens that end a turn; at least one.
        required: the turn is calls and nothing else. Otherwise text may come before or in place
            of them, which takes an opening that is one token.
        parallel: several calls may follow each other, where the form has an opening.

    Returns:
        None where the form cannot be told from free text by one token, or no token ends a turn.
    """
    heads = [tuple(encode(form.head_of(name))) for name in arguments]
    opening = {head[0] for head in heads}
    if not ends:
        return None
    first = 0 if required else 1
    bodies = first + 1
    tails = bodies + len(heads)
    starts = [(head, bodies + i) for i, head in enumerate(heads)]
    opened: list[FixedText | FreeText] = [FixedText(tuple(starts))]
    if not required:
        if not form.opening or opening != {*encode(form.opening)} or len(opening) > 1:
            return None
        exits = {next(iter(opening)): first, **dict.fromkeys(ends, GUIDE_END)}
        rest = tuple((head[1:], state) for head, state in starts)
        opened = [FreeText(exits), FixedText(rest)]
    tail, *behind = encode(form.tail)
    closings = [((*behind, end), GUIDE_END) for end in ends]
    if parallel and form.opening:
        between = tuple(encode(_BETWEEN))
        closings += [((*behind, *between, *head), state) for head, state in starts]
    return GuidedSpec(
        tuple(arguments.values()),
        (
            *opened,
            *(GrammarText(i, {tail: tails}) for i in range(len(heads))),
            FixedText(tuple(closings)),
        ),
    )
