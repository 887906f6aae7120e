"""Versions, and the doctor's checks, as a bundle shows them.

Knows: which of the doctor's findings may be shown. Does not know: any check. Of the environment
only what is a number, a list of numbers or a switch.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from gpt_oss_server import __version__
from gpt_oss_server.bundle.redact import shown_model
from gpt_oss_server.config import Settings
from gpt_oss_server.doctor.checks import run_checks
from gpt_oss_server.doctor.findings import Examined
from gpt_oss_server.doctor.machine import Machine, TorchFacts, ask_torch, examine
from gpt_oss_server.doctor.machine_text import machine_json
from gpt_oss_server.doctor.models import model_facts
from gpt_oss_server.errors import StartupError

_PACKAGES = (
    *("torch", "transformers", "tokenizers", "safetensors", "accelerate", "huggingface-hub"),
    *("numpy", "triton", "kernels", "uvicorn", "uvloop", "httptools", "pydantic", "msgspec"),
    *("prometheus-client", "opentelemetry-sdk", "nvidia-ml-py", "psutil"),
)
_MACHINE = (
    *("python", "platform", "packages", "torch", "gpus_present", "gpus_visible", "gpus"),
    *("nvml_error", "driver", "ram_total_bytes", "ram_available_bytes", "shm_total_bytes"),
    *("cache_free_bytes", "port_answers"),
)
_HARMLESS = re.compile(r"[0-9]{1,9}(,[0-9]{1,4})*|true|false|on|off|yes|no", re.I)


def versions() -> dict[str, Any]:
    """This server, Python, the system and the packages that matter."""
    found: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return {
        "gpt_oss_server": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": found,
    }


def running_torch(device: str | None) -> TorchFacts:
    """What is known of torch while a worker runs on `device` (None: no worker runs). The doctor's
    own probe would take memory on every GPU, which a server that runs has given away."""
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return TorchFacts(error="torch is not installed")
    build = version.partition("+cu")[2]
    on_gpu = device is not None and device.startswith("cuda")
    return TorchFacts(
        version=version,
        cuda_build=f"{build[:-1]}.{build[-1]}" if build.isdigit() else None,
        cuda_usable=on_gpu,
        devices=(device,) if on_gpu and device is not None else (),
    )


def checked(
    settings: Settings,
    environ: Mapping[str, str],
    ask: Callable[[Mapping[str, str]], TorchFacts] = ask_torch,
) -> dict[str, Any]:
    """The machine and every check with its state. Takes a second or more; asks no network.

    Whether the model's weights fit is not calculated: `doctor` does."""
    machine = examine(environ, settings.host, settings.port, ask)
    offline = {**environ, "HF_HUB_OFFLINE": "1"}
    try:
        seen = Examined(settings, machine, model_facts(settings.model, offline))
    except StartupError as error:
        seen = Examined(settings, machine, None, str(error))
    found = machine_json(seen, run_checks(seen))
    return {
        "machine": {name: found["machine"][name] for name in _MACHINE},
        "environment": _environment(machine),
        "checks": [_without_path(check, settings.model) for check in found["checks"]],
    }


def _without_path(check: Mapping[str, Any], model: str) -> dict[str, Any]:
    """A check that speaks of the model's folder by its name: where it lies is nobody's business."""
    paths = sorted({model, str(Path(model).expanduser().resolve())}, key=len, reverse=True)
    shown = dict(check)
    for name in ("message", "cure"):
        for path in paths:
            if "/" in path and path in shown.get(name, ""):
                shown[name] = shown[name].replace(path, shown_model(model))
    return shown


def harmless(values: Mapping[str, str]) -> dict[str, str]:
    """Variables with their values where these can be no secret, else `set`."""
    return {name: value if _HARMLESS.fullmatch(value) else "set" for name, value in values.items()}


def _environment(machine: Machine) -> dict[str, str]:
    return harmless(machine.environ)
