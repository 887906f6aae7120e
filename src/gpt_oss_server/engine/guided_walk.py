"""One guided sequence on its way through its guide, token by token.

Knows: the states of a `GuidedSpec`, a matcher, how many tokens are left. Does not know: logits,
batches, threads. `fill` (which tokens may come next) is called before each token, from any
thread; `take` (this one came) after it; never both at once.

A guide is followed to its end whatever the bound on output, if the bound leaves room at all: while
tokens are plentiful, only the grammar restricts. Once they are not, a token is taken only if there
is still a way to the end behind it, and the way itself is followed where there is none to spare.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from llguidance import LLMatcher

from gpt_oss_server.engine.guided_closing import closing_of, kept_closing
from gpt_oss_server.engine.guided_grammar import one_line
from gpt_oss_server.engine.guided_vocab import Bits, GuidedVocabulary, has_bit, set_bits
from gpt_oss_server.types import GUIDE_END, FixedText, FreeText, GrammarText, GuidedSpec

NEVER: Final = 1 << 30
"""More tokens than any output has."""

MARGIN_TOKENS: Final = 64
"""By how much one token may lengthen the way to the end before this module notices late."""

RETRY_TOKENS: Final = 32


@dataclass(frozen=True)
class CompiledGrammar:
    """A matcher at its start, only ever copied, and a short complete text (None: not found)."""

    prototype: LLMatcher
    closing: tuple[int, ...] | None
    json: bool


class Guide:
    """A spec with its grammars compiled; shared by all sequences that follow it."""

    def __init__(
        self,
        spec: GuidedSpec,
        grammars: tuple[CompiledGrammar, ...],
        vocabulary: GuidedVocabulary,
    ) -> None:
        self.states = spec.states
        self.param = spec.grammars[0].param if spec.grammars else None
        self.grammars = grammars
        self.vocabulary = vocabulary
        self._distances = self._measure()

    def distance(self, state: int) -> int:
        """Tokens from the beginning of a state to the guide's end, at least about."""
        return 0 if state == GUIDE_END else self._distances[state]

    def tail(self, exits: dict[int, int]) -> int:
        """Tokens from a place where one of `exits` is allowed to the guide's end."""
        return min((1 + self.distance(state) for state in exits.values()), default=1)

    def _measure(self) -> list[int]:
        self._distances = [NEVER] * len(self.states)
        for _ in self.states:
            self._distances = [min(self._length(state), NEVER) for state in self.states]
        return self._distances

    def _length(self, state: FreeText | FixedText | GrammarText) -> int:
        match state:
            case FreeText(exits, share):
                return 0 if share is None else self.tail(exits)
            case FixedText(paths):
                return min(len(path) + self.distance(next_state) for path, next_state in paths)
            case GrammarText(grammar, exits):
                closing = self.grammars[grammar].closing
                return NEVER if closing is None else len(closing) + self.tail(exits)


class Walk:
    """Where one sequence is in its guide.

    Attributes:
        ended: the guide is complete; nothing may follow.
        shortened: the bound on output, not the model, decided how the text ends.
        failure: why the guide cannot be followed any further, in one line.
        param: the request's field that asked for the guide.
    """

    def __init__(self, guide: Guide, bound_tokens: int, end_ids: tuple[int, ...]) -> None:
        """`end_ids` end a grammar that names no exits of its own."""
        self._guide = guide
        self._vocabulary = guide.vocabulary
        self._bound = bound_tokens
        self._end_exits = dict.fromkeys(end_ids, GUIDE_END)
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
                set_bits(row, list(exits))
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
                self._exits = exits or self._end_exits
                self._tail = self._guide.tail(self._exits)
                self._margin = max(MARGIN_TOKENS, len(chosen.closing or ()))
                self._follow(None if chosen.closing is None else list(chosen.closing))

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
        if token in self._exits:
            self._enter(self._exits[token])
            return token
        if not self._matcher.consume_token(token):
            self.fail(one_line(self._matcher.get_error()))
            return token
        if self._narrow and self._path is not None:
            token = self._stay_on_path(token, self._path)
        if not self.ended and not self._exits and self._matcher.is_stopped():
            self.ended = True  # a model without an end token
        return token

    def _stay_on_path(self, token: int, path: list[int]) -> int:
        """`path` was a way to the end before `token`. Keep one, if need be by going `path`'s."""
        if path and path[0] == token:
            self._follow(path[1:])
            return token
        way = self._way()
        if way is not None and len(way) + self._tail <= self._left:
            self._follow(way)
            return token
        self._matcher.rollback(1)
        self.shortened = True
        if not path:
            token = min(self._exits, default=token)
            self._enter(self._exits.get(token, GUIDE_END))
            return token
        self._matcher.consume_token(path[0])
        self._follow(path[1:])
        return path[0]

    def _follow(self, path: list[int] | None) -> None:
        """Note a way to the end (None: none is known) and when to look for it again."""
        self._path = path
        self._narrow = False
        if path is None:
            self._look_again = self._taken + RETRY_TOKENS
            return
        spare = self._left - len(path) - self._tail
        self._narrow = 0 <= spare <= self._margin
        # Too late: the text will be cut off, there is nothing to watch for.
        self._look_again = NEVER if spare < 0 else self._taken + max(1, spare // self._margin)

    def _way(self) -> list[int] | None:
        """A way to the end from here: the last one known, if it still leads there, or a new one."""
        if self._path is not None:
            kept = kept_closing(self._matcher, self._vocabulary, self._path)
            if kept is not None:
                return kept
        most = self._left - self._tail
        return closing_of(self._matcher, self._vocabulary, json=self._json, most_tokens=most)
