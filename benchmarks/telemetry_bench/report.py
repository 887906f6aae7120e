"""The figures against what was promised, as a table for people.

Knows: targets and Markdown. Does not know: how anything was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """One promise: what was found against what was promised."""

    what: str
    found: str
    target: str
    met: bool


def checks(result: Mapping[str, Any]) -> list[Check]:
    """The promises that this run can judge."""
    plain, traced = result["per_request_us"]["untraced"], result["per_request_us"]["traced"]
    token_ns = result["per_token_ns"]
    lag_ms = result["loop_lag_ms"]["scraped"]["p99"]
    slowest_s = max(result["closing_s"].values())
    found = [
        _at_most("per request, untraced", plain["all"], "µs", 50),
        _at_most("per request, traced", traced["all"], "µs", 300),
        _at_most("per token", token_ns / 1000, "µs", 1),
        _at_most("event-loop lag p99, scraped each second", lag_ms, "ms", 5),
        _at_most("end of the process, collector fine, dead or hanging", slowest_s, "s", 1),
    ]
    if "rates" in result:
        ratio = result["rates"]["ratio"]
        what = "output tok/s, everything on against everything off"
        found.insert(3, Check(what, f"{ratio:.2%}", "≥ 99 %", ratio >= 0.99))
    return found


def _at_most(what: str, value: float, unit: str, target: float) -> Check:
    return Check(what, f"{value:.3g} {unit}", f"≤ {target:g} {unit}", value <= target)


def markdown(result: Mapping[str, Any]) -> str:
    """The whole report."""
    machine = result["machine"]
    lines = [
        f"# Cost of telemetry, {machine['date']}",
        "",
        f"{machine['cpu']}, {machine['cores']} cores; {machine['system']}; Python "
        f"{machine['python']}. Load average before the run {machine['load_average']}, after "
        f"{machine['load_average_after']}.",
        "",
        f"    {result['command']}",
        "",
        "| | found | target | |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {one.what} | {one.found} | {one.target} | {'met' if one.met else '**missed**'} |"
        for one in checks(result)
    ]
    return "\n".join([*lines, "", *_requests(result), *_scrapes(result), *_rates(result)])


def _requests(result: Mapping[str, Any]) -> list[str]:
    plain, traced = result["per_request_us"]["untraced"], result["per_request_us"]["traced"]
    return [
        "Per request: metrics, JSON log and the bundle's memory on; CPU time of all threads, "
        f"medians of {result['repeats']} repeats. Of it on the thread that serves: "
        f"{plain['serving']:.1f} µs untraced, {traced['serving']:.1f} µs traced (every request "
        "sent to a collector, gzip and HTTP included).",
        "",
    ]


def _scrapes(result: Mapping[str, Any]) -> list[str]:
    render, lag, closing = result["render"], result["loop_lag_ms"], result["closing_s"]
    ends = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in closing.items())
    return [
        f"A scrape of {render['lines']} lines: {render['snapshot_ms']:.2f} ms on the event loop, "
        f"{render['page_ms']:.1f} ms in a thread.",
        "",
        "| event-loop lag, 200 requests/s, all traced | p50 ms | p99 ms | max ms |",
        "|---|---|---|---|",
        *(
            f"| {name} | {lag[key]['p50']:.2f} | {lag[key]['p99']:.2f} | {lag[key]['max']:.1f} |"
            for key, name in (("scraped", "scraped each second"), ("not_scraped", "not scraped"))
        ),
        "",
        f"The end waits for a collector that {ends}.",
        "",
    ]


def _rates(result: Mapping[str, Any]) -> list[str]:
    if "rates" not in result:
        return []
    rates = result["rates"]
    return [
        "The real server and engine (gpt-oss shape, 35 M random parameters, one thread), 8 "
        f"clients, answers of 64 tokens, {rates['pairs']} pairs of rounds. On: metrics scraped "
        "each second as OpenMetrics, JSON log to a file, every request traced. Off: none of it, "
        "trails included.",
        "",
        "| | on | off | on / off (median of pairs; 90 % interval) |",
        "|---|---|---|---|",
        f"| output tok/s | {rates['on_tokens_per_s']:.1f} | {rates['off_tokens_per_s']:.1f} | "
        f"{rates['ratio']:.2%} ({rates['ratio_low']:.2%} – {rates['ratio_high']:.2%}) |",
        f"| CPU per output token, front | {rates['on_front_us']:.0f} µs | "
        f"{rates['off_front_us']:.0f} µs | |",
        f"| CPU per output token, worker | {rates['on_worker_us']:.0f} µs | "
        f"{rates['off_worker_us']:.0f} µs | |",
        "",
    ]
