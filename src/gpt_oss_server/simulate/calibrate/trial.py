"""The closed loops that a server is measured by, and what one of them found.

Knows: how many clients with which prompts and answers, and the rows that come back. Does not know:
how they are run, or what they tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import NamedTuple

TRIMMED = 0.1
"""Share of a loop's slowest and of its fastest requests that its figures leave out: one hiccup of
the machine must not be a point's whole mean."""
LEAST_TOKENS = 8
ROUNDS = 2.5
"""How many times each client must get to ask for a loop to tell anything."""


@dataclass(frozen=True)
class Trial:
    """`concurrency` clients that each ask again soon after they are answered. Tokens are nominal:
    each request draws its own within a fifth of them, so that clients fall out of step.
    `shared_tokens` leading ones of every prompt are the same."""

    concurrency: int
    input_tokens: int
    output_tokens: int
    shared_tokens: int = 0

    @property
    def name(self) -> str:
        cached = f" ({self.shared_tokens} cached)" if self.shared_tokens else ""
        return f"{self.concurrency} × {self.input_tokens}{cached} → {self.output_tokens}"


class Row(NamedTuple):
    """One request of a loop: when it was sent, tokens as the server counted them, seconds from its
    sending. A `ttft_s` that is not a number: nothing of the answer could be seen."""

    at_s: float
    input_tokens: int
    output_tokens: int
    ttft_s: float
    e2e_s: float
    cached_tokens: int = 0


class Figures(NamedTuple):
    """Means of a loop, without its extremes. `tpot_s` is None where no answer has two tokens."""

    ttft_s: float
    tpot_s: float | None
    e2e_s: float


@dataclass(frozen=True)
class Measured:
    """A loop and its requests in the order in which they were sent, pass by pass: the same loop
    played again later tells how steady the server is."""

    trial: Trial
    passes: tuple[tuple[Row, ...], ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        return tuple(row for one in self.passes for row in one)

    def figures(self) -> Figures:
        return steady_figures(self.passes, self.trial.concurrency)

    def spread(self) -> float:
        """Largest over smallest mean time of a whole request among the passes, less one."""
        means = [steady_figures([one], self.trial.concurrency).e2e_s for one in self.passes]
        return max(means) / min(means) - 1.0

    def joined(self, later: Measured) -> Measured:
        """With the passes of the same loop played later."""
        return Measured(self.trial, self.passes + later.passes)


def steady_figures(passes: Sequence[Sequence[Row]], concurrency: int) -> Figures:
    """What counts of a loop, measured or simulated: of each pass without its first round, which
    all clients begin at the same moment, the mean; of the passes the median, which one bad moment
    of the machine does not move."""
    each = [figures(r[concurrency:] if len(r) >= 2 * concurrency else r) for r in passes]
    gaps = [one.tpot_s for one in each if one.tpot_s is not None]
    return Figures(
        median(one.ttft_s for one in each),
        median(gaps) if gaps else None,
        median(one.e2e_s for one in each),
    )


def figures(rows: Sequence[Row]) -> Figures:
    """Means without the extremes."""
    seen = [row for row in rows if math.isfinite(row.ttft_s)]
    gaps = [(r.e2e_s - r.ttft_s) / (r.output_tokens - 1) for r in seen if r.output_tokens > 1]
    return Figures(
        _trimmed([row.ttft_s for row in seen]),
        _trimmed(gaps) if gaps else None,
        _trimmed([row.e2e_s for row in rows]),
    )


def _trimmed(values: Sequence[float]) -> float:
    cut = int(TRIMMED * len(values))
    kept = sorted(values)[cut : len(values) - cut]
    return sum(kept) / len(kept) if kept else math.nan


# Many clients and one, short prompts and long, answers of few tokens and of many: each term of the
# formula is large in some and small in others. The last one shares most of its prompts.
_GRID = (
    (1, 64, 64),
    (16, 96, 96),
    (8, 1024, 48),
    (1, 1536, 16),
    (4, 256, 64),
    (64, 48, 48),
    (1, 6144, 64),
    (32, 192, 128),
    (2, 512, 96),
    (4, 4096, 96),
    (32, 768, 32),
    (8, 48, 160),
    (16, 2048, 64),
    (3, 128, 24),
)
_CACHED = (8, 1024, 48, 896)


def grid(longest_tokens: int, max_num_seqs: int) -> list[Trial]:
    """The loops for a server whose sequences have at most so many tokens, so many at once. No two
    are alike; the last one has a cached prefix."""
    trials: list[Trial] = []
    for clients, prompt, answer, shared in (*((*row, 0) for row in _GRID), _CACHED):
        # A request's own draw may be a fifth above.
        most = int(longest_tokens / 1.25)
        answer = min(answer, max(LEAST_TOKENS, most // 4))
        prompt = min(prompt, max(LEAST_TOKENS, most - answer))
        shared = min(shared, 7 * prompt // 8)
        trial = Trial(min(clients, max(1, max_num_seqs)), prompt, answer, shared)
        if trial not in trials:
            trials.append(trial)
    return trials


class Pace(NamedTuple):
    """A first idea of how fast a server is, from one client: seconds per prompt token and per
    token of an answer."""

    prompt_token_s: float
    answer_token_s: float


def within(trial: Trial, pace: Pace, seconds: float) -> Trial:
    """The trial, made smaller until each client gets to ask often enough in so many seconds: first
    its prompts are halved, then its answers, then its clients."""

    def lasts_s(one: Trial) -> float:
        # Decoding together costs less than one after another; a quarter is on the safe side.
        answers = one.output_tokens * (1.0 + one.concurrency / 4) * pace.answer_token_s
        new = one.input_tokens - one.shared_tokens
        return ROUNDS * (one.concurrency * new * pace.prompt_token_s + answers)

    while lasts_s(trial) > seconds:
        if trial.input_tokens > 16 * LEAST_TOKENS:
            half = trial.input_tokens // 2
            trial = replace(trial, input_tokens=half, shared_tokens=trial.shared_tokens // 2)
        elif trial.output_tokens > LEAST_TOKENS:
            answer = max(LEAST_TOKENS, trial.output_tokens // 2)
            trial = replace(trial, output_tokens=answer)
        elif trial.concurrency > 1:
            trial = replace(trial, concurrency=trial.concurrency // 2)
        else:
            break
    return trial
