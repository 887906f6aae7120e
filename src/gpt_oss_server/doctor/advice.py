"""The ways to use some GPUs for a model, compared, and which suits a load.

Pure arithmetic over `plan` (what fits) and `pace` (how fast). Knows: ways, a load, when a
difference is worth a restart. Does not know: machines, running servers, how advice is printed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gpt_oss_server.doctor.gpu_specs import GpuSpec
from gpt_oss_server.doctor.pace import Pace, Work, pace_of, work_of
from gpt_oss_server.doctor.plan import MODES, Plan, Recommendation, memory_sums, recommend
from gpt_oss_server.memory.fit import FitReport, GpuMode
from gpt_oss_server.memory.kv import DTYPE_BYTES

# A mode is advised over a simpler one from this gain on: an estimate is no better than that.
WORTH = 1.25
# The order in which ways are simpler than others.
_SIMPLEST: tuple[GpuMode, ...] = ("single", "tensor", "pipeline", "auto")


@dataclass(frozen=True)
class Load:
    """What the GPUs are to serve: sequences at once, tokens of one (prompt and answer), tokens of
    the longest (None: any). `given` is False where it is only an example."""

    concurrent: int = 16
    tokens: int = 2048
    longest: int | None = None
    given: bool = False


@dataclass(frozen=True)
class Way:
    """One way to use the GPUs: `replicas` models in a mode, over `gpus` GPUs together.

    `kv_tokens` and `at_once` (sequences of the load's length) are of all replicas. `one`, `loaded`
    and `full` are decode steps with a single sequence, with the load's (as many as fit), and with
    as many as fit.
    """

    mode: GpuMode
    replicas: int
    gpus: int
    kv_tokens: int
    longest: int
    at_once: int
    one: Pace
    loaded: Pace
    full: Pace

    @property
    def name(self) -> str:
        if self.mode != "single":
            return f"{self.mode} over {self.gpus}"
        return "single" if self.replicas == 1 else f"{self.replicas} single replicas"


@dataclass(frozen=True)
class Comparison:
    """All ways that fit; ratios are to the first, the simplest. `host_s` is what a step was seen
    to take beside reading and exchanging, None where nothing was."""

    ways: tuple[Way, ...]
    load: Load
    speed: GpuSpec
    host_s: float | None = None


def compare(
    config: Mapping[str, Any],
    plan: Plan,
    load: Load,
    speed: GpuSpec,
    *,
    allowed: Sequence[GpuMode] = MODES,
    micro_batches: int | None = None,
    host_s: float | None = None,
) -> Comparison:
    """The ways that fit, simplest first. Raises ShapeUnknown."""
    machine = plan.asked.machine
    nothing = Comparison((), load, speed, host_s)
    ways = []
    for mode in (mode for mode in _SIMPLEST if mode in allowed):
        report = plan.of(mode).report
        if report is None or not report.fits:
            continue
        work = mode_work(config, plan, mode, load.tokens)
        for replicas in (1, machine.gpus) if mode == "single" and machine.gpus > 1 else (1,):
            ways.append(_way(report, work, nothing, replicas, machine.max_num_seqs, micro_batches))
    return replace(nothing, ways=tuple(ways))


def mode_work(config: Mapping[str, Any], plan: Plan, mode: GpuMode, tokens: int) -> Work:
    """What a decode step of sequences of `tokens` tokens reads and exchanges in a mode."""
    asked = plan.asked
    weights = asked.weights_in(config, mode)
    machine = asked.machine
    size = DTYPE_BYTES[asked.dtype]
    return work_of(
        config, weights, mode, machine.gpus, tokens, block_size=machine.block_size, dtype_bytes=size
    )


def advise(config: Mapping[str, Any], plan: Plan, compared: Comparison) -> Recommendation:
    """What fits best, as `plan.recommend` says; where a load is given, of what can hold it the
    simplest that no other beats by `WORTH` in tokens per second."""
    allowed = tuple(dict.fromkeys(way.mode for way in compared.ways))
    if not compared.load.given or len(compared.ways) < 2:
        return recommend(config, plan, allowed or MODES)
    holding = _holding(compared)
    fastest = max(way.loaded.tokens_s for way in holding)
    best = next(way for way in holding if way.loaded.tokens_s * WORTH >= fastest)
    report = plan.of(best.mode).report
    sums = "" if report is None else memory_sums(plan, report)
    return Recommendation(best.mode, _why(best, compared), sums)


def ratio(value: float, base: float) -> str:
    """`1.6×`, to two figures."""
    return f"{value / base:.2g}×" if value < 9.5 * base else f"{value / base:.0f}×"


def _holding(compared: Comparison) -> list[Way]:
    """The ways that take the longest request and have room for the load; where none has, those
    with most room of the ones that take the longest request that any does."""
    load, ways = compared.load, compared.ways
    most = max(way.longest for way in ways)
    longest = most if load.longest is None else min(load.longest, most)
    long_enough = [way for way in ways if way.longest >= longest]
    need = load.concurrent * load.tokens
    return [way for way in long_enough if way.kv_tokens >= need] or [
        max(long_enough, key=lambda way: way.kv_tokens)
    ]


def _why(best: Way, compared: Comparison) -> str:
    load = compared.load
    asked = f"{load.concurrent} at once of {load.tokens:,} tokens"
    flag = f"--gpu-mode {best.mode}"
    holding = _holding(compared)
    if best.mode == "single":
        where = (
            "on one GPU" if best.replicas == 1 else f"with a replica on each of {best.gpus} GPUs"
        )
        text = f"{flag} {where} serves {asked}, with room for {best.at_once} at once"
        fastest = max(holding, key=lambda way: way.loaded.tokens_s)
        gain = ratio(fastest.loaded.tokens_s, best.loaded.tokens_s)
        if fastest.mode != "single" and gain != "1×":
            text += f"; {fastest.name} would give about {gain} the tokens per second"
        return text
    text = f"{flag} over {best.gpus} GPUs for {asked}"
    simpler = [way for way in compared.ways if way.mode == "single"]
    if not simpler:
        return f"{text}: one GPU cannot hold the model"
    one = simpler[-1]
    if one not in holding:
        return (
            f"{text}: {one.name} {'holds' if one.replicas == 1 else 'hold'} {one.kv_tokens:,} "
            f"tokens, requests of {one.longest:,} at most; this one {best.kv_tokens:,} and "
            f"{best.longest:,}"
        )
    gain = ratio(best.loaded.tokens_s, one.loaded.tokens_s)
    return f"{text}: about {gain} the tokens per second of {one.name}"


def _way(
    report: FitReport,
    work: Work,
    compared: Comparison,
    replicas: int,
    max_num_seqs: int,
    micro_batches: int | None,
) -> Way:
    load = compared.load
    # Windowed pools are sized never to run dry before the others.
    at_once = replicas * max(1, min(max_num_seqs, report.kv_tokens // load.tokens))

    def pace(sequences: int) -> Pace:
        return pace_of(
            work,
            compared.speed,
            sequences,
            replicas=replicas,
            micro_batches=micro_batches,
            host_s=compared.host_s or 0.0,
        )

    return Way(
        mode=work.layout,
        replicas=replicas,
        gpus=work.gpus * replicas,
        kv_tokens=replicas * report.kv_tokens,
        longest=report.longest_request,
        at_once=at_once,
        one=pace(1),
        loaded=pace(min(load.concurrent, at_once)),
        full=pace(at_once),
    )
