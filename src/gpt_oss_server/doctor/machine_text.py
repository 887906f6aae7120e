"""What was found on a machine, as text for a terminal, and as JSON.

Knows: wording and order. Does not know: what is good or bad.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from gpt_oss_server.doctor.checks import CHECKS, Found
from gpt_oss_server.doctor.findings import Examined
from gpt_oss_server.doctor.machine import Machine
from gpt_oss_server.doctor.plan import gib
from gpt_oss_server.doctor.plan_text import aligned, wrapped
from gpt_oss_server.nccl import NcclSettings, nccl_environment
from gpt_oss_server.ports import GpuReading


def machine_lines(seen: Examined) -> list[str]:
    """The inventory: one aligned line per kind of thing."""
    machine, settings = seen.machine, seen.settings
    rows = [
        ["system", f"{machine.platform}, Python {machine.python}"],
        ["packages", ", ".join(f"{k} {v}" for k, v in machine.packages.items() if v)],
        ["torch", _torch(machine)],
        ["driver", _driver(machine)],
        *([["GPU " + gpu.id, _gpu(gpu)] for gpu in machine.gpus] or [["GPUs", _no_gpus(machine)]]),
        ["NCCL", nccl_line(seen.machine, seen)],
        [
            "memory",
            f"{gib(machine.ram_total_bytes)}, {gib(machine.ram_available_bytes)} available"
            + (
                ""
                if machine.shm_total_bytes is None
                else f"; /dev/shm {gib(machine.shm_total_bytes)}"
            ),
        ],
        ["disk", f"{_known(machine.cache_free_bytes)} free in {machine.cache_folder}"],
        [
            "address",
            f"{settings.host}:{settings.port} is "
            f"{'free' if machine.port_error is None else 'in use'}",
        ],
        ["model", _model(seen)],
    ]
    return aligned(rows)


def finding_lines(found: Sequence[Found]) -> list[str]:
    """Problems and notes with their cures, then the ids of the checks that found nothing."""
    lines: list[str] = []
    for level, title in (("problem", "Problems"), ("note", "Notes")):
        chosen = [one for one in found if one.finding.level == level]
        if not chosen:
            continue
        lines += [f"{title}:"]
        for one in chosen:
            lines += [f"  {one.id}"]
            lines += wrapped(one.finding.message, 4)
            lines += wrapped("cure: " + one.finding.cure, 4)
        lines.append("")
    said = {one.id for one in found}
    fine = ", ".join(check.id for check in CHECKS if check.id not in said)
    lines += wrapped(f"Nothing to say of: {fine}", 0, 2)
    if not any(one.finding.level == "problem" for one in found):
        lines.append("No problem found.")
    return lines


def machine_json(seen: Examined, found: Sequence[Found]) -> dict[str, Any]:
    """Everything that was found, every check with its state."""
    nccl = nccl_settings(seen)
    by_id = {one.id: one.finding for one in found}
    return {
        "machine": msgspec.to_builtins(seen.machine),
        "nccl": {"applied": dict(nccl.applied), "kept_from_user": dict(nccl.kept_from_user)},
        "checks": [
            {"id": check.id, "state": "ok"}
            if check.id not in by_id
            else {
                "id": check.id,
                "state": by_id[check.id].level,
                "message": by_id[check.id].message,
                "cure": by_id[check.id].cure,
            }
            for check in CHECKS
        ],
    }


def nccl_settings(seen: Examined) -> NcclSettings:
    """What `serve` would set, with these settings on this machine."""
    gpus = seen.settings.gpus or seen.machine.gpus_visible
    return nccl_environment(gpus, seen.settings.gpu_mode, seen.machine.environ)


def nccl_line(machine: Machine, seen: Examined) -> str:
    nccl = nccl_settings(seen)
    version = f"{machine.torch.nccl}; " if machine.torch.nccl else ""
    parts = [f"{name}={value}" for name, value in nccl.applied.items()]
    parts += [f"{name}={value} (yours)" for name, value in nccl.kept_from_user.items()]
    why = "nothing to set (from 4 GPUs on, in a mode that uses several)"
    return version + (", ".join(parts) or why)


def _torch(machine: Machine) -> str:
    torch = machine.torch
    if torch.error is not None:
        return f"cannot be used: {torch.error}"
    if torch.cuda_build is None:
        return f"{torch.version}, built without CUDA"
    state = "usable" if torch.cuda_usable else f"not usable: {torch.cuda_error or 'no device'}"
    peers = {None: "", True: ", GPUs reach each other", False: ", GPUs do not reach each other"}
    reach = peers[torch.peer_access] if len(torch.devices) > 1 else ""
    return f"{torch.version}, CUDA {torch.cuda_build}, {state}{reach}"


def _driver(machine: Machine) -> str:
    if machine.driver is None:
        return f"NVML is not reachable: {machine.nvml_error or 'the driver does not answer'}"
    return f"{machine.driver.version}, CUDA up to {machine.driver.cuda}, NVML reachable"


def _gpu(gpu: GpuReading) -> str:
    parts = [gpu.name or "unnamed", f"{_known(gpu.used_bytes)} of {_known(gpu.total_bytes)} used"]
    if gpu.utilization is not None:
        parts.append(f"{gpu.utilization:.0%} busy")
    if gpu.power_w is not None:
        parts.append(f"{gpu.power_w:.0f} W")
    if gpu.temperature_c is not None:
        parts.append(f"{gpu.temperature_c:.0f} °C")
    return ", ".join(parts)


def _no_gpus(machine: Machine) -> str:
    if machine.torch.devices:
        return ", ".join(machine.torch.devices)
    return f"{machine.gpus_present} present, {machine.gpus_visible} visible"


def _model(seen: Examined) -> str:
    if seen.model is None:
        return f"{seen.settings.model}: {seen.model_error}"
    if seen.model.source == "built in":
        return f"{seen.model.model_id} (built in)"
    state = "is on this machine" if seen.model.weights_here else "is not downloaded yet"
    return f"{seen.model.model_id} {state}"


def _known(size_bytes: int | None) -> str:
    return "unknown" if size_bytes is None else gib(size_bytes)
