"""Our engine in this process, driven step by step through its public seam.

Knows: `EngineCore`, jobs, the phases that it tells of. Does not know: what is measured.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from gpt_oss_server.engine.core import EngineCore, StepEvents
from gpt_oss_server.engine.guided import Guides
from gpt_oss_server.engine.outfit import equip
from gpt_oss_server.engine.runner import Runner
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.types import Job, SamplingParams
from gpu_bench.settings import Settings
from gpu_bench.shapes import SEED

WARM_STEPS = 8
"""For clocks, caches, the first replays."""


def allocated_bytes() -> int:
    """By tensors on the GPU; 0 on a CPU."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


@dataclass(frozen=True)
class Phase:
    """What start-up said, how long it was until it said the next, and what was allocated then."""

    says: str
    seconds: float
    bytes: int


class Drive:
    """One engine, and a source of prompts that share no prefix."""

    def __init__(self, settings: Settings, form: str) -> None:
        self._said: list[tuple[str, float, int]] = []
        spec = EngineSpec(**settings.engine(form))
        self._tell("starting")
        outfit = equip(spec, self._tell)
        make_runner = outfit.make_runner

        def kept(guides: Guides) -> Runner:
            self.runner = make_runner(guides)
            return self.runner

        self.core = EngineCore(spec, self._tell, replace(outfit, make_runner=kept))
        self._tell("ready")
        self.vocab = self.core.info().vocab_size
        self._random = random.Random(SEED)
        self._key = 0

    def _tell(self, line: str) -> None:
        self._said.append((line, time.perf_counter(), allocated_bytes()))

    def phases(self) -> list[Phase]:
        """In order; the last one is the start of the first step."""
        pairs = zip(self._said, self._said[1:], strict=False)
        return [Phase(said, then - at, held) for (said, at, _), (_, then, held) in pairs]

    def prompt(self, tokens: int) -> list[int]:
        return [self._random.randrange(self.vocab) for _ in range(tokens)]

    def submit(self, prompt: list[int], output: int) -> int:
        """A greedy job; returns its key."""
        self._key += 1
        sampling = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)
        self.core.submit(self._key, Job(id=str(self._key), prompt=prompt, sampling=sampling))
        return self._key

    def step(self) -> StepEvents:
        """One step; returns when its tokens are on the host. Raises RuntimeError for a failure."""
        events = self.core.step()
        if events.failures:
            raise RuntimeError(str(events.failures[0][1]))
        return events

    def tokens(self) -> int:
        """One step's count of tokens."""
        return sum(len(delta.token_ids) for _, delta in self.step().deltas)

    def drain(self) -> dict[int, list[int]]:
        """Step until nothing is left; the tokens by key."""
        said: dict[int, list[int]] = {}
        while self.core.has_work:
            for key, delta in self.step().deltas:
                said.setdefault(key, []).extend(delta.token_ids)
        return said

    @contextmanager
    def decoding(self, batch: int, context: int, room: int) -> Iterator[dict[int, int]]:
        """`batch` sequences that decode, each with at least `room` tokens to come: the tokens that
        each has by then, `context` or a few more, by key. What is left of them is cancelled."""
        output = room + 16 * batch + 64  # the first ones go on while the last ones begin
        keys = [self.submit(self.prompt(context), output) for _ in range(batch)]
        lengths = dict.fromkeys(keys, context)
        began: set[int] = set()
        warm = 0
        while warm < WARM_STEPS:
            for key, delta in self.step().deltas:
                began.add(key)
                lengths[key] += len(delta.token_ids)
            warm += len(began) == batch
        yield lengths
        for key in keys:
            self.core.cancel(key)
        self.drain()


class Recorded:
    """A sampler that keeps the logits that each sequence's tokens were drawn from."""

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self.logits: dict[int, list[torch.Tensor]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)

    def draw(self, logits: torch.Tensor, seqs: Any, rows: Any = None) -> Any:
        which = range(len(seqs)) if rows is None else rows.tolist()
        for row, seq in zip(which, seqs, strict=True):
            self.logits.setdefault(seq.key, []).append(logits[row].clone())
        return self._sampler.draw(logits, seqs, rows)


@contextmanager
def recorded(drive: Drive) -> Iterator[Recorded]:
    """While this is open, logits are kept."""
    before = drive.runner.sampler
    keeping = Recorded(before)
    drive.runner.sampler = keeping  # type: ignore[assignment]
    try:
        yield keeping
    finally:
        drive.runner.sampler = before


@contextmanager
def waiting() -> Iterator[Callable[[], float]]:
    """While this is open, the seconds that the host waited for results of the device."""
    from gpt_oss_server.engine.staging import Fetched

    plain, total_s = Fetched.wait, 0.0

    def timed(self: Fetched) -> list[torch.Tensor]:
        nonlocal total_s
        began_s = time.perf_counter()
        held = plain(self)
        total_s += time.perf_counter() - began_s
        return held

    Fetched.wait = timed  # type: ignore[method-assign]
    try:
        yield lambda: total_s
    finally:
        Fetched.wait = plain  # type: ignore[method-assign]
