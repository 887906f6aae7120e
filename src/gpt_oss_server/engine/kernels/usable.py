# mypy: disable-error-code="import-not-found,import-untyped"
"""Whether Triton kernels can run on a device, and what such a device has.

Knows: the conditions for launching a kernel. Does not know: any kernel. May be imported where
Triton is not installed.
"""

from __future__ import annotations

import importlib.util

import torch

# Below this, bfloat16 products and asynchronous copies to shared memory are missing.
LEAST_CAPABILITY = (8, 0)
# What an interpreted kernel is planned for: few items, so that a test sees several of each.
INTERPRETED_MULTIPROCESSORS = 2


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter (TRITON_INTERPRET=1). Fixed for a process from
    the first import of a kernel on."""
    if importlib.util.find_spec("triton") is None:
        return False
    from triton import knobs

    return bool(knobs.runtime.interpret)


def why_not(device: torch.device) -> str | None:
    """Why no kernel can run on `device`; None where one can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if interpreted():
        return None
    if device.type != "cuda":
        return f"Triton needs a CUDA device, not {device.type}, or TRITON_INTERPRET=1"
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        have, need = (".".join(map(str, pair)) for pair in (capability, LEAST_CAPABILITY))
        return f"{device} has compute capability {have}; {need} is needed"
    return None


def multiprocessors(device: torch.device) -> int:
    """How many multiprocessors `device` has."""
    if device.type != "cuda":
        return INTERPRETED_MULTIPROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
