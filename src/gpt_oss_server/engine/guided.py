"""Guided decoding beside the step loop: who is guided, by what, and what each may say next.

Knows: which sequences are guided, when their masks are computed. Does not know: how a grammar
is compiled (`guided_forge`), how a guide is followed (`guided_walk`), logits.

A guided job first waits, outside the batcher and without KV, until its grammars are compiled. In
each step that samples it, its mask is computed in a thread while the model's forward pass runs; the
sampler asks for it afterwards. Where a sequence is in its guide follows from its output alone and
survives preemption.
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Sequence as Seq
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from gpt_oss_server.engine.guided_forge import Forge, Made
from gpt_oss_server.engine.guided_grammar import GrammarError, check_length
from gpt_oss_server.engine.guided_spec import check_spec
from gpt_oss_server.engine.guided_vocab import Bits, clear_bits
from gpt_oss_server.engine.guided_walk import Guide, Walk
from gpt_oss_server.engine.sequence import Sequence
from gpt_oss_server.errors import BadRequest
from gpt_oss_server.types import Grammar, GuidedSpec

SLOW_FILL_S: Final = 2.0
"""A mask that takes this long stalls the whole batch: the job ends."""

MASK_STACK_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Restriction:
    """What the guided rows of a step may say: `allowed[n]` [words], the bits of the token ids for
    row `rows[n]`. `must_end[n]`: nothing but an end is allowed, whatever the minimum length."""

    rows: list[int]
    allowed: npt.NDArray[np.int32]
    must_end: list[bool]


class Guides:
    """All guided sequences of one engine. Used by the thread that steps it."""

    def __init__(
        self, folder: Path, vocab_size: int, end_ids: tuple[int, ...], max_rows: int
    ) -> None:
        self._forge = Forge(folder, vocab_size)
        self._vocab_size = vocab_size
        self._end_ids = tuple(token for token in end_ids if token < vocab_size)
        self._max_rows = max_rows
        self._compiling: dict[int, tuple[Sequence, GuidedSpec, list[Made]]] = {}
        self._walks: dict[int, Walk] = {}
        self._buffer: Bits | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._filling: Future[None] | None = None

    @property
    def compiling(self) -> int:
        """How many jobs wait for their grammars."""
        return len(self._compiling)

    def begin(self, seq: Sequence, spec: GuidedSpec) -> None:
        """Take a job in until its grammars are compiled: `compiled` hands it out again.

        Raises:
            BadRequest: a grammar is too long, or a state or token of the spec does not exist.
        """
        check_spec(spec, self._vocab_size)
        for grammar in spec.grammars:
            try:
                check_length(grammar)
            except GrammarError as error:
                raise _refused(grammar, error) from None
        made = [self._forge.make(grammar) for grammar in spec.grammars]
        self._compiling[seq.key] = (seq, spec, made)

    def compiled(self) -> list[tuple[Sequence, BadRequest | None]]:
        """Jobs whose grammars are done since the last call, with what was wrong with one."""
        ready = []
        for key, (seq, spec, made) in list(self._compiling.items()):
            if all(future.done() for future in made):
                del self._compiling[key]
                ready.append((seq, self._start(seq, spec, made)))
        return ready

    def wait(self, timeout_s: float) -> None:
        """Sleep until some grammar is done, at most `timeout_s`."""
        pending = [f for *_, made in self._compiling.values() for f in made if not f.done()]
        if pending:
            concurrent.futures.wait(
                pending, timeout_s, return_when=concurrent.futures.FIRST_COMPLETED
            )

    def drop(self, seq: Sequence) -> bool:
        """Forget a sequence. Returns whether it was still waiting for its grammars."""
        self._walks.pop(seq.key, None)
        return self._compiling.pop(seq.key, None) is not None

    def walk(self, seq: Sequence) -> Walk | None:
        """Where a sequence is in its guide; None for an unguided one."""
        return self._walks.get(seq.key)

    # One step: `prepare` before the forward pass, `restriction` behind it, then `settle`.

    def prepare(self, seqs: Seq[Sequence]) -> None:
        """Begin to compute the masks of those of `seqs`, about to sample, that are guided."""
        walks = [walk for seq in seqs if (walk := self._walks.get(seq.key)) is not None]
        if walks:
            rows = self._rows()[: len(walks)]
            self._filling = self._threads().submit(_fill, walks, rows)

    def restriction(self, seqs: Seq[Sequence]) -> Restriction | None:
        """What `prepare` began, for the same `seqs`; None if none of them is guided."""
        filling, self._filling = self._filling, None
        if filling is None:
            return None
        filling.result()
        rows = [n for n, seq in enumerate(seqs) if seq.key in self._walks]
        allowed = self._rows()[: len(rows)]
        must_end = [_only_ends(allowed[n], seqs[row]) for n, row in enumerate(rows)]
        return Restriction(rows, allowed, must_end)

    def settle(self, seqs: Seq[Sequence], tokens: Seq[int]) -> list[int]:
        """Go on by one token each. Returns the tokens to use: others than `tokens` where these
        would leave a sequence no way to the end of its guide."""
        return [
            token if (walk := self._walks.get(seq.key)) is None else walk.take(token)
            for seq, token in zip(seqs, tokens, strict=True)
        ]

    def _start(self, seq: Sequence, spec: GuidedSpec, made: list[Made]) -> BadRequest | None:
        grammars = []
        for grammar, future in zip(spec.grammars, made, strict=True):
            try:
                grammars.append(future.result())
            except GrammarError as error:
                return _refused(grammar, error)
        vocabulary = self._forge.vocabulary()
        stops = {token for token in seq.stop_ids if not vocabulary.is_text(token)}
        ends = tuple(sorted({*self._end_ids, *stops}))
        guide = Guide(spec, tuple(grammars), vocabulary, ends)
        fewest = guide.distance(0)
        if fewest > seq.max_tokens:
            return BadRequest(
                f"'max_tokens' leaves room for {seq.max_tokens} tokens, but the shortest output "
                f"that was found to match '{guide.param}' has {fewest}.",
                param="max_tokens",
            )
        self._walks[seq.key] = Walk(guide, seq.max_tokens)
        return None

    def _rows(self) -> Bits:
        if self._buffer is None:
            words = self._forge.vocabulary().words
            self._buffer = np.zeros((self._max_rows, words), dtype=np.int32)
        return self._buffer

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            before = threading.stack_size(MASK_STACK_BYTES)
            try:
                self._pool = ThreadPoolExecutor(1, thread_name_prefix="masks")
                self._pool.submit(time.monotonic).result()
            finally:
                threading.stack_size(before)
        return self._pool


def _fill(walks: list[Walk], rows: Bits) -> None:
    for walk, row in zip(walks, rows, strict=True):
        began_s = time.monotonic()
        walk.fill(row)
        if time.monotonic() - began_s > SLOW_FILL_S:
            walk.fail("it takes too long to follow")
            row[:] = -1


def _only_ends(allowed: Bits, seq: Sequence) -> bool:
    """Whether nothing but tokens that end `seq` is allowed; asked only where it matters."""
    if seq.output_len >= seq.job.sampling.min_tokens:
        return False
    rest = allowed.copy()
    clear_bits(rest, list(seq.stop_ids))
    return not rest.any()


def _refused(grammar: Grammar, error: GrammarError) -> BadRequest:
    return BadRequest(f"Invalid value for '{grammar.param}': {error}.", param=grammar.param)
