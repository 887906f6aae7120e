"""A simulated run as text and as JSON.

Knows: what people want to see of an outcome. Does not know: files, terminals, HTML.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from gpt_oss_server.simulate.outcome import Outcome
from gpt_oss_server.simulate.slo import Slo, SloReport

_HEADINGS = (
    f"{'policy':<24}{'class':<8}{'requests':>9}{'met':>8}"
    f"{'TTFT p50':>10}{'p95':>9}{'TPOT p50':>10}{'p95':>9}{'E2E p50':>10}{'p95':>9}"
)


def table(rows: Sequence[tuple[str, Outcome, SloReport]]) -> list[str]:
    """One line per policy and class, then one per policy with what went wrong, if anything."""
    lines = [_HEADINGS]
    for name, _, report in rows:
        for one in report.classes:
            figures = "".join(
                _pair(quantiles, scale, unit)
                for quantiles, scale, unit in (
                    (one.ttft_s, 1.0, "s"),
                    (one.tpot_s, 1000.0, "ms"),
                    (one.e2e_s, 1.0, "s"),
                )
            )
            met = f"{100 * one.share_met:.1f} %"
            lines.append(f"{name:<24}{one.name:<8}{one.requests:>9}{met:>8}{figures}")
    for name, outcome, report in rows:
        lost = {end: n for end, n in outcome.counts().items() if n and end != "served"}
        preempted = int(outcome.preemptions.sum())
        cached = int(outcome.cached_tokens.sum()) / max(1, int(outcome.input_tokens.sum()))
        parts = [
            f"goodput {report.goodput_per_s:.2f}/s",
            f"cached {100 * cached:.1f} %",
            f"busy {_busy(outcome)}",
        ]
        if preempted:
            parts.append(f"{preempted} preemptions")
        parts += [f"{count} {end}" for end, count in lost.items()]
        lines.append(f"{name}: {', '.join(parts)}")
    return lines


def as_json(outcome: Outcome, report: SloReport) -> dict[str, Any]:
    """All figures but the single requests."""
    return {
        "requests": outcome.counts(),
        "goodput_per_s": report.goodput_per_s,
        "slo_met": report.met,
        "classes": [
            {**asdict(one), "share_met": one.share_met, "quantiles": [50, 95, 99]}
            for one in report.classes
        ],
        "preemptions": int(outcome.preemptions.sum()),
        "cached_tokens": int(outcome.cached_tokens.sum()),
        "input_tokens": int(outcome.input_tokens.sum()),
        "span_s": outcome.span_s,
        "end_s": outcome.end_s,
        "replicas": [asdict(replica) for replica in outcome.replicas],
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


def _pair(quantiles: tuple[float, ...] | None, scale: float, unit: str) -> str:
    if quantiles is None:
        return f"{'-':>10}{'-':>9}"
    digits = 1 if scale > 1 else 2
    middle, high = (f"{value * scale:.{digits}f} {unit}" for value in quantiles[:2])
    return f"{middle:>10}{high:>9}"


def _busy(outcome: Outcome) -> str:
    shares = [100 * r.busy_s / outcome.end_s for r in outcome.replicas if outcome.end_s > 0]
    if not shares:
        return "-"
    return f"{min(shares):.0f}–{max(shares):.0f} %"
