"""What `sim_own.py` found, for people and against its targets.

Knows: the shape of its results. Does not know: how they were measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from own_bench.compare import SHORT_TOKENS, errors, middle_of, spread
from promises import Promise, table

TARGETS = {"e2e_p50": 0.10, "e2e_p95": 0.15}
KEYS = ("ttft_p50", "ttft_p95", "e2e_p50", "e2e_p95")

Result = dict[str, Any]


def groups(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Repeats of the same set-up together, in order."""
    found: dict[str, list[Result]] = {}
    for one in results:
        count = one["replicas"]
        rule = f", {one['policy']}" if count > 1 else ""
        name = f"{count} replica{'s' if count > 1 else ''}{rule}, {one['load']} load"
        found.setdefault(name, []).append(one)
    return found


def sizes(repeats: Sequence[Result], key: str, how: str) -> list[float]:
    """Size of the error of each repeat (of all its requests): median of its runs foreseen (`how`:
    as calibrated, or told the cores' speed) over their median measured."""
    found = []
    for one in repeats:
        foreseen = middle_of([run[how] for run in one["runs"]])
        measured = middle_of([run["measured"] for run in one["runs"]])
        found.append(abs(errors(foreseen, measured)["all"][key]))
    return found


def apart(repeats: Sequence[Result], key: str) -> list[float]:
    """How far runs of one repeat are from their median, where there are several."""
    return [
        spread([run["measured"] for run in one["runs"]])["all"][key]
        for one in repeats
        if len(one["runs"]) > 1
    ]


def promises(results: Sequence[Result]) -> list[Promise]:
    """E2E of all requests: mean size of the error over repeats."""
    made = []
    for name, repeats in groups(results).items():
        for key, target in TARGETS.items():
            found, noise = sizes(repeats, key, "foreseen"), apart(repeats, key)
            mean = sum(found) / len(found)
            runs = sum(len(one["runs"]) for one in repeats)
            text = f"{mean:.1%}, worst {max(found):.1%}; {runs} runs"
            if noise:
                text += f", ±{sum(noise) / len(noise):.1%} among themselves"
            untold = sizes(repeats, key, "as_calibrated")
            text += f" (as calibrated {sum(untold) / len(untold):.1%})"
            made.append(
                Promise(
                    f"{name}: {key.replace('_', ' ').upper()}",
                    text,
                    f"≤ {target:.0%}",
                    mean <= target,
                    timing=True,
                )
            )
    return made


def markdown(results: Sequence[Result], described: dict[str, Any]) -> str:
    """The whole result."""
    lines = [
        "# Our own server foreseen",
        "",
        f"{described['date']}; {described['cpu']}, {described['cores']} cores, "
        f"{described['memory_gib']} GiB; Python {described['python']}, torch "
        f"{described['ours']['torch']}.",
        "",
        "`python benchmarks/sim_own.py --first`",
        "",
        "Built-in `tiny` shape with random weights, one engine thread per replica, front and "
        "engine on one core, at most 32 sequences. Calibrated on closed loops; played and "
        "foreseen: bursts of chats, code and documents, open loop. Error: foreseen over measured "
        "less one; of a repeat, medians over its runs. Foreseen is told how much slower than "
        "during calibration a probe found the cores in that run; in brackets, without that.",
        "",
        *table(promises(results)),
    ]
    for name, repeats in groups(results).items():
        lines += ["", f"## {name[0].upper()}{name[1:]}", "", *_head()]
        for number, one in enumerate(repeats, 1):
            for run in one["runs"]:
                lines += _rows(number, run)
    lines += ["", "## Calibrations", "", *_calibrations(results), ""]
    return "\n".join(lines)


def _head() -> list[str]:
    cells = " | ".join(f"{key.replace('_', ' ').upper()} s, error" for key in KEYS)
    return [
        f"| repeat | cores slower | class | requests | {cells} |",
        "|---|---|---|---|" + "---|" * len(KEYS),
    ]


def _rows(number: int, run: Result) -> list[str]:
    rows = []
    off = errors(run["foreseen"], run["measured"])
    untold = errors(run["as_calibrated"], run["measured"])
    slower = ", ".join(f"{speed - 1:+.0%}" for speed in run["slower"])
    for name, found in off.items():
        measured = run["measured"][name]
        cells = " | ".join(
            f"{measured[key]:.3f}, {found[key]:+.1%} ({untold[name][key]:+.1%})" for key in KEYS
        )
        label = {"short": f"≤ {SHORT_TOKENS}", "long": f"> {SHORT_TOKENS}"}.get(name, name)
        rows.append(f"| {number} | {slower} | {label} | {measured['n']:.0f} | {cells} |")
    return rows


def _calibrations(results: Sequence[Result]) -> list[str]:
    lines = [
        "| replicas, repeat | loops, requests | TTFT held out | TPOT | E2E | from pass to pass "
        "| cores slower than at best | others' CPU in runs, cores |",
        "|---|---|---|---|---|---|---|---|",
    ]
    seen = set()
    for one in results:
        repeat = (one["replicas"], one["seed"])
        if repeat in seen:
            continue
        seen.add(repeat)
        others = max(run["others_cores"] for run in one["runs"])
        for worth, slowness in zip(one["calibration"], one["slowness"], strict=True):
            held = [worth["held_out"][kind]["mean_absolute"] for kind in ("ttft", "tpot", "e2e")]
            shown = " | ".join(f"{error:.1%}" for error in held)
            lines.append(
                f"| {repeat[0]}, {repeat[1]} | {worth['loops']}, {worth['requests']} | {shown} "
                f"| {worth['spread']:.0%} | {slowness - 1:+.0%} | {others:.2f} |"
            )
    return lines
