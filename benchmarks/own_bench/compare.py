"""Foreseen against measured: quantiles of a run's times by class, and their relative errors.

Knows: two columns of times and a class of each request. Does not know: where they come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

SHORT_TOKENS = 256
QUANTILES = {"p50": 0.5, "p95": 0.95}
TIMES = ("ttft", "e2e")

Figures = dict[str, dict[str, float]]
"""By class (`all`, `short`, `long`) and time with quantile (`e2e_p95`), in seconds; `n` counts."""


def quantiles(input_tokens: Floats, ttft_s: Floats, e2e_s: Floats) -> Figures:
    """The figures of one run. Requests whose first token nobody saw count in whole times only."""
    short = input_tokens <= SHORT_TOKENS
    found: Figures = {}
    for name, members in (("all", short | ~short), ("short", short), ("long", ~short)):
        if not members.any():
            continue
        row: dict[str, float] = {"n": float(members.sum())}
        for time, values in zip(TIMES, (ttft_s, e2e_s), strict=True):
            for label, share in QUANTILES.items():
                row[f"{time}_{label}"] = float(np.nanquantile(values[members], share))
        found[name] = row
    return found


def middle_of(runs: Sequence[Figures]) -> Figures:
    """Median of each figure over runs: one that the machine held up does not count for all."""
    return {
        name: {key: median(run[name][key] for run in runs) for key in runs[0][name]}
        for name in runs[0]
    }


def errors(foreseen: Figures, measured: Figures) -> Figures:
    """Relative, foreseen over measured less one."""
    return {
        name: {key: foreseen[name][key] / row[key] - 1.0 for key in row if key != "n"}
        for name, row in measured.items()
    }


def spread(runs: Sequence[Figures]) -> Figures:
    """How far real runs of the same load are apart: half of the largest less the smallest, over
    their median. What no model can be expected to be closer than."""
    middle = middle_of(runs)
    return {
        name: {
            key: (max(run[name][key] for run in runs) - min(run[name][key] for run in runs))
            / 2
            / row[key]
            for key in row
            if key != "n"
        }
        for name, row in middle.items()
    }
