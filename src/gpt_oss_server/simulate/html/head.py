"""What was simulated: the title, the facts of fleet and workload, the command that repeats it.

Knows: a document's inputs. Does not know: results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpt_oss_server.simulate.html.markup import Child, Markup, element, joined
from gpt_oss_server.simulate.html.tables import exact, row, table
from gpt_oss_server.simulate.results import number_text as text


def title(document: Mapping[str, Any]) -> str:
    """One line: the model, the fleet, the workload."""
    inputs = document["inputs"]
    return f"{inputs['model_name']} on {inputs['fleet']['name']}, {document['workload']['name']}"


def lead(document: Mapping[str, Any]) -> Markup:
    """The workload and the promises in two sentences."""
    workload, inputs = document["workload"], document["inputs"]
    clients = inputs.get("clients")
    pace = (
        f"played {text.count(clients)} at a time"
        if clients
        else f"{text.per_second(workload['requests_per_s'])} on average"
    )
    asked = (
        f"{text.count(workload['requests'])} requests in {text.duration(workload['duration_s'])}, "
        f"{pace}, on {text.count(inputs['fleet']['gpus'])} GPUs. "
    )
    return element("p", asked, _promise(inputs["slo"]), class_="lead")


def _promise(slo: Mapping[str, Any]) -> str:
    parts = []
    for one in slo["classes"]:
        upper = one["up_to_tokens"]
        whom = f"up to {text.count(upper)} prompt tokens" if upper else "else"
        parts.append(f"{text.plain(one['ttft_s'])}\u00a0s {whom}")
    paces = sorted({one["tpot_s"] for one in slo["classes"]})
    pace = " or ".join(f"{text.plain(1000 * one)}\u00a0ms" for one in paces)
    return (
        f"Promised to {text.plain(100 * slo['share'])} % of each class: the first token within "
        f"{', '.join(parts)}, then {pace} per token."
    )


def problems(document: Mapping[str, Any]) -> Markup | None:
    """What was wrong with the input, if anything."""
    lines: Sequence[str] = document["workload"]["problem_lines"]
    if not lines:
        return None
    return element(
        "aside",
        element("b", "The input was not all well:"),
        element("ul", [element("li", line) for line in lines]),
        class_="problems",
    )


def facts(document: Mapping[str, Any]) -> Markup:
    """All that a stranger needs to repeat it."""
    inputs, workload = document["inputs"], document["workload"]
    versions = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    listed: list[tuple[str, Child]] = [
        ("command", element("code", document["command"], class_="command")),
        ("seed", str(inputs["seed"])),
        ("versions", versions),
        ("requests' SHA-256", element("code", workload["sha256"], class_="digest")),
        ("step formula", _by_shape(inputs["fleet"]["pools"], "efficiency")),
        ("engine", _by_shape(inputs["fleet"]["pools"], "engine")),
    ]
    if inputs["calibrated"]:
        found = inputs["calibrated"]
        listed.append(("calibration", f"of {found['model']}, made {found['made_at']}"))
    if inputs["fleet"]["failures"]:
        listed.append(("failures", "; ".join(map(_failure, inputs["fleet"]["failures"]))))
    pairs = [joined(element("dt", name), element("dd", value)) for name, value in listed]
    return joined(_lengths(workload), _pools(inputs["fleet"]["pools"]), element("dl", pairs))


def _lengths(workload: Mapping[str, Any]) -> Markup:
    rows = [
        row(name, *(exact(value, _count) for value in (workload[key] or {}).values()))
        for name, key in (("prompts", "input_tokens"), ("answers", "output_tokens"))
    ]
    return table("Lengths in tokens", ["tokens", "p50", "p90", "p99", "mean", "most", "all"], rows)


def _pools(pools: Sequence[Mapping[str, Any]]) -> Markup:
    rows = []
    for pool in pools:
        gpu = pool["gpu"]
        measured = "measured" if gpu["calibrated"] else "assumed, not measured"
        share = f"{text.percent(gpu['bandwidth_efficiency'])} ({measured})"
        rows.append(
            row(
                f"{pool['replicas']} × {pool['shape']}",
                gpu["title"],
                text.size(gpu["memory_bytes"]),
                f"{gpu['bandwidth_bytes_s'] / 1e12:.2f} TB/s",
                share,
                f"{text.count(pool['kv_tokens'])} tokens",
                f"{text.count(pool['longest_tokens'])} tokens",
            )
        )
    heads = ["pool", "GPU", "memory", "bandwidth", "of it attained", "KV per replica", "longest"]
    return table("Pools", heads, rows)


def _by_shape(pools: Sequence[Mapping[str, Any]], what: str) -> str:
    """Settings of the pools, once where all are alike, else by shape."""
    said = {pool["shape"]: _pairs(pool[what]) for pool in pools}
    if len(set(said.values())) == 1:
        return next(iter(said.values()))
    return "; ".join(f"{shape}: {one}" for shape, one in said.items())


def _pairs(settings: Mapping[str, Any]) -> str:
    """`name value, …`, without those that are left open."""
    pairs = {name: value for name, value in settings.items() if value is not None}
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in pairs.items()
    )


def _failure(failure: Mapping[str, Any]) -> str:
    until = f" for {text.duration(failure['for_s'])}" if failure["for_s"] is not None else ""
    return f"replica {failure['replica']} at {text.duration(failure['at_s'])}{until}"


def _count(value: float | None) -> str:
    return text.count(value or 0.0)
