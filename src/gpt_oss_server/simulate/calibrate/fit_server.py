"""From a server's loops to its calibration: what is fitted on which hardware, and where to begin.

Knows: known types of GPU and hardware of which nothing is known. Does not know: how loops are
measured, files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.simulate.calibrate.fitting import (
    APART,
    DEVICE,
    HOST,
    LINK,
    Problem,
    Progress,
    Term,
    from_times,
    solve,
    start_of,
)
from gpt_oss_server.simulate.calibrate.judging import Verdict, judge_fit
from gpt_oss_server.simulate.calibrate.likeness import UNKNOWN, replica_like
from gpt_oss_server.simulate.calibrate.served import Served
from gpt_oss_server.simulate.calibrate.trial import Measured
from gpt_oss_server.simulate.cost.layout import Shape
from gpt_oss_server.simulate.cost.roofline import Efficiency, ModelCost, ReplicaCost

LEAST_LOOPS = 3
_BARE = Efficiency(
    overhead=1.0,
    sequence_s=0.0,
    hop_latency_s=0.0,
    link=1.0,
    compute=1.0,
    first_token_s=0.0,
    memory=1.0,
    cache=1.0,
    attention=1.0,
)


class FittedServer(NamedTuple):
    """The efficiency of a server, and what the fit is worth."""

    efficiency: Efficiency
    verdict: Verdict


def fit_server(
    loops: Sequence[Measured],
    served: Served,
    config: Mapping[str, Any],
    model: ModelCost,
    shape: Shape,
    progress: Progress | None = None,
) -> FittedServer:
    """Fit the terms that this hardware has.

    On a known type of GPU those of the roofline, beginning at the shipped figures, which also stand
    for what the loops do not tell; KV is read as weights are and attention computed as products. On
    unknown hardware every term by itself, from nothing.

    Raises:
        ConfigError: too few loops to tell anything.
        ShapeUnknown, ImpossibleSplit, DoesNotFit: as `lay_out`.
    """
    if len(loops) < LEAST_LOOPS:
        raise ConfigError(f"calibration needs at least {LEAST_LOOPS} loops, not {len(loops)}")
    cost = ReplicaCost(model, shape.gpu, shape.tp, shape.pp)
    known = shape.gpu.name != UNKNOWN
    terms = _terms(shape)
    base = _BARE
    if known:
        base = Efficiency(memory=shape.gpu.bandwidth_efficiency)
    start, typical = start_of(loops, cost, terms, base)
    problem = Problem(
        loops=tuple(loops),
        build=partial(replica_like, served, config, model, shape),
        terms=terms,
        start=base if known else start,
        typical=typical,
        prior=known,
    )
    system = solve(problem, progress)
    verdict = judge_fit(problem, system)
    return FittedServer(from_times(system.x, terms, problem.start), verdict)


def _terms(shape: Shape) -> tuple[Term, ...]:
    if shape.gpu.name == UNKNOWN:
        return HOST + DEVICE + APART
    return HOST + DEVICE + (LINK if shape.tp > 1 else ())
