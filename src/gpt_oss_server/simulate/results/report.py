"""A simulated run as text and as JSON.

Knows: what people want to see of an outcome. Does not know: files, terminals, HTML.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from gpt_oss_server.simulate.fleet.pools import Failure, Fleet
from gpt_oss_server.simulate.results import number_text as text
from gpt_oss_server.simulate.results.figures import figures
from gpt_oss_server.simulate.results.outcome import Outcome
from gpt_oss_server.simulate.results.slo import QUANTILES, Slo, SloReport, class_places
from gpt_oss_server.simulate.results.sweep import Capacity

Write = Callable[[float | None], str]

SCHEMA = 2
"""Of the JSON document; docs/simulator.md says what is in it. 2: figures, samples, sweep points."""
_HEADINGS = (
    f"{'policy':<24}{'class':<8}{'requests':>9}{'met':>8}"
    f"{'TTFT p50':>10}{'p95':>9}{'TPOT p50':>10}{'p95':>9}{'E2E p50':>10}{'p95':>9}"
)


def table(rows: Sequence[tuple[str, Outcome, SloReport]]) -> list[str]:
    """One line per policy and class, then one per policy with what went wrong, if anything."""
    lines = [_HEADINGS]
    for name, _, report in rows:
        for one in report.classes:
            figures_text = "".join(
                _pair(quantiles, write)
                for quantiles, write in (
                    (one.ttft_s, text.seconds),
                    (one.tpot_s, text.milliseconds),
                    (one.e2e_s, text.seconds),
                )
            )
            met = text.percent(one.share_met)
            lines.append(f"{name:<24}{one.name:<8}{one.requests:>9}{met:>8}{figures_text}")
    for name, outcome, report in rows:
        lost = {end: n for end, n in outcome.counts().items() if n and end != "served"}
        preempted = int(outcome.preemptions.sum())
        parts = [
            f"goodput {text.per_second(report.goodput_per_s)}",
            f"cached {text.percent(cached_share(outcome))}",
            f"busy {busy_text([replica.busy_s for replica in outcome.replicas], outcome.end_s)}",
        ]
        if preempted:
            parts.append(f"{preempted} preemptions")
        parts += [f"{count} {end}" for end, count in lost.items()]
        lines.append(f"{name}: {', '.join([*parts, *outcome.notes])}")
    return lines


def repeats_table(repeats: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Mean and 95 % interval of each policy's main figures, a line per class, then goodput and, if
    there were sweeps, the load that is borne."""
    runs, independent = next(
        ((one["runs"], one["independent"]) for one in repeats.values()), (0, 1)
    )
    lines = [f"over {runs} {'draws of the mix' if independent else 'variants of the record'}:"]
    for name, found in repeats.items():
        for one in found["classes"]:
            figures_text = ", ".join(
                f"{title} {range_text(interval, write)}"
                for title, interval, write in (
                    ("met", one["share_met"], text.percent),
                    ("TTFT p95", one["ttft_s"][1], text.seconds),
                    ("TPOT p95", one["tpot_s"][1], text.milliseconds),
                    ("E2E p95", one["e2e_s"][1], text.seconds),
                )
            )
            lines.append(f"{name:<24}{one['name']:<8}{figures_text}")
        whole = f"{name}: goodput {range_text(found['goodput_per_s'], text.per_second)}"
        if "capacity_per_s" in found:
            whole += f", bears {range_text(found['capacity_per_s'], text.per_second)}"
        lines.append(whole)
    return lines


def range_text(interval: Mapping[str, float] | None, write: Write) -> str:
    """`12.3 ms (11.8–12.9 ms)`."""
    if interval is None:
        return text.NOTHING
    low = write(interval["low"]).partition(" ")[0].removesuffix("/s")
    return f"{write(interval['mean'])} ({low}–{write(interval['high'])})"


def as_json(outcome: Outcome, report: SloReport, slo: Slo, policies: int = 1) -> dict[str, Any]:
    """All figures but the single requests. `policies`: how many are in the same document."""
    places = class_places(outcome, slo)
    return {
        "requests": outcome.counts(),
        "goodput_per_s": report.goodput_per_s,
        "slo_met": report.met,
        "classes": [
            {
                **asdict(one),
                "served": int(((places == place) & outcome.served).sum()),
                "share_met": one.share_met,
                "quantiles": list(QUANTILES),
            }
            for place, one in enumerate(report.classes)
        ],
        "preemptions": int(outcome.preemptions.sum()),
        "cached_tokens": int(outcome.cached_tokens.sum()),
        "input_tokens": int(outcome.input_tokens.sum()),
        "cached_share": cached_share(outcome),
        "span_s": outcome.span_s,
        "end_s": outcome.end_s,
        "notes": list(outcome.notes),
        "replicas": [asdict(replica) for replica in outcome.replicas],
        **figures(outcome, slo, policies),
    }


def sweep_json(found: Capacity) -> dict[str, Any]:
    """The loads that were tried, by load, and the knee; None: no load tried was borne. `endless`:
    all were, so that there is no knee."""
    return {
        "tolerance": found.tolerance,
        "endless": found.endless,
        "knee_factor": found.best.factor if found.best is not None else None,
        "points": [
            {
                "factor": point.factor,
                "requests_per_s": point.requests_per_s,
                "goodput_per_s": point.report.goodput_per_s,
                "met": point.report.met,
                "share_met": {one.name: one.share_met for one in point.report.classes},
            }
            for point in found.tried
        ],
    }


def fleet_json(fleet: Fleet, failures: Sequence[Failure] = ()) -> dict[str, Any]:
    """What the fleet consists of, down to the figures of its GPUs, and which replicas fail."""
    return {
        "name": fleet.name,
        "gpus": fleet.gpus,
        "pools": [
            {
                "shape": pool.replica.shape.name,
                "replicas": pool.count,
                "tp": pool.replica.shape.tp,
                "pp": pool.replica.shape.pp,
                "gpu": asdict(pool.replica.shape.gpu),
                "kv_tokens": pool.replica.kv_tokens,
                "kv_bytes_per_token": pool.replica.kv_bytes_per_token,
                "longest_tokens": pool.replica.longest_tokens,
                "engine": asdict(pool.replica.settings),
                "efficiency": asdict(pool.replica.time.efficiency),
            }
            for pool in fleet.pools
        ],
        "failures": [
            {
                "replica": failure.replica,
                "at_s": failure.at_s,
                "for_s": failure.for_s if math.isfinite(failure.for_s) else None,
            }
            for failure in failures
        ],
    }


def slo_json(slo: Slo) -> dict[str, Any]:
    """A promise with its open end as null."""
    return {
        "share": slo.share,
        "classes": [
            {**asdict(one), "up_to_tokens": None} if math.isinf(one.up_to_tokens) else asdict(one)
            for one in slo.classes
        ],
    }


def cached_share(outcome: Outcome) -> float:
    """Prompt tokens found cached, of all prompt tokens that came."""
    return int(outcome.cached_tokens.sum()) / max(1, int(outcome.input_tokens.sum()))


def busy_text(busy_s: Sequence[float], end_s: float) -> str:
    """The least and the most busy replica, as `41–87 %`."""
    shares = [100 * one / end_s for one in busy_s if end_s > 0]
    return f"{min(shares):.0f}–{max(shares):.0f} %" if shares else text.NOTHING


def _pair(quantiles: tuple[float, ...] | None, write: Write) -> str:
    middle, high = (None, None) if quantiles is None else quantiles[:2]
    return f"{write(middle):>10}{write(high):>9}"
