"""How many NVIDIA GPUs this process may use, asked without importing torch.

Knows: NVML (when its Python binding is installed), the driver's device files and
`CUDA_VISIBLE_DEVICES`. Does not know: memory, utilisation or what the GPUs are used for.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from pathlib import Path


def count_gpus(environ: Mapping[str, str], dev: Path = Path("/dev")) -> int:
    """GPUs that CUDA would show to this process; 0 without a driver.

    Args:
        environ: read for `CUDA_VISIBLE_DEVICES`, which hides all that it does not list.
        dev: where the driver's `nvidia0`, `nvidia1`, … are.
    """
    present = _count_by_nvml()
    if present is None:
        files = dev.iterdir() if dev.is_dir() else ()
        present = sum(bool(re.fullmatch(r"nvidia[0-9]+", file.name)) for file in files)
    return _visible(present, environ.get("CUDA_VISIBLE_DEVICES"))


def _count_by_nvml() -> int | None:
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # noqa: BLE001 - no binding or no driver: either way NVML cannot tell
        return None
    try:
        return int(nvml.nvmlDeviceGetCount())
    finally:
        nvml.nvmlShutdown()


def _visible(present: int, listed: str | None) -> int:
    """CUDA's rule: entries count up to the first that names no device (`-1`, index too high)."""
    if listed is None:
        return present
    count = 0
    for entry in (part.strip() for part in listed.split(",")):
        if not entry or (re.fullmatch(r"-?[0-9]+", entry) and not 0 <= int(entry) < present):
            break
        count += 1
    return min(count, present)
