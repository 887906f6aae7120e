"""What of a run is worth drawing, thinned to a size that can be mailed: ready for JSON.

Knows: an outcome's columns, the promises. Does not know: how it is drawn. What is thinned is
averaged (shares, waiting) or counted (requests), never picked; peaks are kept beside the means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt_oss_server.simulate.results.outcome import END_NAMES, SERVED, Floats, Outcome, Samples
from gpt_oss_server.simulate.results.slo import Slo, class_places, kept

CURVE_PERCENTILES = (*(float(q) for q in range(100)), 99.5, 99.9, 100.0)
"""Where the distributions are given; an empirical one has more steps than a screen has pixels."""
COLUMNS = 160
LEAST_COLUMNS = 24
ROWS = 64
CELLS = 20_000
"""At most so many moments and rows of samples, and rows × moments over all policies."""
AS_PROMISED, TOO_LATE = "as_promised", "too_late"

Mask = npt.NDArray[np.bool_]


def figures(outcome: Outcome, slo: Slo, policies: int = 1) -> dict[str, Any]:
    """Everything that is drawn of one policy's run.

    Args:
        policies: how many share a page; with more of them each is thinned further.

    Returns:
        curves: by class and `ttft_s`, `tpot_s`, `e2e_s`, the values at `CURVE_PERCENTILES` of
            those served; None where none was.
        where: requests by class and pool (`counts`), and by prompt length and pool (`by_length`,
            whose `edges` are powers of two); the last column of each is "nowhere".
        ends: over time of arrival, how many were served as promised, too late, or how they ended.
        samples: `samples` thinned, or None.
    """
    return {
        "curves": _curves(outcome, slo),
        "where": _where(outcome, slo),
        "ends": _ends(outcome, slo),
        "samples": _thinned(outcome, policies),
    }


def _curves(outcome: Outcome, slo: Slo) -> dict[str, Any]:
    places = class_places(outcome, slo)
    columns = {
        "ttft_s": outcome.ttft_s,
        "tpot_s": outcome.tpot_s,
        "e2e_s": outcome.e2e_s,
    }
    return {
        one.name: {
            name: _quantiles(values[(places == place) & outcome.served])
            for name, values in columns.items()
        }
        for place, one in enumerate(slo.classes)
    }


def _quantiles(values: Floats) -> list[float] | None:
    if not values.size:
        return None
    return [_round(value, 5) for value in np.percentile(values, CURVE_PERCENTILES)]


def _where(outcome: Outcome, slo: Slo) -> dict[str, Any]:
    """Pools in the fleet's order, then those that were sent nowhere."""
    pools = list(dict.fromkeys(replica.pool for replica in outcome.replicas))
    of_replica = [pools.index(replica.pool) for replica in outcome.replicas]
    # The place −1, of those sent nowhere, finds the last.
    pool = np.array([*of_replica, len(pools)])[outcome.replica]
    tokens = outcome.input_tokens
    edges = _edges(tokens)
    length = np.searchsorted(edges, tokens, side="left")
    return {
        "pools": pools,
        "classes": [one.name for one in slo.classes],
        "counts": _crossed(class_places(outcome, slo), pool, len(slo.classes), len(pools) + 1),
        "by_length": {
            "edges": edges,
            "counts": _crossed(length, pool, len(edges), len(pools) + 1),
        },
    }


def _edges(tokens: npt.NDArray[np.int64]) -> list[int]:
    """Powers of two, the last at least the longest prompt: upper ends of bins."""
    if not tokens.size:
        return []
    first = max(0, math.ceil(math.log2(max(1, int(tokens.min())))))
    last = max(first, math.ceil(math.log2(max(1, int(tokens.max())))))
    return [2**power for power in range(first, last + 1)]


def _crossed(
    rows: npt.NDArray[Any], columns: npt.NDArray[Any], height: int, width: int
) -> list[list[int]]:
    table = np.bincount(rows * width + columns, minlength=height * width)
    return [[int(n) for n in row] for row in table.reshape(height, width)]


def _ends(outcome: Outcome, slo: Slo) -> dict[str, Any]:
    """Counts by time of arrival; kinds that never happen are left out."""
    length_s = max(outcome.end_s, outcome.span_s)
    columns = COLUMNS // 2
    bin_s = length_s / columns if length_s > 0 else 1.0
    place = np.minimum((outcome.arrival_s / bin_s).astype(np.int64), columns - 1)
    good = kept(outcome, slo)
    kinds: dict[str, Mask] = {AS_PROMISED: good, TOO_LATE: outcome.served & ~good}
    for code, name in enumerate(END_NAMES):
        if code != SERVED:
            kinds[name] = np.asarray(outcome.ended == code)
    counts = {
        kind: [int(n) for n in np.bincount(place[chosen], minlength=columns)]
        for kind, chosen in kinds.items()
        if chosen.any()
    }
    return {"bin_s": bin_s, "counts": counts}


def _thinned(outcome: Outcome, policies: int) -> dict[str, Any] | None:
    """Means of neighbouring moments, and of neighbouring replicas of a pool where there are more
    than `ROWS` or CELLS allow; `waiting_most` is the peak of the fleet's sum."""
    samples = outcome.samples
    # The first sample is of the moment before anything happened.
    moments = len(samples.at_s) - 1 if samples is not None else 0
    if samples is None or moments < 1:
        return None
    groups = _groups(outcome, ROWS)
    columns = min(moments, COLUMNS, max(LEAST_COLUMNS, CELLS // (len(groups) * max(1, policies))))
    each = -(-moments // columns)
    starts = range(1, moments + 1, each)
    return {
        "bin_s": float(samples.at_s[1] - samples.at_s[0]) * each,
        "rows": [_row_name(outcome, group) for group in groups],
        "replicas": [len(group) for group in groups],
        "utilization": _means(samples.utilization, groups, starts, 3),
        "kv_share": _means(samples.kv_share, groups, starts, 4),
        "decoding": _means(samples.decoding, groups, starts, 1),
        "waiting": _waiting(samples, groups, starts),
        "waiting_most": [int(samples.waiting[at : at + each].sum(axis=1).max()) for at in starts],
    }


def _groups(outcome: Outcome, rows: int) -> list[list[int]]:
    """Places of replicas that share a row: neighbours of one pool, as few as `rows` allow."""
    pools: dict[str, list[int]] = {}
    for place, replica in enumerate(outcome.replicas):
        pools.setdefault(replica.pool, []).append(place)
    size = 1
    while sum(-(-len(places) // size) for places in pools.values()) > max(rows, len(pools)):
        size += 1
    return [
        places[at : at + size] for places in pools.values() for at in range(0, len(places), size)
    ]


def _row_name(outcome: Outcome, group: Sequence[int]) -> str:
    first, last = outcome.replicas[group[0]].id, outcome.replicas[group[-1]].id
    return first if first == last else f"{first}–{last.rpartition('/')[2]}"


def _means(
    values: npt.NDArray[Any], groups: Sequence[list[int]], starts: range, digits: int
) -> list[list[float]]:
    """Rows are groups, columns stretches of moments."""
    return [
        [round(float(values[at : at + starts.step, group].mean()), digits) for at in starts]
        for group in groups
    ]


def _waiting(samples: Samples, groups: Sequence[list[int]], starts: range) -> list[list[float]]:
    """Requests waiting in all replicas of a row, on average."""
    return [
        [
            round(float(samples.waiting[at : at + starts.step, group].sum(axis=1).mean()), 2)
            for at in starts
        ]
        for group in groups
    ]


def _round(value: float, digits: int) -> float:
    """To so many significant digits."""
    return float(f"{value:.{digits}g}")
