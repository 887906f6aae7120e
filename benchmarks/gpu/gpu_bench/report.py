"""The outcome as a page for people and as JSON, of as many sections as there are.

Knows: formats. Does not know: targets' arithmetic, processes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpu_bench.floors import launches
from gpu_bench.records import Record
from gpu_bench.settings import Settings
from gpu_bench.shapes import FORMS
from gpu_bench.targets import Row, rows

GIB = 2**30
DECODED = ("batch", "context", "tokens_per_s", "step_ms", "step_p99_ms")


def write(
    settings: Settings, records: Mapping[str, Record], out: Path, command: str, left: Sequence[str]
) -> Path:
    """Writes DATE-gpu.md and .json into `out`; the first one's path. `left` had no time."""
    table = rows(settings, records)
    at = max((record.at for record in records.values()), default=0.0)
    date = datetime.fromtimestamp(at, UTC)
    result = {
        "date": date.strftime("%Y-%m-%d %H:%M UTC"),
        "command": command,
        "key": settings.key,
        "table": [asdict(row) for row in table],
        "not_run": list(left),
        "sections": {name: asdict(record) for name, record in records.items()},
    }
    out.mkdir(parents=True, exist_ok=True)
    rehearsal = "" if settings.device.startswith("cuda") else "-rehearsal"
    page = out / f"{date:%Y-%m-%d}-gpu{rehearsal}.md"
    page.write_text(markdown(settings, records, table, result))
    page.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    return page


def markdown(
    settings: Settings,
    records: Mapping[str, Record],
    table: Sequence[Row],
    result: Mapping[str, Any],
) -> str:
    lines = [
        *_header(settings, records, result),
        *_targets(table),
        *_compared(records),
        *_decode(settings, records),
        *_hidden(records),
        *_requests(records),
        *_memory(records),
        *_start(records),
        *_profiles(records),
        *_others(records),
        *_troubles(records, result["not_run"]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _good(records: Mapping[str, Record], topic: str) -> Iterable[tuple[str, dict[str, Any]]]:
    """(form, figures) of a topic's sections that went well."""
    for form in FORMS:
        record = records.get(f"{topic}:{form}")
        if record is not None and record.trouble is None and "why_not" not in record.figures:
            yield form, record.figures


def _table(head: Sequence[str], body: Iterable[Sequence[object]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(str(cell) for cell in row) + " |" for row in body), ""]


def _header(
    settings: Settings, records: Mapping[str, Record], result: Mapping[str, Any]
) -> list[str]:
    lines = [f"# GPU benchmark, {result['date']}", ""]
    if not settings.device.startswith("cuda"):
        lines += ["**A rehearsal on a CPU: its figures say nothing of a GPU.**", ""]
    record = records.get("ceilings")
    if record is not None and record.trouble is None:
        found = record.figures
        lines += [
            f"{found['device']}; Python {found['python']}, torch {found['torch']}, transformers "
            f"{found['transformers']}, triton {found['triton']}, CUDA {found['cuda']}. Ceilings of "
            f"this machine: a large copy {found['copy_bytes_per_s'] / 1e12:.3f} TB/s (read and "
            f"written), a large {settings.dtype} product "
            f"{found['product_flop_per_s'] / 1e12:.1f} TFLOP/s.",
            "",
        ]
        if found["stand_ins"]:
            names = ", ".join(found["stand_ins"])
            lines += [f"Stood in for, because they are missing: {names}.", ""]
    layers = settings.config("bf16")["num_hidden_layers"]
    lines += [
        f"Shape {settings.shape}, {layers} layers, random weights.",
        "",
        f"    {result['command']}",
        "",
    ]
    return lines


def _targets(table: Sequence[Row]) -> list[str]:
    marks = {True: "yes", False: "**no**", None: ""}
    body = [
        (
            row.what,
            row.target,
            row.found,
            row.floor,
            "" if row.share is None else f"{row.share:.0%}",
            marks[row.met],
        )
        for row in table
    ]
    return ["## Targets", "", *_table(["", "target", "found", "floor", "of it", "met"], body)]


def _compared(records: Mapping[str, Record]) -> list[str]:
    lines: list[str] = []
    for form, found in _good(records, "compare"):
        lines += [
            f"**{form}**: {found['equal']} of {found['rows']} tokens are transformers' best in the "
            f"same context; logits differ by {found['error']:.1e} (‖ours - theirs‖ / ‖theirs‖), "
            f"the worst row by {found['worst_error']:.1e}, {found['rows_over_limit']} rows by more "
            f"than {found['limit']:.0e}. transformers against itself, its experts computed one by "
            f"one: {found['transformers_with_other_rounding']}. Against float32: "
            f"{found['in_float32']}. `generate` says alike, of short prompts: "
            + ", ".join(f"{alike} of {of}" for alike, of in found["generate_agrees"])
            + ".",
            "",
        ]
        if found["differing"]:
            head = ["prompt", "position", "margin", "largest difference of a logit", "row's error"]
            lines += _table(head, (list(one.values()) for one in found["differing"]))
    return ["## Against transformers", "", *lines] if lines else []


def _decode(settings: Settings, records: Mapping[str, Record]) -> list[str]:
    body = [
        (form, *(one[name] for name in DECODED), " / ".join(map(str, one["windows"])))
        for form, found in _good(records, "decode")
        for one in found["batches"]
    ]
    if not body:
        return []
    head = ["weights", "batch", "context", "tok/s", "step p50 ms", "p99 ms", "windows, tok/s"]
    count = launches(settings.config("bf16"))
    said = f"A recorded step has some {count} kernels, sampling not counted."
    return ["## Decode", "", *_table(head, body), said, ""]


def _hidden(records: Mapping[str, Record]) -> list[str]:
    body = [(form, *found.values()) for form, found in _good(records, "hidden")]
    times = ["step µs", "device busy µs", "device waits µs", "host works µs"]
    head = ["weights", *times, "kernels", "hidden"]
    return ["## A step at batch 1: host and device", "", *_table(head, body)] if body else []


def _requests(records: Mapping[str, Record]) -> list[str]:
    body = [(f"ours, {form}", found) for form, found in _good(records, "requests")]
    body += [("`generate_batch`, bf16", found) for _, found in _good(records, "generate_batch")]
    if not body:
        return []
    head = ["", "requests", "in / out", "seconds", "tok/s", "measured"]
    cells = [
        (
            name,
            one["requests"],
            f"{one['input']} / {one['output']}",
            one["seconds"],
            one["tokens_per_s"],
            "whole" if one.get("measured", True) else "reckoned",
        )
        for name, one in body
    ]
    return ["## Many requests", "", *_table(head, cells)]


def _memory(records: Mapping[str, Record]) -> list[str]:
    lines: list[str] = []
    for form, found in _good(records, "memory"):
        body = [
            (name.removesuffix("_bytes").replace("_", " "), f"{size:,}", f"{size / GIB:.3f}")
            for name, size in found.items()
            if name.endswith("_bytes") and size is not None
        ]
        lines += [f"**{form}**", "", *_table(["", "bytes", "GiB"], body)]
    return ["## Memory", "", *lines] if lines else []


def _start(records: Mapping[str, Record]) -> list[str]:
    lines: list[str] = []
    for form, found in _good(records, "start"):
        lines += [
            f"**{form}**: {found['seconds']} s, forward pass {found['forward']}, attention "
            f"{found['attention_backend']}" + (", nothing captured" if found["eager"] else ""),
            "",
        ]
        named = [f"{name} {seconds} s" for name, seconds, _ in found["startup"] if seconds]
        lines += [f"By the engine's own count: {', '.join(named)}.", ""] if named else []
        body = [
            (says, round(seconds, 2), f"{held / GIB:.2f}")
            for says, seconds, held in _joined(found["phases"])
        ]
        lines += _table(["said", "seconds until the next", "GiB allocated then"], body)
    return ["## Start-up", "", *lines] if lines else []


def _joined(phases: Iterable[Mapping[str, Any]]) -> list[tuple[str, float, int]]:
    """Lines that count up (`loading weights: 5 %`) as one."""
    joined: list[tuple[str, float, int]] = []
    for one in phases:
        says = one["says"].partition(":")[0] if any(map(str.isdigit, one["says"])) else one["says"]
        seconds = one["seconds"]
        if joined and joined[-1][0] == says:
            seconds += joined.pop()[1]
        joined.append((says, seconds, one["bytes"]))
    return joined


def _profiles(records: Mapping[str, Record]) -> list[str]:
    lines: list[str] = []
    for form, found in _good(records, "profile"):
        for name, one in found.items():
            lines += [
                f"### {name}, {form}",
                "",
                f"{one['device_busy_ms']} ms of device time a {one['unit']}, {one['launches']} "
                "launches.",
                "",
                *_table(
                    ["kernel", "launches", "µs", "share"],
                    (
                        (
                            f"`{row['kernel']}`",
                            row["launches"],
                            row["microseconds"],
                            f"{row['share']:.1%}",
                        )
                        for row in one["kernels"]
                    ),
                ),
            ]
    return ["## Where the time goes", "", *lines] if lines else []


def _others(records: Mapping[str, Record]) -> list[str]:
    lines: list[str] = []
    tests = records.get("tests")
    if tests is not None and tests.trouble is None:
        lines += ["## Tests", "", f"`{tests.figures['command']}`: {tests.figures['summary']}", ""]
        lines += [f"- {line}" for line in tests.figures["failed"]]
    for name, record in records.items():
        if name.startswith("tune") and record.trouble is None:
            lines += [record.figures["markdown"].replace("# ", "## ", 1), ""]
    return lines


def _troubles(records: Mapping[str, Record], left: Sequence[str]) -> list[str]:
    lines = [f"- {name}: {one.trouble}" for name, one in records.items() if one.trouble]
    lines += [f"- {name}: no time was left; `--resume` runs it" for name in left]
    return ["## What is missing", "", *lines] if lines else []
