"""Fits the step formula's terms to measured loops, through the simulator.

Knows: which terms hardware of a kind has, where to start, how each term moves what the simulator
foresees. Does not know: servers, files, what the result is worth (`judging`).

A request's time is the sum of the steps that it lived through, each linear in the terms, and a
little more of one hardly changes which steps those are. So the fit is Gauss and Newton's: each
round the simulator plays every loop as things stand and with each term a little larger, and the
linear problem which that makes has one answer (`least_errors`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.simulate.calibrate.calibration import (
    TTFT_CONCURRENCY,
    Point,
    closed_loop_tpot,
    closed_loop_ttft,
)
from gpt_oss_server.simulate.calibrate.forward import foreseen
from gpt_oss_server.simulate.calibrate.least_errors import least_absolute
from gpt_oss_server.simulate.calibrate.trial import Figures, Measured
from gpt_oss_server.simulate.cost.layout import Replica
from gpt_oss_server.simulate.cost.roofline import Efficiency, ReplicaCost, Terms

Array = npt.NDArray[np.float64]
Progress = Callable[[int, int], None]

ROUNDS = 16
STEPS = (0.05, 0.01)
"""Shares by which a term is made larger and smaller to see what it does: the second where the
first one leads no further. Small enough to be the terms' own effect, large enough not to be one
request's that falls into another step."""
HOLDS = (0.0, 0.01, 0.1)
"""How strongly terms are held where they are (Levenberg's damping), tried side by side: as what a
change of a term by itself counts beside an error."""
LEAST_MOVE = 0.2
"""A term is made larger by such a share of a typical time as well, so that one of nothing moves."""
WEIGHTS = Figures(ttft_s=0.7, tpot_s=1.0, e2e_s=1.0)
PRIOR_WEIGHT = 0.02
"""What a relative distance from the shipped figure counts, beside one of a measured time: terms
that the loops do not tell stay there."""
_BETTER = 5e-3
_LEAST = 1e-12


class Term(NamedTuple):
    """One number of the formula; `share` says whether it divides a time (a share of what the maker
    states) or multiplies one. `what` names it for people."""

    name: str
    what: str
    share: bool = False


HOST = (
    Term("overhead", "the host's constant time per step"),
    Term("sequence_s", "time per sequence of a step"),
    Term("chunk_s", "time per prompt, or chunk of one"),
    Term("first_token_s", "wait outside the steps"),
)
DEVICE = (
    Term("memory", "reading weights", share=True),
    Term("compute", "prompts' operations", share=True),
)
LINK = (Term("link", "exchange between GPUs", share=True),)
APART = (
    Term("cache", "reading the KV cache", share=True),
    Term("attention", "prompts' attention", share=True),
)
"""On hardware of which nothing is known KV and attention have shares of their own."""


@dataclass(frozen=True)
class Problem:
    """Loops of one server, how a replica like it is built from an efficiency, and what is fitted,
    beginning at `start`. With `prior` the start also stands for what the loops do not tell.
    `typical` [terms] is what each term would be if it alone were `LEAST_MOVE` of some time."""

    loops: tuple[Measured, ...]
    build: Callable[[Efficiency], Replica]
    terms: tuple[Term, ...]
    start: Efficiency
    typical: Array
    prior: bool = False


class System(NamedTuple):
    """The problem made linear around `x`: `table` [rows, terms] is what each figure, over the
    measured one, gains by each term; `wanted` [rows] what that should add up to; `loop` [rows]
    says whose figure it is, −1 for a prior's."""

    x: Array
    table: Array
    wanted: Array
    counts: Array
    loop: npt.NDArray[np.int64]

    def without(self, loop: int) -> System:
        """All but one loop's rows."""
        kept = self.loop != loop
        return System(
            self.x, self.table[kept], self.wanted[kept], self.counts[kept], self.loop[kept]
        )

    def solution(self, hold: float = 0.0, scale: Array | None = None) -> Array:
        """The terms that solve it, held where they are by `hold` per `scale` of each."""
        if not hold or scale is None:
            return least_absolute(self.table, self.wanted, self.counts)
        rows = np.diag(hold / scale)
        return least_absolute(
            np.vstack([self.table, rows]),
            np.concatenate([self.wanted, rows @ self.x]),
            np.concatenate([self.counts, np.ones(len(rows))]),
        )


def to_times(efficiency: Efficiency, terms: Sequence[Term]) -> Array:
    """The terms as numbers that times are proportional to."""
    values = []
    for term in terms:
        value = getattr(efficiency, term.name)
        value = 1.0 if value is None else value
        values.append(1.0 / value if term.share else value)
    return np.array(values, dtype=np.float64)


def from_times(x: Array, terms: Sequence[Term], base: Efficiency) -> Efficiency:
    """Its inverse; a term of no time at all is a share that is all but infinite."""
    given = {
        term.name: 1.0 / max(float(value), _LEAST) if term.share else float(value)
        for term, value in zip(terms, x, strict=True)
    }
    return replace(base, **given)


def solve(problem: Problem, progress: Progress | None = None) -> System:
    """The problem around the terms with the least mean absolute relative error. Raises
    ConfigError without loops."""
    if not problem.loops:
        raise ConfigError("calibration needs at least one measured loop")
    x = to_times(problem.start, problem.terms)
    if not problem.prior:  # nothing may begin where it cannot be seen
        x = np.maximum(x, problem.typical)
    here = _relative(problem, x)
    system, error = linear(problem, x, here, STEPS[0]), _error(problem, x, here)
    sizes = list(STEPS[1:])
    for done in range(ROUNDS):
        if progress is not None:
            progress(done, ROUNDS)
        better = _better(problem, system, error)
        if better is None and not sizes:
            break
        if better is None:
            system = linear(problem, x, here, sizes.pop(0))
            continue
        x, here, error = better
        system = linear(problem, x, here, STEPS[len(STEPS) - 1 - len(sizes)])
    if progress is not None:
        progress(ROUNDS, ROUNDS)
    return system


def _better(problem: Problem, system: System, error: float) -> tuple[Array, Array, float] | None:
    """Near the linear problem's answer: the terms with the least errors that were found, what they
    foresee, their error. None where those are not clearly smaller."""
    scale = np.maximum(system.x, problem.typical)
    answers = [system.solution(hold, scale) for hold in HOLDS]
    best: tuple[Array, Array, float] | None = None
    for x in (*answers, 0.5 * (system.x + answers[0])):
        here = _relative(problem, x)
        found = _error(problem, x, here)
        if found < (error * (1 - _BETTER) if best is None else best[2]):
            best = (x, here, found)
    return best


def linear(problem: Problem, x: Array, here: Array, step: float) -> System:
    """The system around x, whose figures over the measured ones are `here`, by differences of this
    share of a term to either side."""
    table = np.empty((len(here), len(x)))
    for column in range(len(x)):
        more, less = x.copy(), x.copy()
        more[column] += step * max(x[column], float(problem.typical[column]))
        less[column] = max(0.0, 2 * x[column] - more[column])
        before = _relative(problem, less) if less[column] < x[column] else here
        table[:, column] = (_relative(problem, more) - before) / (more[column] - less[column])
    known = ~np.isnan(here)
    loop = np.repeat(np.arange(len(problem.loops)), len(WEIGHTS))[known]
    table, wanted = table[known], 1.0 - here[known] + table[known] @ x
    rows = _prior(problem)
    return System(
        x,
        np.vstack([table, rows]),
        np.concatenate([wanted, np.ones(len(rows))]),
        np.concatenate([_counts(problem)[known], np.full(len(rows), PRIOR_WEIGHT)]),
        np.concatenate([loop, np.full(len(rows), -1)]),
    )


def start_of(
    loops: Sequence[Measured], cost: ReplicaCost, terms: tuple[Term, ...], base: Efficiency
) -> tuple[Efficiency, Array]:
    """Where to begin on hardware of which nothing is known, by the analytic mean of each loop
    (`calibration`); and, for any, what each term would be if it alone were a share of some time."""
    rows, seconds = [], []
    for loop in loops:
        for parts, first, measured in _analytic(loop, cost):
            rows.append([_column(parts, first, term, terms) for term in terms])
            seconds.append(measured)
    table = np.array(rows) / np.array(seconds)[:, None]
    found = least_absolute(table, np.ones(len(rows)), np.ones(len(rows)))
    largest = table.max(axis=0)
    typical = np.where(largest > 0, LEAST_MOVE / np.where(largest > 0, largest, 1.0), 1e-6)
    return from_times(found, terms, base), typical


def _analytic(loop: Measured, cost: ReplicaCost) -> list[tuple[Terms, float, float]]:
    """(parts, constant waits, measured seconds) of a loop's TPOT, and TTFT where it has one."""
    count = len(loop.rows)
    point = Point(
        cost.gpu,
        cost.tp,
        loop.trial.concurrency,
        sum(row.input_tokens - row.cached_tokens for row in loop.rows) / count,
        sum(row.output_tokens for row in loop.rows) / count,
        None,
    )
    figures = loop.figures()
    found = []
    if figures.tpot_s is not None:
        found.append((closed_loop_tpot(cost, point), 0.0, figures.tpot_s))
    if loop.trial.concurrency <= TTFT_CONCURRENCY and math.isfinite(figures.ttft_s):
        found.append((closed_loop_ttft(cost, point), 1.0, figures.ttft_s))
    return found


def _column(parts: Terms, first: float, term: Term, terms: Sequence[Term]) -> float:
    """What one term multiplies in a time."""
    apart = {one.name for one in terms}
    columns = {
        "overhead": parts.overhead_s,
        "sequence_s": parts.sequences,
        "chunk_s": parts.chunks,
        "first_token_s": first,
        "memory": parts.memory_s + (0.0 if "cache" in apart else parts.cache_s),
        "compute": parts.compute_s + (0.0 if "attention" in apart else parts.attention_s),
        "link": parts.link_s,
        "cache": parts.cache_s,
        "attention": parts.attention_s,
    }
    return columns[term.name]


def _relative(problem: Problem, x: Array) -> Array:
    """Foreseen over measured figures of all loops, [loops · 3]; not a number where a loop has
    none."""
    replica = problem.build(from_times(x, problem.terms, problem.start))
    found: list[float] = []
    for loop in problem.loops:
        for value, measured in zip(foreseen(loop, replica), loop.figures(), strict=True):
            found.append(np.nan if value is None or measured is None else value / measured)
    return np.array(found)


def _error(problem: Problem, x: Array, here: Array) -> float:
    """Weighted sum of absolute relative errors, and of distances from what is assumed."""
    known = ~np.isnan(here)
    off = float((_counts(problem)[known] * np.abs(here[known] - 1.0)).sum())
    return off + PRIOR_WEIGHT * float(np.abs(_prior(problem) @ x - 1.0).sum())


def _counts(problem: Problem) -> Array:
    return np.tile(np.array(WEIGHTS), len(problem.loops))


def _prior(problem: Problem) -> Array:
    """One row for each term that the start stands for: the term over it, [rows, terms]."""
    start = to_times(problem.start, problem.terms)
    held = start > 0
    if not problem.prior:
        held = np.zeros(len(start), dtype=bool)
    return np.diag(1.0 / np.where(held, start, 1.0))[held]
