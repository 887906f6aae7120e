"""What a model is held to, as a machine over its own tokens.

Knows: harmony's framing, which tokens begin and end an answer, a call, a chain of thought. Does not
know: grammars (they are text here), the engine that follows a guide.

A guided harmony turn goes

    (analysis, freely) → the header of a final message or of a call → its body → the end

where analysis may be left out. Framing is fixed text: one wording of each header, the one that
this server itself writes into prompts. In free text no special token is possible but the ones
that end it, so nothing breaks out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gpt_oss_server.harmony.specials import HarmonySpecials
from gpt_oss_server.harmony.tokenizer import Tokenizer
from gpt_oss_server.types import (
    GUIDE_END,
    FixedText,
    FreeText,
    Grammar,
    GrammarText,
    GuidedSpec,
)

ANALYSIS_SHARE: Final = 0.75
"""Of the bound on output, how much may go into reasoning before the answer is forced."""

_OPENING: Final = 0
_ANALYSIS: Final = 1
_NEXT: Final = 2
_BODIES: Final = 3

Path = tuple[tuple[int, ...], int]


class HarmonyGuides:
    """Builds guides for one vocabulary. Stateless, safe from several threads."""

    def __init__(self, tokenizer: Tokenizer, specials: HarmonySpecials) -> None:
        self._tokenizer = tokenizer
        self._specials = specials

    def answer(self, grammar: Grammar) -> GuidedSpec:
        """Any reasoning, then a final message that is a text of the grammar."""
        final = (self._header("final"), _BODIES)
        body = GrammarText(0, {self._specials.return_: GUIDE_END})
        return self._turn((grammar,), [final], (body,), ANALYSIS_SHARE)

    def calls(
        self,
        arguments: Mapping[str, Grammar],
        *,
        required: bool,
        answer: Grammar | None = None,
    ) -> GuidedSpec:
        """Any reasoning, then a call of one of the functions, with arguments of its grammar.

        Args:
            arguments: by function name; at least one.
            required: a call must come. Otherwise a final message may come in its place.
            answer: what that final message must be. If None it is free text, and a preamble on
                the commentary channel, which clients see as part of it, may come before.
        """
        specials = self._specials
        grammars = [*arguments.values()]
        paths = [(self._call_header(name), _BODIES + i) for i, name in enumerate(arguments)]
        ends = {specials.call: GUIDE_END}
        bodies: list[FreeText | GrammarText] = [GrammarText(i, ends) for i in range(len(grammars))]
        if not required:
            paths.append((self._header("final"), _BODIES + len(bodies)))
            finish = {specials.return_: GUIDE_END}
            if answer is not None:
                bodies.append(GrammarText(len(grammars), finish))
                grammars.append(answer)
            else:
                bodies.append(FreeText(finish))
                paths.append((self._header("commentary"), _BODIES + len(bodies)))
                bodies.append(FreeText({specials.end: _NEXT}))
        share = None if not required and answer is None else ANALYSIS_SHARE
        return self._turn(tuple(grammars), paths, tuple(bodies), share)

    def _turn(
        self,
        grammars: tuple[Grammar, ...],
        paths: list[Path],
        bodies: tuple[FreeText | GrammarText, ...],
        share: float | None,
    ) -> GuidedSpec:
        """States 0 to 2: the opening, analysis, what comes behind it; then the bodies."""
        analysis = (self._header("analysis"), _ANALYSIS)
        start = self._specials.start, *self._tokenizer.encode("assistant")
        return GuidedSpec(
            grammars,
            (
                FixedText((analysis, *paths)),
                FreeText({self._specials.end: _NEXT}, share),
                FixedText(tuple(((*start, *tokens), state) for tokens, state in paths)),
                *bodies,
            ),
        )

    def _header(self, channel: str) -> tuple[int, ...]:
        specials = self._specials
        return (specials.channel, *self._tokenizer.encode(channel), specials.message)

    def _call_header(self, name: str) -> tuple[int, ...]:
        specials = self._specials
        target = self._tokenizer.encode(f"commentary to=functions.{name} ")
        kind = self._tokenizer.encode("json")
        return (specials.channel, *target, specials.constrain, *kind, specials.message)
