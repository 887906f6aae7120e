"""Whether a machine keeps MXFP4 experts in four bits, and what it lacks for that.

Knows: what this server's kernels need of a machine (`engine.kernels.usable` asks the same of the
devices themselves), and what transformers' need. Does not know: memory, models, what is done about
it.

| `--experts` | one GPU | several |
|---|---|---|
| `auto`, `triton` | Triton 3.6, compute capability 8.0; `auto` also a half type | the same |
| `torch` | nothing | nothing |
| `transformers` | Triton 3.4, compute capability 7.5, the package `kernels` | never |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpt_oss_server.config import Settings
from gpt_oss_server.doctor.machine import Machine
from gpt_oss_server.doctor.plan import WeightsForm, own_dtype, stored_form
from gpt_oss_server.doctor.versions import numbers

_HALF_TYPES = ("bfloat16", "float16")
# Of Triton, and of a GPU's compute capability.
_OURS = ((3, 6), (8, 0))
_TRANSFORMERS = ((3, 4), (7, 5))


def lacking(settings: Settings, machine: Machine, config: Mapping[str, Any]) -> tuple[str, ...]:
    """What the kernels that `settings.experts` chooses need and this machine does not have, for a
    model on one GPU; nothing where four bits are kept."""
    if settings.experts == "torch":
        return ()
    theirs = settings.experts == "transformers"
    triton, capability = _TRANSFORMERS if theirs else _OURS
    missing = []
    if numbers(machine.packages.get("triton") or "0")[:2] < triton:
        missing.append(f"triton {_dotted(triton)} or newer")
    if theirs and machine.packages.get("kernels") is None:
        missing.append("the package kernels")
    if any(tuple(pair) < capability for pair in machine.torch.capabilities):
        missing.append(f"GPUs of compute capability {_dotted(capability)} or newer")
    unwanted = _unwanted_type(settings, config)
    if unwanted is not None:
        missing.append(f"a half type instead of {unwanted}")
    return tuple(missing)


def form_held(
    settings: Settings, machine: Machine, config: Mapping[str, Any]
) -> WeightsForm | None:
    """The form of the weights in the memory of this machine's GPUs: `bf16` for MXFP4 that cannot
    be kept so, else as stored."""
    if stored_form(config) != "mxfp4" or not machine.torch.cuda_usable:
        return None
    return "bf16" if lacking(settings, machine, config) else None


def form_planned(settings: Settings, config: Mapping[str, Any]) -> WeightsForm | None:
    """The same for GPUs that have what our kernels need. Whether transformers has its own is a
    machine's affair: there they count as wide."""
    if stored_form(config) != "mxfp4":
        return None
    wide = settings.experts == "transformers" or _unwanted_type(settings, config) is not None
    return "bf16" if wide else None


def _unwanted_type(settings: Settings, config: Mapping[str, Any]) -> str | None:
    """The number type for which kernels are not chosen; None where they are."""
    dtype = own_dtype(config) if settings.dtype == "auto" else settings.dtype
    return dtype if settings.experts == "auto" and dtype not in _HALF_TYPES else None


def _dotted(pair: tuple[int, int]) -> str:
    return f"{pair[0]}.{pair[1]}"
