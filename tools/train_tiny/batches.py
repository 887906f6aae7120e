"""Scenes to rows of token ids with their targets.

Knows: the renderer that the server itself uses, how harmony frames what the model says, how
conversations with a common beginning share it in one row. Does not know: torch, the model.

A row is a tree of depth one: the scene's system and developer message, then its conversations one
after another. A token sees the beginning and its own conversation, and its position continues from
the end of the beginning; so each conversation is computed exactly as if it stood alone.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from queue import Full

import numpy as np
from numpy.typing import NDArray
from tools.train_tiny.conversations import Exchange, Say, Scene, scene

from gpt_oss_server.harmony.render import HarmonyRenderer
from gpt_oss_server.harmony.specials import HarmonySpecials
from gpt_oss_server.harmony.tokenizer import Tokenizer

IGNORED = -1
TOOL_SHARE = 0.6

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Rows of one length. `segments` is 0 in the common beginning, -1 in padding; `targets` is
    the next token where it is to be learned, else IGNORED. All of shape [rows, tokens]."""

    tokens: Ints
    targets: Ints
    segments: Ints
    positions: Ints


class Encoder:
    """Text to ids, the way the server does it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._specials = HarmonySpecials.of(tokenizer)
        self._renderer = HarmonyRenderer(tokenizer)
        self.pad_id = tokenizer.id_of("<|endoftext|>") or 0

    def prompt(self, made: Scene, exchange: Exchange) -> list[int]:
        """The ids that the server would give to the model."""
        return self._renderer.render(
            exchange.messages,
            today=made.today,
            reasoning_effort=made.effort,
            tools=made.tools or None,
        )

    def opening(self, made: Scene) -> list[int]:
        """The ids that all prompts of a scene begin with."""
        ids = self._renderer.render(
            made.head, today=made.today, reasoning_effort=made.effort, tools=made.tools or None
        )
        return ids[: len(ids) - 1 - len(self._tokenizer.encode("assistant"))]

    def said(self, say: Say) -> tuple[list[int], list[int]]:
        """What is given (the header of a forced call) and what is to be learned."""
        sp, text = self._specials, self._tokenizer.encode
        ids: list[int] = []
        if say.analysis is not None:
            ids += [sp.channel, *text("analysis"), sp.message, *text(say.analysis), sp.end]
            ids += [sp.start, *text("assistant")]
        if say.call is None:
            ids += [sp.channel, *text("final"), sp.message, *text(say.final or ""), sp.return_]
            return [], ids
        name, arguments = say.call
        header = [sp.channel, *text(f"commentary to=functions.{name} "), sp.constrain]
        header += [*text("json"), sp.message]
        body = [*text(arguments), sp.call]
        return (header, body) if say.forced else ([], [*ids, *header, *body])

    def thread(
        self, made: Scene, exchanges: Sequence[Exchange], opening: int
    ) -> list[tuple[list[int], list[bool]]]:
        """Ids behind the opening, and which of them are learned; exchanges that continue each
        other become one sequence, the others (reasoning is not passed back) several."""
        found: list[tuple[list[int], list[bool]]] = []
        for exchange in exchanges:
            prompt = self.prompt(made, exchange)[opening:]
            given, learned = self.said(exchange.say)
            ids = prompt + given + learned
            mask = [False] * (len(prompt) + len(given)) + [True] * len(learned)
            if found and prompt[: len(found[-1][0])] == found[-1][0]:
                earlier = found.pop()[1]
                mask[: len(earlier)] = earlier
            found.append((ids, mask))
        return found


def encoded(encoder: Encoder, made: Scene) -> tuple[list[int], list[tuple[list[int], list[bool]]]]:
    """A scene's opening and its sequences."""
    opening = encoder.opening(made)
    sequences = [s for t in made.threads for s in encoder.thread(made, t, len(opening))]
    return opening, sequences


def row(
    encoder: Encoder, rng: random.Random, length: int
) -> list[tuple[list[int], list[bool], int, int]]:
    """One row's parts, (ids, learned, segment, first position), at most `length` tokens."""
    with_tools = rng.random() < TOOL_SHARE
    while True:
        made = scene(rng, with_tools=with_tools, threads=12)
        opening, sequences = encoded(encoder, made)
        parts = [(opening, [False] * len(opening), 0, 0)]
        left = length - len(opening)
        for ids, learned in sequences:
            if len(ids) <= left:
                parts.append((ids, learned, len(parts), len(opening)))
                left -= len(ids)
        if len(parts) > 2:
            return parts


def batch(encoder: Encoder, *, seed: int, step: int, rows: int, length: int) -> Batch:
    """The batch of one step: the same for the same arguments."""
    rng = random.Random(f"{seed}/{step}")
    shape = (rows, length)
    tokens = np.full(shape, encoder.pad_id, dtype=np.int64)
    targets = np.full(shape, IGNORED, dtype=np.int64)
    segments = np.full(shape, -1, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    for r in range(rows):
        at = 0
        for ids, learned, segment, first in row(encoder, rng, length):
            end = at + len(ids)
            tokens[r, at:end] = ids
            segments[r, at:end] = segment
            positions[r, at:end] = np.arange(first, first + len(ids))
            for n, (_, now) in enumerate(pairwise(learned)):
                if now:
                    targets[r, at + n] = ids[n + 1]
            at = end
    return Batch(tokens, targets, segments, positions)


def batches(
    encoder: Encoder, *, seed: int, first: int, last: int, rows: int, length: int
) -> Iterator[Batch]:
    """The batches of steps `first` to `last` - 1, made one ahead in another process."""
    import multiprocessing

    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[Batch] = context.Queue(maxsize=4)

    parent = os.getpid()

    def produce() -> None:
        for step in range(first, last):
            made = batch(encoder, seed=seed, step=step, rows=rows, length=length)
            while os.getppid() == parent:
                with contextlib.suppress(Full):
                    queue.put(made, timeout=5.0)
                    break
            else:  # whoever wanted the batches is gone
                queue.cancel_join_thread()
                return

    producer = context.Process(target=produce, daemon=True)
    producer.start()
    try:
        for _ in range(first, last):
            yield queue.get()
    finally:
        producer.terminate()
        producer.join()
