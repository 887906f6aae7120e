"""Fit the efficiencies of `cost` to measurements, and say how well they predict what was held out.

Knows: measured points (a closed loop of `concurrency` clients on one replica), the analytic mean of
such a loop, non-negative least absolute relative errors. Does not know: where the points come from.

In a closed loop of B clients with prompts of I and answers of O tokens a mean step decodes B
sequences of I + O/2 tokens, and computes (B − 1)/B of the B·I/O prefill tokens that one output
token stands beside (a request's own prefill is not in its time per output token). The median time
to first token at low concurrency is half a decode step of waiting, the prompt's own step, and a
constant. Both are linear in the reciprocals that are fitted (`Terms`), so the fit is a small convex
problem with one answer: no starting point, no seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.simulate.calibrate.least_errors import least_absolute
from gpt_oss_server.simulate.cost.gpu_types import GpuType
from gpt_oss_server.simulate.cost.roofline import Efficiency, ModelCost, ReplicaCost, Terms

TTFT_CONCURRENCY = 8
"""Above it the first token mostly waits for other prompts, which the analytic mean leaves out."""
TTFT_WEIGHT = 0.25
"""A first token's error beside that of a TPOT: one median with waiting and HTTP in it, against a
mean over every step."""
LENGTH_SHARE = 0.9
"""Mean length of a benchmark's prompts and answers over the nominal one, drawn from 0.8 … 1.0."""
_SHARED = 6


@dataclass(frozen=True)
class Point:
    """One measured closed loop. Tokens are means per request; times are seconds; None: not
    measured."""

    gpu: GpuType
    tp: int
    concurrency: int
    input_tokens: float
    output_tokens: float
    tpot_s: float | None
    ttft_s: float | None = None
    pp: int = 1


class Row(NamedTuple):
    """One equation: parts of a time, whether the constant wait is in it, what was measured, and
    how much its relative error counts."""

    gpu: GpuType
    terms: Terms
    first_tokens: float
    seconds: float
    weight: float


class Fit(NamedTuple):
    """The efficiencies, and the memory's share of each GPU type that had points, by name."""

    efficiency: Efficiency
    bandwidth: dict[str, float]

    def gpu(self, gpu: GpuType) -> GpuType:
        """The GPU with the share that was fitted for it; without one, the mean of those fitted."""
        mean = sum(self.bandwidth.values()) / len(self.bandwidth)
        share = self.bandwidth.get(gpu.name, mean)
        return replace(gpu, bandwidth_efficiency=min(1.0, share))


@dataclass(frozen=True)
class Accuracy:
    """Relative errors of one group of points, predicted over measured less one."""

    points: int
    mean_absolute: float
    mean: float
    worst: float


def closed_loop_tpot(cost: ReplicaCost, point: Point) -> Terms:
    """The mean step of a closed loop, as parts."""
    batch = point.concurrency
    others = (batch - 1) / batch
    prompts = others * batch / point.output_tokens
    tokens = prompts * point.input_tokens
    step = cost.base(batch, batch).plus(Terms(link_s=cost.link_s_per_token * tokens))
    context = point.input_tokens + point.output_tokens / 2
    return step.plus(cost.cache(context, batch)).plus(cost.prefill(point.input_tokens), prompts)


def closed_loop_ttft(cost: ReplicaCost, point: Point) -> Terms:
    """The median first token of a closed loop of few clients, without the constant wait."""
    others = point.concurrency - 1
    context = point.input_tokens + point.output_tokens / 2
    decode = cost.base(others, others).plus(cost.cache(context, others))
    tokens = point.input_tokens + others
    prompt = cost.base(tokens, point.concurrency).plus(cost.cache(context, others))
    return prompt.plus(cost.prefill(point.input_tokens)).plus(decode, 0.5)


def predict(point: Point, model: ModelCost, fit: Fit) -> tuple[float, float]:
    """(TPOT, TTFT) of a closed loop, in seconds."""
    cost = ReplicaCost(model, fit.gpu(point.gpu), point.tp, point.pp)
    seconds = fit.efficiency.seconds
    return (
        seconds(closed_loop_tpot(cost, point), cost.gpu),
        seconds(closed_loop_ttft(cost, point), cost.gpu) + fit.efficiency.first_token_s,
    )


def fit(points: Sequence[Point], model: ModelCost) -> Fit:
    """The efficiencies with the least mean absolute relative error over TPOT (all points) and
    TTFT (those of at most `TTFT_CONCURRENCY` clients). Raises ConfigError without points."""
    rows = [row for point in points for row in _rows(point, model)]
    if not rows:
        raise ConfigError("calibration needs at least one measured point")
    names = sorted({row.gpu.name for row in rows})
    table = np.array([_columns(row, names) for row in rows])
    seconds = np.array([row.seconds for row in rows])
    counts = np.array([row.weight for row in rows])
    found = least_absolute(table / seconds[:, None], np.ones(len(rows)), counts)
    overhead, sequence, hop, link, compute, first = found[:_SHARED]
    efficiency = Efficiency(
        overhead=float(overhead),
        sequence_s=float(sequence),
        hop_latency_s=float(hop),
        link=1.0 / float(link) if link > 0 else 1.0,
        compute=1.0 / float(compute) if compute > 0 else 1.0,
        first_token_s=float(first),
    )
    shares = {
        name: min(1.0, 1.0 / float(slow)) if slow > 0 else 1.0
        for name, slow in zip(names, found[_SHARED:], strict=True)
    }
    return Fit(efficiency, shares)


def leave_one_out(
    points: Sequence[Point], model: ModelCost, key: Callable[[Point], int | str]
) -> dict[int | str, Accuracy]:
    """For each value of `key`: fit without its points, predict them, compare TPOT. With
    `key=lambda p: p.tp` this asks how well one degree of parallelism is foreseen from others."""
    found: dict[int | str, Accuracy] = {}
    for value in sorted({key(point) for point in points}, key=str):
        known = [point for point in points if key(point) != value]
        if known:
            held_out = [point for point in points if key(point) == value]
            found[value] = accuracy(held_out, model, fit(known, model))
    return found


def accuracy(points: Sequence[Point], model: ModelCost, fitted: Fit) -> Accuracy:
    """TPOT errors of the points that have one. Raises ConfigError where none has."""
    errors = [
        predict(point, model, fitted)[0] / point.tpot_s - 1
        for point in points
        if point.tpot_s is not None
    ]
    if not errors:
        raise ConfigError("no point has a measured time per output token")
    sizes = [abs(error) for error in errors]
    return Accuracy(
        len(errors), sum(sizes) / len(sizes), sum(errors) / len(errors), max(errors, key=abs)
    )


def _rows(point: Point, model: ModelCost) -> list[Row]:
    cost = ReplicaCost(model, point.gpu, point.tp, point.pp)
    rows = []
    if point.tpot_s is not None:
        rows.append(Row(point.gpu, closed_loop_tpot(cost, point), 0.0, point.tpot_s, 1.0))
    if point.ttft_s is not None and point.concurrency <= TTFT_CONCURRENCY:
        terms = closed_loop_ttft(cost, point)
        rows.append(Row(point.gpu, terms, 1.0, point.ttft_s, TTFT_WEIGHT))
    return rows


def _columns(row: Row, names: Sequence[str]) -> list[float]:
    """What the fitted numbers multiply: overhead, per sequence, latency, 1/link, 1/compute,
    constant, and 1/memory per GPU type. KV is read as weights are, attention computed as products;
    a chunk of a prompt costs its operations."""
    terms = row.terms
    host = [terms.overhead_s, terms.sequences, terms.latency_hops]
    operations_s, bytes_s = terms.compute_s + terms.attention_s, terms.memory_s + terms.cache_s
    shared = [*host, terms.link_s, operations_s, row.first_tokens]
    return shared + [bytes_s if row.gpu.name == name else 0.0 for name in names]
