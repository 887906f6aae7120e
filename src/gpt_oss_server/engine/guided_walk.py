"""One guided sequence on its way through its guide, token by token.

Knows: the states of a `GuidedSpec`, a matcher, how many tokens are left. Does not know: logits,
batches, threads. `fill` (which tokens may come next) is called before each token, from any
thread; `take` (this one came) after it; never both at once.

A guide is followed to its end whatever the bound on output, if the bound leaves room at all: while
tokens are plentiful, only the grammar restricts. Once they are not, a token is taken only if there
is still a way to the end behind it, and the way itself is followed where there is none to spare.
Where that begins depends on how much a single token can commit the text to (`guided_demand`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from llguidance import LLMatcher

from gpt_oss_server.engine.guided_closing import Way, closing_of
from gpt_oss_server.engine.guided_grammar import one_line
from gpt_oss_server.engine.guided_vocab import Bits, GuidedVocabulary, has_bit, set_bits
from gpt_oss_server.types import GUIDE_END, FixedText, FreeText, GrammarText, GuidedSpec

_MOST: Final = 1 << 30
LEAST_MARGIN_TOKENS: Final = 32
"""From so many spare tokens on every token is watched, whatever the grammar."""

RETRY_TOKENS: Final = 2
"""How soon to look again after no way was found; some tokens on, there often is one."""


@dataclass(frozen=True)
class CompiledGrammar:
    """A matcher at its start, only ever copied, and a short complete text; by how many tokens one
    token can lengthen the way to the end, at most about."""

    prototype: LLMatcher
    closing: Way
    demand_tokens: int
    json: bool


class Guide:
    """A spec with its grammars compiled; shared by all sequences that follow it."""

    def __init__(
        self,
        spec: GuidedSpec,
        grammars: tuple[CompiledGrammar, ...],
        vocabulary: GuidedVocabulary,
        end_ids: tuple[int, ...],
    ) -> None:
        """`end_ids` end a grammar that names no exits of its own."""
        self.end_exits = dict.fromkeys(end_ids, GUIDE_END)
        self.states = spec.states
        self.param = spec.grammars[0].param if spec.grammars else None
        self.grammars = grammars
        self.vocabulary = vocabulary
        self._distances = self._measure()

    def distance(self, state: int) -> int:
        """Tokens from the beginning of a state to the guide's end: what must be left for it."""
        return 0 if state == GUIDE_END else self._distances[state]

    def tail(self, exits: dict[int, int]) -> int:
        """Tokens from a place where one of `exits` is allowed to the guide's end."""
        return min((1 + self.distance(state) for state in exits.values()), default=0)

    def _measure(self) -> list[int]:
        self._distances = [_MOST] * len(self.states)
        for _ in self.states:
            self._distances = [min(self._length(state), _MOST) for state in self.states]
        return self._distances

    def _length(self, state: FreeText | FixedText | GrammarText) -> int:
        match state:
            case FreeText(exits, share):
                return 0 if share is None else self.tail(exits)
            case FixedText(paths):
                return min(len(path) + self.distance(next_state) for path, next_state in paths)
            case GrammarText(grammar, exits):
                return len(self.grammars[grammar].closing) + self.tail(exits or self.end_exits)


class Walk:
    """Where one sequence is in its guide.

    Attributes:
        ended: the guide is complete; nothing may follow.
        shortened: the bound on output, not the model, decided how the text ends.
        failure: why the guide cannot be followed any further, in one line.
        param: the request's field that asked for the guide.
    """

    def __init__(self, guide: Guide, bound_tokens: int) -> None:
        self._guide = guide
        self._vocabulary = guide.vocabulary
        self._bound = bound_tokens
        self._taken = 0
        self.ended = False
        self.shortened = False
        self.failure: str | None = None
        self.param = guide.param
        self._enter(0)

    def fill(self, row: Bits) -> None:
        """Write the set of tokens that may come next. With a failure, all of them."""
        match self._state:
            case FixedText():
                row[:] = 0
                paths = [p for p in self._paths if self._fits(p)] or self._paths
                set_bits(row, [path[self._inside] for path, _ in paths])
            case FreeText(exits):
                row[:] = 0 if self._must_leave() else self._vocabulary.text_bits
                set_bits(row, self._fitting(exits))
            case GrammarText():
                self._fill_grammar(row)
        if not row.any():
            self.fail("nothing can follow what has been said")
        if self.failure is not None:
            row[:] = -1

    def take(self, token: int) -> int:
        """Go on by one token that `fill` allowed. Returns the token to use in its place: another
        one where this one would leave no way to the end."""
        if self.ended or self.failure is not None:
            return token
        self._taken += 1
        self._inside += 1
        match self._state:
            case FixedText():
                self._take_fixed(token)
            case FreeText(exits):
                if token in exits:
                    self._enter(exits[token])
            case GrammarText():
                return self._take_grammar(token)
        return token

    def fail(self, reason: str) -> None:
        """Give up; the first reason stands."""
        self.failure = self.failure or reason

    @property
    def _left(self) -> int:
        return self._bound - self._taken

    def _enter(self, state: int) -> None:
        self._inside = 0
        if state == GUIDE_END:
            self.ended = True
            return
        self._index = state
        self._state = self._guide.states[state]
        match self._state:
            case FixedText(paths):
                self._paths = list(paths)
            case GrammarText(grammar, exits):
                chosen = self._guide.grammars[grammar]
                self._matcher = chosen.prototype.deep_copy()
                self._json = chosen.json
                self._exits = exits or self._guide.end_exits
                self._tail = self._guide.tail(self._exits)
                self._margin = max(LEAST_MARGIN_TOKENS, chosen.demand_tokens)
                self._follow(chosen.closing)

    def _fits(self, path: tuple[tuple[int, ...], int]) -> bool:
        tokens, state = path
        return len(tokens) - self._inside + self._guide.distance(state) <= self._left

    def _take_fixed(self, token: int) -> None:
        at = self._inside - 1
        self._paths = [path for path in self._paths if path[0][at] == token]
        for tokens, state in self._paths:
            if len(tokens) == self._inside:
                self._enter(state)
                return

    def _fitting(self, exits: dict[int, int]) -> list[int]:
        """Those with room for what comes behind them. A text without a share has no room kept
        free: where it is too late to leave it, it is cut off, and not what follows it."""
        distance = self._guide.distance
        return [token for token, state in exits.items() if 1 + distance(state) <= self._left]

    def _must_leave(self) -> bool:
        state = self._state
        if not isinstance(state, FreeText) or state.share is None:
            return False
        used_up = self._inside >= int(state.share * self._bound)
        return used_up or self._left <= self._guide.distance(self._index)

    # Inside a grammar.

    def _fill_grammar(self, row: Bits) -> None:
        if not self._narrow and self._taken >= self._look_again:
            self._follow(self._way())
        self._matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        complete = has_bit(row, self._vocabulary.end_id)
        row &= self._vocabulary.text_bits
        if complete:
            set_bits(row, list(self._exits))
        if self._matcher.is_error():
            self.fail(one_line(self._matcher.get_error()))

    def _take_grammar(self, token: int) -> int:
        # An exit may be text, and then stand inside the grammar's text as well.
        if token in self._exits and self._matcher.is_accepting():
            self._enter(self._exits[token])
            return token
        if not self._matcher.consume_token(token):
            self.fail(one_line(self._matcher.get_error()))
            return token
        if self._narrow:
            token = self._stay_on_way(token, self._known)
        if not self.ended and not self._exits:  # a model without an end token
            stopped = self._matcher.is_stopped()
            self.ended = stopped or (self._narrow and not self._known)
            self.shortened |= self.ended and not stopped
        return token

    def _stay_on_way(self, token: int, way: Way) -> int:
        """`way` led to the end before `token`. Keep one that does, if need be by going `way`."""
        if way and way.ids[0] == token:
            self._follow(way.behind(self._vocabulary))
            return token
        found = self._way()
        if found is not None:
            self._follow(found)
            return token
        self._matcher.rollback(1)
        self.shortened = True
        if not way:
            token = min(self._exits)
            self._enter(self._exits[token])
            return token
        self._matcher.consume_token(way.ids[0])
        self._follow(way.behind(self._vocabulary))
        return way.ids[0]

    def _follow(self, way: Way | None) -> None:
        """Note a way to the end (None: none was found) and when to look for it again."""
        self._narrow = False
        if way is None:
            self._look_again = self._taken + RETRY_TOKENS
            return
        self._known = way
        spare = self._left - len(way) - self._tail
        self._narrow = spare <= self._margin
        self._look_again = self._taken + max(1, spare // self._margin)

    def _way(self) -> Way | None:
        """A way to the end from here, for which there is room."""
        return closing_of(
            self._matcher,
            self._vocabulary,
            json=self._json,
            most_tokens=self._left - self._tail,
            known=self._known,
        )
