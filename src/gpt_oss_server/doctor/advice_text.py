"""A comparison of ways to use GPUs, as text for a terminal, and as JSON.

Knows: wording, units. Does not know: how a figure comes about.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from gpt_oss_server.doctor.advice import Comparison, Way, ratio
from gpt_oss_server.doctor.gpu_specs import specs
from gpt_oss_server.doctor.pace import MEMORY_SHARE, Pace
from gpt_oss_server.doctor.plan import gib
from gpt_oss_server.doctor.plan_text import aligned, wrapped

_SAME = 0.05
# Of a GPU that the simulator has no data of it needs a file (docs/simulator.md).
UNKNOWN_GPU = "GPU.yaml"
NO_LOG = "mixed"
"""What is played where there is no log: a made-up mix of chats, code, documents and agents."""


def plan_command(
    model: str, gpus: int, gpu_name: str, log_file: str | None = None, more: Sequence[str] = ()
) -> str:
    """The command that searches layouts of these GPUs for the one that serves best what is in the
    log (docs/planning.md). `gpu_name` is a `GpuSpec`'s; `more` are further words."""
    simulated = {spec.name: spec.simulated_as for spec in specs()}
    gpu = simulated.get(gpu_name) or UNKNOWN_GPU
    words = ["gpt-oss-server", "plan", "--model", model, "--gpus", f"{gpus}@{gpu}"]
    return shlex.join([*words, "--workload", log_file or NO_LOG, *more])


def plan_lines(command: str, *, logged: bool) -> list[str]:
    """Where to go from here: estimates of one decode step know nothing of queues and prompts."""
    what = "your log" if logged else "a made-up mix; --workload FILE plays your log"
    return [f"Which layout bears most of your traffic, simulated ({what}):", f"  {command}"]


def comparison_lines(compared: Comparison) -> list[str]:
    """A table of paces, a sentence per way, the arithmetic, and what is assumed."""
    if not compared.ways:
        return []
    lines = wrapped(f"Decoding, estimated (time of a token, tokens per second), {_load(compared)}:")
    lines += [*_table(compared), ""]
    if len(compared.ways) > 1:
        lines += [f"Against {compared.ways[0].name}:"]
        for way in compared.ways[1:]:
            lines += wrapped(f"{way.name}: {way_text(way, compared)}", 2, 4)
        lines.append("")
    lines += ["Arithmetic of these steps:"]
    for way in _distinct(compared.ways):
        lines += wrapped(f"{way.name}: {pace_sums(way.loaded, compared)}", 2, 4)
    return [*lines, *wrapped("Assumed: " + "; ".join(assumed(compared)), 0, 2)]


def way_text(way: Way, compared: Comparison) -> str:
    """What a way gives and costs, against the simplest."""
    base = compared.ways[0]
    parts = [f"{ratio(way.kv_tokens, base.kv_tokens)} the KV room"]
    if way.longest != base.longest:
        parts.append(f"requests of {way.longest:,} tokens, not {base.longest:,}")
    parts.append(_faster(base.one.step_s / way.one.step_s))
    tokens = ratio(way.loaded.tokens_s, base.loaded.tokens_s)
    parts.append(f"{tokens} the tokens per second at {way.loaded.sequences} at once")
    if way.at_once != way.loaded.sequences:
        full = ratio(way.full.tokens_s, base.full.tokens_s)
        parts.append(f"{full} with as many as fit ({way.at_once}; {base.name} {base.at_once})")
    if way.loaded.bubble > _SAME:
        parts.append(f"a GPU idles {way.loaded.bubble:.0%} of the time")
    return ", ".join(parts) + f"; {traffic_text(way)}"


def traffic_text(way: Way) -> str:
    """What goes between GPUs."""
    if way.replicas > 1 or way.gpus == 1:
        return "nothing between GPUs"
    return f"{gib(round(way.loaded.traffic_bytes))} between GPUs per token"


def pace_sums(pace: Pace, compared: Comparison) -> str:
    """The sum behind one step."""
    staged = pace.layout in ("auto", "pipeline")
    share = "on the GPU that reads most, " if pace.gpus > pace.replicas else ""
    text = (
        f"{share}{gib(round(pace.weight_bytes))} of weights + {gib(round(pace.kv_bytes))} of KV; "
        f"at {compared.speed.memory_gb_s:,.0f} GB/s x {MEMORY_SHARE:g} "
    )
    if staged and pace.micro_batches * pace.stage_s >= pace.step_s:
        times = f" x {pace.micro_batches} micro-batches" if pace.micro_batches > 1 else ""
        return f"{text}the slowest stage {_ms(pace.stage_s)}{times} = {_ms(pace.step_s)} a token"
    text += f"{_ms(pace.read_s)}{' in all stages, one after the other' if staged else ''}"
    if pace.exchanges:
        noun = "exchange" if pace.exchanges == 1 else "exchanges"
        text += f" + {pace.exchanges} {noun} {_ms(pace.exchange_s)}"
    if compared.host_s:
        text += f" + {_ms(compared.host_s)} seen beside these"
    return f"{text} = {_ms(pace.step_s)} a token"


def assumed(compared: Comparison) -> list[str]:
    """What the figures rest on."""
    speed, load = compared.speed, compared.load
    known = f"{speed.name} of the data sheet" if speed.known else f"a {speed.name}"
    lines = [
        f"{known}: {speed.memory_gb_s:,.0f} GB/s of memory, of which kernels reach "
        f"{MEMORY_SHARE:.0%}; {speed.link} of {speed.link_gb_s:,.0f} GB/s between GPUs",
        f"sequences of {load.tokens:,} tokens, experts chosen independently",
    ]
    if compared.host_s is None:
        lines.append(
            "the time to launch kernels is not counted, which with few requests at once may exceed "
            "all else"
        )
    return lines


def comparison_json(compared: Comparison) -> dict[str, Any]:
    """All figures, in seconds, bytes and tokens."""
    load, speed = compared.load, compared.speed
    return {
        "load": {
            "concurrent": load.concurrent,
            "tokens": load.tokens,
            "longest_tokens": load.longest,
            "given": load.given,
        },
        "gpu": {
            "name": speed.name,
            "known": speed.known,
            "memory_gb_s": speed.memory_gb_s,
            "link": speed.link,
            "link_gb_s": speed.link_gb_s,
        },
        "seen_beside_s": compared.host_s,
        "ways": [_way_json(way, compared) for way in compared.ways],
        "assumed": assumed(compared),
    }


def _way_json(way: Way, compared: Comparison) -> dict[str, Any]:
    return {
        "name": way.name,
        "mode": way.mode,
        "replicas": way.replicas,
        "gpus": way.gpus,
        "kv_tokens": way.kv_tokens,
        "longest_request_tokens": way.longest,
        "at_once": way.at_once,
        "decode": [_pace_json(pace) for pace in (way.one, way.loaded, way.full)],
        "text": way_text(way, compared),
        "arithmetic": pace_sums(way.loaded, compared),
    }


def _pace_json(pace: Pace) -> dict[str, Any]:
    return {
        "sequences": pace.sequences,
        "step_s": round(pace.step_s, 6),
        "tokens_per_s": round(pace.tokens_s, 1),
        "weight_bytes": round(pace.weight_bytes),
        "kv_bytes": round(pace.kv_bytes),
        "read_s": round(pace.read_s, 6),
        "exchanges": pace.exchanges,
        "exchange_s": round(pace.exchange_s, 6),
        "traffic_bytes_per_token": round(pace.traffic_bytes),
        "bubble": round(pace.bubble, 3),
        "micro_batches": pace.micro_batches,
    }


def _table(compared: Comparison) -> list[str]:
    rows = [["", "one at a time", f"{compared.load.concurrent} at once", "as many as fit"]]
    for way in compared.ways:
        most = f"{way.at_once}: {_cell(way.full)}"
        rows.append([way.name, _cell(way.one), _cell(way.loaded), most])
    return aligned(rows)


def _cell(pace: Pace) -> str:
    return f"{_ms(pace.step_s)}, {pace.tokens_s:,.0f}/s"


def _distinct(ways: Sequence[Way]) -> list[Way]:
    """Without replicas where each has but one sequence, as one of them alone."""
    return [way for way in ways if way.replicas == 1 or way.loaded.sequences > way.replicas]


def _load(compared: Comparison) -> str:
    load = compared.load
    example = "" if load.given else " (--requests, --request-tokens)"
    return f"{load.concurrent} requests at once of {load.tokens:,} tokens{example}"


def _faster(gain: float) -> str:
    if abs(gain - 1.0) <= _SAME:
        return "no faster for one request"
    word = "faster" if gain > 1.0 else "slower"
    return f"about {ratio(max(gain, 1.0 / gain), 1.0)} {word} for one request"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"
