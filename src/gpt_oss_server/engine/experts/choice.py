"""Who computes a mixture's experts, and whether MXFP4 weights stay as they are stored.

Knows: the setting, the config's quantization, what a device can run. Does not know: modules.

| `--experts` | plain weights | MXFP4 weights |
|---|---|---|
| `auto` | kernels where they run (CUDA, half types), else transformers | the same |
| `triton` | kernels | in 4 bits, kernels |
| `torch` | transformers | in 4 bits, widened expert by expert in each step |
| `transformers` | transformers | as transformers does: by the `kernels` package where it is installed, else widened at load; ranks widen |
"""  # noqa: E501

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from gpt_oss_server.engine.kernels.usable import why_not
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.errors import StartupError

# The one model type whose checkpoints come with MXFP4 experts.
_STORED_TYPE = "gpt_oss"


@dataclass(frozen=True, slots=True)
class ExpertsChoice:
    """`kernels`: Triton computes. `as_stored`: MXFP4 weights are not made wide at load;
    `wide_because` says why they are, where a checkpoint has such and its experts are."""

    kernels: bool
    as_stored: bool
    wide_because: str | None = None


def choose_experts(
    spec: EngineSpec, config: Any, dtype: torch.dtype, device: torch.device
) -> ExpertsChoice:
    """For a model, or a rank's part of one, on one device. Raises StartupError where kernels are
    asked for and cannot run."""
    kernels = kernels_wanted(spec, dtype, device)
    if not is_mxfp4(config):
        return ExpertsChoice(kernels, False)
    if kernels or spec.experts == "torch":
        return ExpertsChoice(kernels, True)
    return ExpertsChoice(False, False, _why_wide(spec, dtype, device))


def wide_line(choice: ExpertsChoice, dtype: torch.dtype) -> str | None:
    """What to tell an operator of MXFP4 weights that are made wide; None where none are."""
    if choice.wide_because is None:
        return None
    times = dtype.itemsize * 32 / 17
    return (
        f"MXFP4 experts are held as {_name(dtype)}, {times:.1f} times their bytes: "
        f"{choice.wide_because}"
    )


def _why_wide(spec: EngineSpec, dtype: torch.dtype, device: torch.device) -> str:
    if spec.experts == "transformers":
        return "--experts transformers"
    reason = why_not(device) or f"kernels are chosen for half types, not for {_name(dtype)}"
    return f"{reason}; --experts torch keeps them in 4 bits, and is slow"


def kernels_wanted(spec: EngineSpec, dtype: torch.dtype, device: torch.device) -> bool:
    """Raises StartupError as `choose_experts`."""
    if spec.experts == "triton":
        reason = why_not(device)
        if reason is not None:
            raise StartupError(f"--experts triton: {reason}; use --experts auto")
        return True
    usual = device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)
    return spec.experts == "auto" and usual and why_not(device) is None


def is_mxfp4(config: Any) -> bool:
    """Whether a transformers config is of a checkpoint whose experts are stored in MXFP4."""
    stated = getattr(config, "quantization_config", None)
    if stated is None or config.model_type != _STORED_TYPE:
        return False
    method = stated.get("quant_method") if isinstance(stated, dict) else stated.quant_method
    return str(getattr(method, "value", method)) == "mxfp4"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
