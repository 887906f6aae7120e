"""What a fit is worth: its errors, those of loops that it never saw, and what it cannot tell.

Knows: a solved problem. Does not know: how it was solved, files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gpt_oss_server.simulate.calibrate.fitting import Problem, System, Term, from_times
from gpt_oss_server.simulate.calibrate.forward import foreseen
from gpt_oss_server.simulate.calibrate.trial import Figures

TELLING = 0.02
"""A term that is less than this share of every measured time cannot be told from noise."""
UNSURE = 0.5
"""Relative standard error from which on a term is not to be relied on by itself."""
KINDS = ("ttft", "tpot", "e2e")


class Spread(NamedTuple):
    """Relative errors, foreseen over measured less one: how many, mean size, mean, largest."""

    points: int
    mean_absolute: float
    mean: float
    worst: float


@dataclass(frozen=True)
class Verdict:
    """`fitted` are errors of the loops that were fitted, `held_out` of each loop foreseen from the
    others, by kind of time. `foreseen` are each loop's figures when it was held out."""

    fitted: dict[str, Spread]
    held_out: dict[str, Spread]
    foreseen: tuple[Figures, ...]
    warnings: tuple[str, ...]


def judge_fit(problem: Problem, system: System) -> Verdict:
    """Plays every loop with all terms, and once more with those fitted without it."""
    fitted = problem.build(from_times(system.x, problem.terms, problem.start))
    all_in = [foreseen(loop, fitted) for loop in problem.loops]
    left_out = []
    for number, loop in enumerate(problem.loops):
        if len(problem.loops) > 1:
            x = system.without(number).solution()
            replica = problem.build(from_times(x, problem.terms, problem.start))
        else:
            replica = fitted
        left_out.append(foreseen(loop, replica))
    return Verdict(
        fitted=_spreads(problem, all_in),
        held_out=_spreads(problem, left_out) if len(problem.loops) > 1 else {},
        foreseen=tuple(left_out),
        warnings=tuple(untold(system, problem.terms)),
    )


def untold(system: System, terms: Sequence[Term]) -> list[str]:
    """One line for each term that the loops do not tell."""
    real = system.loop >= 0
    table, counts = system.table[real], system.counts[real]
    off = table @ system.x - system.wanted[real]
    freedom = max(1, len(off) - len(terms))
    variance = float((counts * off * off).sum()) / freedom
    information = (table * counts[:, None]).T @ table
    deviations = np.sqrt(np.maximum(0.0, np.diag(np.linalg.pinv(information)) * variance))
    lines = []
    for column, term in enumerate(terms):
        value = float(system.x[column])
        share = float(np.abs(table[:, column] * value).max(initial=0.0))
        if share < TELLING:
            lines.append(
                f"{term.what} ({term.name}) is under {TELLING:.0%} of every time that was "
                "measured: it cannot be told from these loops"
            )
        elif deviations[column] > UNSURE * value:
            lines.append(
                f"{term.what} ({term.name}) is known to ±{deviations[column] / value:.0%} only: "
                "other terms explain these loops as well"
            )
    return lines


def _spreads(problem: Problem, found: Sequence[Figures]) -> dict[str, Spread]:
    spreads = {}
    for place, kind in enumerate(KINDS):
        errors = []
        for loop, figures in zip(problem.loops, found, strict=True):
            value, measured = figures[place], loop.figures()[place]
            if value is not None and measured is not None:
                errors.append(value / measured - 1.0)
        if errors:
            sizes = [abs(error) for error in errors]
            spreads[kind] = Spread(
                len(errors),
                sum(sizes) / len(sizes),
                sum(errors) / len(errors),
                max(errors, key=abs),
            )
    return spreads
