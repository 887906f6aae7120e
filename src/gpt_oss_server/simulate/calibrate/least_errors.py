"""Non-negative x that explains measured times with the least absolute relative errors.

Knows: small dense problems (a handful of unknowns). Does not know: what they mean. Convex, solved
without a starting point or a seed. A wild row moves the answer little.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_LEAST_ERROR = 0.01
_ROUNDS = 40


def least_absolute(table: Array, wanted: Array, counts: Array) -> Array:
    """x ≥ 0 with the least Σ counts·|table·x − wanted|, by reweighted squares.

    Args:
        table: [rows, unknowns]; `wanted` and `counts` [rows]. Errors are taken to be relative:
            those under a hundredth count as squares.
    """
    weights = np.sqrt(counts)
    found = np.zeros(table.shape[1])
    for _ in range(_ROUNDS):
        found = _non_negative(table * weights[:, None], wanted * weights)
        error = np.abs(table @ found - wanted)
        weights = np.sqrt(counts / np.maximum(error, _LEAST_ERROR))
    return found


def _non_negative(table: Array, wanted: Array) -> Array:
    """Least squares with x ≥ 0, exactly: the best over all sets of columns whose own solution is
    positive (a handful of columns, so that all sets can be tried)."""
    scale = np.linalg.norm(table, axis=0)
    live = [i for i in range(table.shape[1]) if scale[i] > 0]
    scaled = table / np.where(scale > 0, scale, 1.0)
    gram, product = scaled.T @ scaled, scaled.T @ wanted
    best, best_gain = np.zeros(table.shape[1]), 0.0
    for size in range(1, len(live) + 1):
        for chosen in combinations(live, size):
            columns = list(chosen)
            square = gram[np.ix_(columns, columns)]
            if np.linalg.cond(square) > 1e12:
                continue
            solution = np.linalg.solve(square, product[columns])
            gain = float(solution @ product[columns])
            if solution.min() >= 0.0 and gain > best_gain:
                best, best_gain = np.zeros(table.shape[1]), gain
                best[columns] = solution / scale[columns]
    return best
