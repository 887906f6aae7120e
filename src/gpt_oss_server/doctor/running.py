"""The doctor's advice for a server that runs: its own model, its GPUs, the load it has seen.

Knows: which figures of an engine and of readings make a plan and a load. Does not know: the
arithmetic (`plan`, `pace`, `advice`), HTTP. Nothing is loaded, no GPU is asked: the last readings
are used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from gpt_oss_server.config import Settings
from gpt_oss_server.doctor.advice import Comparison, Load, advise, compare
from gpt_oss_server.doctor.advice_text import comparison_json, plan_command
from gpt_oss_server.doctor.gpu_specs import spec_of
from gpt_oss_server.doctor.models import checkpoint_size
from gpt_oss_server.doctor.plan import (
    Plan,
    PlanRequest,
    WeightsForm,
    make_plan,
    stored_form,
    widened,
)
from gpt_oss_server.errors import StartupError
from gpt_oss_server.lifecycle import in_daemon_thread
from gpt_oss_server.memory.fit import FitRequest, GpuMode
from gpt_oss_server.memory.kv import DTYPE_BYTES
from gpt_oss_server.memory.weights import weights_of
from gpt_oss_server.ports import GpuReading
from gpt_oss_server.routing.decide import NO_GPU_ADVICE, ONE_GPU_ADVICE
from gpt_oss_server.types import EngineInfo, EngineStats

REFRESH_S = 10.0
CPU_RANKS = (
    "none for this machine: its ranks share one CPU and its memory, which shows how a mode works "
    "and gains nothing"
)
_PREFIX = "Recommendation: "


@dataclass(frozen=True)
class Seen:
    """A server at a moment. `request_tokens` and `longest_tokens` are of its last requests, prompt
    and answer; None before the first ended. `machine_gpus` is None where not known."""

    info: EngineInfo
    stats: EngineStats
    readings: tuple[GpuReading, ...]
    gpu_mode: GpuMode
    machine_gpus: int | None = None
    request_tokens: float | None = None
    longest_tokens: float | None = None


class Advisor:
    """Works the advice out in a thread, at most every `REFRESH_S`."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        see: Callable[[], Seen],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`see` is called on the event loop; it raises NotReady while there is nothing to see."""
        self._folder = folder
        self._settings = settings
        self._see = see
        self._clock = clock
        self._last: dict[str, Any] | None = None
        self._asked_s: float | None = None

    def last(self) -> dict[str, Any] | None:
        """The advice as it was worked out last; None before."""
        return self._last

    async def refresh(self) -> None:
        """Work it out again, unless that was a moment ago. Never raises for a model whose memory
        cannot be calculated: the advice then says so."""
        now_s = self._clock()
        if self._asked_s is not None and now_s - self._asked_s < REFRESH_S:
            return
        self._asked_s = now_s
        seen = self._see()
        self._last = await in_daemon_thread(partial(advice_of, self._folder, self._settings, seen))


def advice_of(folder: Path, settings: Settings, seen: Seen) -> dict[str, Any]:
    """The advice as `/stats` shows it: `mode` (None: nothing to advise), `text`, `arithmetic`,
    `current_mode`, `load` that was seen (None: no step yet), `comparison`, and the `plan_command`
    that finds a layout for this server's log (None where there is nothing to choose)."""
    load = load_seen(seen)
    document: dict[str, Any] = {
        "current_mode": seen.gpu_mode,
        "mode": None,
        "text": "",
        "arithmetic": "",
        "load": None if load is None else asdict(load),
        "comparison": None,
        "plan_command": None,
    }
    impossible = _why_none(seen)
    if impossible is not None:
        return {**document, "text": impossible}
    try:
        config = msgspec.json.decode((folder / "config.json").read_bytes(), type=dict[str, Any])
        plan = make_plan(config, _request(config, folder, settings, seen))
        compared = _compared(config, plan, seen, load)
    except (StartupError, OSError, msgspec.DecodeError):  # which may name where the model lies
        return {**document, "text": "none: the memory of this model cannot be calculated"}
    found = advise(config, plan, compared)
    return {
        **document,
        "mode": found.mode,
        "text": found.text,
        "arithmetic": found.arithmetic,
        "comparison": comparison_json(compared),
        "plan_command": plan_for(settings, seen),
    }


def plan_for(settings: Settings, seen: Seen) -> str:
    """`gpt-oss-server plan` with this server's model, GPUs, engine, layout and log."""
    speed = spec_of([reading.name for reading in seen.readings])
    ranks = {"single": "tp1", "tensor": f"tp{len(seen.info.ranks)}"}
    if seen.gpu_mode == "pipeline":
        ranks["pipeline"] = f"pp{len(seen.info.ranks)}"
    more = ["--max-num-seqs", str(seen.info.max_num_seqs)]
    more += ["--max-batch-tokens", str(seen.info.max_batch_tokens)]
    if seen.gpu_mode in ranks:
        more += ["--current", f"1x{ranks[seen.gpu_mode]}"]
    gpus = seen.machine_gpus or len(_sizes(seen.readings))
    log = settings.log_file if settings.log_format != "human" else None
    return plan_command(settings.model, gpus, speed.name, log, more)


def load_seen(seen: Seen) -> Load | None:
    """Sequences at once in a decode step, on the mean over steps, and their usual length; None
    before any step decoded or any request ended."""
    tally = seen.stats.step_tokens.get("decode")
    if tally is None or not sum(tally.counts) or not seen.request_tokens:
        return None
    at_once = seen.info.micro_batches * tally.total / sum(tally.counts)
    return Load(
        concurrent=max(1, round(at_once)),
        tokens=max(1, round(seen.request_tokens)),
        longest=None if seen.longest_tokens is None else round(seen.longest_tokens),
        given=True,
    )


def _why_none(seen: Seen) -> str | None:
    """Why several GPUs are out of the question here; None where they are not."""
    if seen.info.device == "cpu" and len(seen.info.ranks) > 1:
        return CPU_RANKS
    if seen.info.device == "cpu" or seen.machine_gpus == 0:
        return NO_GPU_ADVICE.removeprefix(_PREFIX)
    if seen.machine_gpus == 1 or _usable(seen.readings, None) == 1:
        return ONE_GPU_ADVICE.removeprefix(_PREFIX)
    if not _sizes(seen.readings):
        return "none yet: the GPUs' memory is not known"
    return None


def _compared(config: Mapping[str, Any], plan: Plan, seen: Seen, load: Load | None) -> Comparison:
    speed = spec_of([reading.name for reading in seen.readings])
    batches = seen.info.micro_batches if seen.gpu_mode == "pipeline" else None
    compared = compare(config, plan, load or Load(), speed, micro_batches=batches)
    host_s = _host_s(compared, seen)
    if host_s is None:
        return compared
    return compare(config, plan, compared.load, speed, micro_batches=batches, host_s=host_s)


def _host_s(compared: Comparison, seen: Seen) -> float | None:
    """What decode steps took beyond the estimate for the mode that runs: on the mean, since the
    engine started. None where that cannot be told."""
    tally = seen.stats.step_seconds.get("decode")
    now = [way for way in compared.ways if way.mode == seen.gpu_mode and way.replicas == 1]
    if tally is None or not sum(tally.counts) or not now or not compared.speed.known:
        return None
    if not compared.load.given:
        return None
    step_s = seen.info.micro_batches * tally.total / sum(tally.counts)
    return max(0.0, step_s - now[0].loaded.step_s)


def _request(
    config: Mapping[str, Any], folder: Path, settings: Settings, seen: Seen
) -> PlanRequest:
    info = seen.info
    sizes = _sizes(seen.readings)
    machine = FitRequest(
        gpu_memory_bytes=min(sizes),
        gpus=_usable(seen.readings, settings.gpus),
        utilization=settings.gpu_memory_utilization,
        block_size=info.block_size,
        max_num_seqs=info.max_num_seqs,
        max_batch_tokens=info.max_batch_tokens,
        dtype_bytes=DTYPE_BYTES[info.dtype],
        kv_dtype_bytes=DTYPE_BYTES[info.dtype],
    )
    asked = PlanRequest(
        machine,
        info.dtype,
        checkpoint_bytes=checkpoint_size(folder),
        experts=settings.experts,
    )
    if widened(config, seen.gpu_mode, settings.experts):
        return asked  # which says nothing of how one process would hold them
    return replace(asked, weights=_form(config, asked, info.weights_bytes))


def _form(config: Mapping[str, Any], asked: PlanRequest, loaded_bytes: int) -> WeightsForm | None:
    """Whether weights that are stored as MXFP4 were loaded as such: by their size."""
    if stored_form(config) != "mxfp4":
        return None
    sizes = [
        weights_of(config, dtype=asked.dtype, dequantized=dequantized).total_bytes
        for dequantized in (False, True)
    ]
    return "bf16" if 2 * loaded_bytes > sum(sizes) else None


def _sizes(readings: Sequence[GpuReading]) -> list[int]:
    return [one.total_bytes for one in readings if one.total_bytes and one.id != "cpu"]


def _usable(readings: Sequence[GpuReading], wanted: int | None) -> int:
    """GPUs that one model can be spread over; a process can use one slice of a GPU only."""
    if any("/" in reading.id for reading in readings):
        return 1
    return min(wanted or len(readings), len(readings))
