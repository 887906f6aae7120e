"""Compiles grammars beside the step loop, each once.

Knows: lanes (threads), the cache, what a compiled grammar weighs. Does not know: sequences or
steps. Nothing is started, and no vocabulary read, before the first grammar comes.
"""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Final

import msgspec

from gpt_oss_server.engine.guided_closing import MAX_BYTES, shortest_text
from gpt_oss_server.engine.guided_demand import demand_tokens
from gpt_oss_server.engine.guided_grammar import COMPILE_STACK_BYTES, GrammarError, compiled
from gpt_oss_server.engine.guided_trial import Trial
from gpt_oss_server.engine.guided_vocab import GuidedVocabulary, load_vocabulary
from gpt_oss_server.engine.guided_walk import CompiledGrammar
from gpt_oss_server.types import Grammar

LANES: Final = 2
MAX_CACHED: Final = 128
MAX_CACHED_SOURCE_BYTES: Final = 4 << 20
"""A compiled grammar takes up to 40 times its source: 160 MiB for a full cache."""

Made = Future[CompiledGrammar]
_Task = tuple[Grammar, Made]


class Forge:
    """Grammars in, futures of compiled grammars out. `make` is called from one thread.

    A grammar that does not compile is remembered like one that does: whoever sends it again is
    refused at once.
    """

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self._load = _Once(lambda: load_vocabulary(folder, vocab_size))
        self._tasks: queue.SimpleQueue[_Task] = queue.SimpleQueue()
        self._lanes = 0
        self._made: OrderedDict[Grammar, Made] = OrderedDict()
        self._source_bytes = 0

    def make(self, grammar: Grammar) -> Made:
        """The future ends in a CompiledGrammar or a GrammarError."""
        key = msgspec.structs.replace(grammar, param="")
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = Future()
            self._source_bytes += len(grammar.source)
            self._tasks.put((grammar, made))
            self._add_lane()
            self._evict()
        self._made.move_to_end(key)
        return made

    def vocabulary(self) -> GuidedVocabulary:
        """Valid once any grammar has been compiled."""
        return self._load()

    def _evict(self) -> None:
        """Forget the longest unused. Whoever holds one keeps it alive."""
        while len(self._made) > MAX_CACHED or self._source_bytes > MAX_CACHED_SOURCE_BYTES:
            if len(self._made) == 1:
                break
            grammar, _ = self._made.popitem(last=False)
            self._source_bytes -= len(grammar.source)

    def _add_lane(self) -> None:
        if self._lanes == LANES:
            return
        self._lanes += 1
        # The size is the process's default for new threads: set it back at once.
        before = threading.stack_size(COMPILE_STACK_BYTES)
        try:
            threading.Thread(target=self._work, name="grammars", daemon=True).start()
        finally:
            threading.stack_size(before)

    def _work(self) -> None:
        trial = Trial()
        while True:
            grammar, made = self._tasks.get()
            try:
                made.set_result(self._compile(trial, grammar))
            except GrammarError as error:
                made.set_exception(error)
            except Exception as error:  # noqa: BLE001 - a lane must live; the job is refused
                made.set_exception(GrammarError(f"it cannot be compiled ({type(error).__name__})"))

    def _compile(self, trial: Trial, grammar: Grammar) -> CompiledGrammar:
        trial.judge(grammar)
        vocabulary = self._load()
        prototype = compiled(vocabulary.tokenizer, grammar)
        json = grammar.kind in ("json_object", "json_schema")
        closing = shortest_text(prototype, vocabulary, json=json)
        if closing is None:
            raise GrammarError(f"no text of at most {MAX_BYTES} bytes that matches it was found")
        demand = demand_tokens(grammar, lambda text: len(vocabulary.ids_of(text.encode())))
        return CompiledGrammar(prototype, closing, demand, json)


class _Once:
    """A value made by whoever needs it first; an error is raised again for all others."""

    def __init__(self, make: Callable[[], GuidedVocabulary]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._value: GuidedVocabulary | None = None
        self._error: GrammarError | None = None

    def __call__(self) -> GuidedVocabulary:
        with self._lock:
            if self._error is not None:
                raise GrammarError(str(self._error))
            if self._value is None:
                try:
                    self._value = self._make()
                except GrammarError as error:
                    self._error = error
                    raise
            return self._value
