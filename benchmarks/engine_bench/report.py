"""The results as a table for people and as JSON.

Knows: targets and formats. Does not know: how anything was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OURS = "ours"
PEER = "transformers serve"
RATE_TARGETS = {"1": 1.2, "8": 2.0, "32": 4.0}


@dataclass(frozen=True)
class Check:
    """One promise: what was found against what was promised."""

    what: str
    found: str
    target: str
    met: bool


def checks(result: Mapping[str, Any]) -> list[Check]:
    """The promises that this run can judge: those whose section was measured."""
    found = [
        _at_least(
            f"output tok/s over HTTP against `{PEER}`, concurrency {concurrency}",
            ratio,
            RATE_TARGETS[concurrency],
            result["rate_ratios_per_cpu_s"][concurrency],
        )
        for concurrency, ratio in result.get("rate_ratios", {}).items()
    ]
    if "ttft_ratio_32" in result:
        what = f"TTFT p50 at concurrency 32 against `{PEER}`"
        found.append(_at_most_one_in(what, result["ttft_ratio_32"], 8))
    if "boundary" in result:
        ratio = result["boundary"]["ratio"]
        what = "tok/s over HTTP against in-process, concurrency 8"
        found.append(Check(what, f"{ratio:.1%}", "≥ 95 %", ratio >= 0.95))
    if "prefix" in result:
        ratio = result["prefix"][OURS]["ratio"]
        found.append(_at_most_one_in("TTFT with a cached prefix against cold", ratio, 5))
    if "kv" in result:
        found += _kv_checks(result["kv"])
    return found


def _at_least(what: str, ratio: float | None, target: float, per_cpu: float | None) -> Check:
    shown = "–" if ratio is None else f"{ratio:.2f}×"
    shown += "" if per_cpu is None else f" ({per_cpu:.2f}× per CPU second)"
    return Check(what, shown, f"≥ {target:g}×", ratio is not None and ratio >= target)


def _at_most_one_in(what: str, ratio: float | None, parts: int) -> Check:
    shown = f"1/{1 / ratio:.1f}" if ratio else "–"
    return Check(what, shown, f"≤ 1/{parts}", ratio is not None and ratio <= 1 / parts)


def _kv_checks(kv: Mapping[str, Any]) -> list[Check]:
    left = sum(kv["blocks"]["in_use"].values())
    steps = f"KV blocks predicted = real after each of {kv['steps']:,} steps"
    drained = (
        f"KV blocks left after {kv['requests']:,} random requests, {kv['cancelled']:,} cancelled"
    )
    return [
        Check(steps, f"{kv['mismatches']} differ", "0 differ", kv["mismatches"] == 0),
        Check(drained, str(left), "0", left == 0),
    ]


def markdown(result: Mapping[str, Any]) -> str:
    """The whole report, of the sections that were measured."""
    lines = [*_header(result), *_checks_table(checks(result))]
    parts: dict[str, Callable[[Any], list[str]]] = {
        "throughput": _throughput_table,
        "agreement": _agreement,
        "boundary": _boundary_lines,
        "mixed": _mixed_table,
        "prefix": _prefix_table,
        "client_cpu_share": _client_lines,
    }
    for name, write in parts.items():
        if name in result:
            lines += write(result[name])
    return "\n".join(lines)


def _header(result: Mapping[str, Any]) -> list[str]:
    machine = result["machine"]
    scale = result["scale"]
    after = machine.get("load_average_after", "unknown")
    lines = [
        f"# Engine benchmark, {machine['date']}",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB; "
        f"{machine['system']}; Python {machine['python']}, torch {machine['ours']['torch']}, "
        f"transformers {machine['ours']['transformers']}. One torch thread per system, float32. "
        f"Load average before the run {machine['load_average']}, after {after}.",
        "",
        f"    {result['command']}",
        "",
        f"Model: gpt-oss shape, {result['parameters'] / 1e6:.1f} M random parameters. Prompts "
        "of 130 tokens, all different; 64 output tokens; greedy; closed loop. Systems take "
        f"turns; rounds: {scale['rounds']} closed loop, {scale['boundary_rounds']} boundary, "
        f"{scale['prefix_rounds']} prefix, {scale['mixed_rounds']} mixed. Rates are medians over "
        "rounds, quantiles are over all requests.",
        "",
    ]
    if result.get("incomplete"):
        lines += ["**The run was cut short; what follows is what was measured by then.**", ""]
    peer = machine["peer"]
    if peer is None:
        return [*lines, f"`{PEER}` was not measured: {result['peer_absent']}", ""]
    command = ["transformers serve --continuous-batching --device cpu", *result["peer_args"]]
    versions = f"transformers {peer['transformers']}, torch {peer['torch']}"
    return [*lines, f"Peer: `{' '.join(command)}`, {versions}.", ""]


def _client_lines(share: float) -> list[str]:
    return [
        "## Load generator",
        "",
        f"Its CPU time was at most {share:.1%} of a round's wall time.",
        "",
    ]


def _checks_table(found: Sequence[Check]) -> list[str]:
    rows = [[c.what, c.found, c.target, "yes" if c.met else "**no**"] for c in found]
    return ["## Targets", "", *_table(["", "found", "target", "met"], rows), ""]


def _throughput_table(throughput: Mapping[str, Any]) -> list[str]:
    head = [
        "concurrency",
        "system",
        "tok/s",
        "tok per CPU s",
        "TTFT p50 / p99 ms",
        "ITL p50 / p99 ms",
        "E2E p50 ms",
        "errors",
    ]
    rows = []
    for concurrency, by_name in throughput.items():
        for name, row in by_name.items():
            rows.append(
                [
                    concurrency,
                    name,
                    _show(row["tokens_per_s"]),
                    _show(row["tokens_per_cpu_s"]),
                    _pair(row["ttft_p50_ms"], row["ttft_p99_ms"]),
                    _pair(row["itl_p50_ms"], row["itl_p99_ms"]),
                    _show(row["e2e_p50_ms"]),
                    str(row["errors"]),
                ]
            )
    return ["## Closed loop", "", *_table(head, rows), ""]


def _agreement(agreement: Mapping[str, Any]) -> list[str]:
    parts = [f"{name} {same} of {of}" for name, (same, of) in agreement.items()]
    return ["Answers equal to those of `generate`: " + ", ".join(parts) + ".", ""]


def _boundary_lines(boundary: Mapping[str, Any]) -> list[str]:
    per_cpu = boundary["ratio_per_cpu_s"]
    return [
        "## What HTTP and the process boundary cost",
        "",
        f"Concurrency 8: {boundary['http']['tokens_per_s']} tok/s over HTTP, "
        f"{boundary['in_process']['tokens_per_s']} in-process; median of the rounds' ratios "
        f"{boundary['ratio']:.1%}"
        + (f" (tokens per CPU second, all processes: {per_cpu:.1%})." if per_cpu else "."),
        "",
    ]


def _mixed_table(mixed: Mapping[str, Any]) -> list[str]:
    head = [
        "system",
        "chat tok/s",
        "chat TTFT p50 / p99 ms",
        "chat ITL p50 / p99 ms",
        "chats without a token",
        "long answered",
        "long TTFT p50 ms",
    ]
    rows = [
        [
            name,
            _show(row["chat_tokens_per_s"]),
            _pair(row["chat_ttft_p50_ms"], row["chat_ttft_p99_ms"]),
            _pair(row["chat_itl_p50_ms"], row["chat_itl_p99_ms"]),
            str(row["chats_without_token"]),
            f"{row['long_answered']} of {row['long_sent']}",
            _show(row["long_ttft_p50_ms"]),
        ]
        for name, row in mixed.items()
    ]
    return [
        "## Mixed load",
        "",
        "Eight chats in a closed loop and a prompt of 4,096 tokens every second. What still ran "
        "at the end counts with the time it had waited by then.",
        "",
        *_table(head, rows),
        "",
    ]


def _prefix_table(prefix: Mapping[str, Any]) -> list[str]:
    rows = [
        [name, _show(row["cold_ttft_ms"]), _show(row["hit_ttft_ms"]), _show(row["ratio"])]
        for name, row in prefix.items()
    ]
    return [
        "## Shared prefix",
        "",
        "2,048 shared tokens and 32 of one's own, one request at a time; medians.",
        "",
        *_table(["system", "cold TTFT ms", "hit TTFT ms", "ratio"], rows),
        "",
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _show(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if abs(value) < 1 else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _pair(a: float | None, b: float | None) -> str:
    return "–" if a is None else f"{_show(a)} / {_show(b)}"
