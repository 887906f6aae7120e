"""The answer to "does it fit": every GPU mode side by side, what limits each, which one to take.

Pure arithmetic over `memory.fit`. Knows: modes, limits, how to compare them. Does not know: the
machine, files, or how an answer is printed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.memory.architecture import ModelShape, shape_from_config
from gpt_oss_server.memory.fit import FitReport, FitRequest, GpuMode, fit
from gpt_oss_server.memory.kv import DTYPE_BYTES, kv_bytes_per_token
from gpt_oss_server.memory.weights import ModelWeights, weights_of

MODES: tuple[GpuMode, ...] = ("single", "auto", "tensor", "pipeline")
# The mode to prefer among equals.
_PREFERENCE: tuple[GpuMode, ...] = ("single", "tensor", "pipeline", "auto")
_MORE_GPUS = (2, 4, 8, 16, 32, 64)

PLAIN_NOTE = "over several GPUs these quantized weights count as plain numbers"
# The model type whose MXFP4 experts the engine computes itself.
_OWN_MXFP4 = "gpt_oss"

WeightsForm = Literal["mxfp4", "bf16"]
Experts = Literal["auto", "triton", "torch", "transformers"]
Limit = Literal["context", "kv_memory", "max_num_seqs", "too_long"]


@dataclass(frozen=True)
class PlanRequest:
    """What is asked: `machine` holds the GPUs and the settings (its `mode` is not used).

    `weights` is the form of a quantized checkpoint's weights in memory, None as it is stored; where
    they are `widened` they are plain numbers whatever it says. `dtype` is that of everything else
    and of the KV cache, `experts` is who computes a mixture's.
    """

    machine: FitRequest
    dtype: str
    weights: WeightsForm | None = None
    checkpoint_bytes: int | None = None
    experts: Experts = "auto"

    def dequantized(self, config: Mapping[str, Any], mode: GpuMode) -> bool:
        """Whether weights that are stored quantized are held as `dtype`."""
        return self.weights == "bf16" or widened(config, mode, self.experts)

    def weights_in(self, config: Mapping[str, Any], mode: GpuMode) -> ModelWeights:
        """The weights as they are held in a mode. Raises ShapeUnknown."""
        return weights_of(
            config,
            dtype=self.dtype,
            dequantized=self.dequantized(config, mode),
            checkpoint_bytes=self.checkpoint_bytes,
        )


@dataclass(frozen=True)
class ModePlan:
    """One mode. `report` is None where the mode needs more GPUs than there are.

    `longest_limit` and `concurrent_limits` (by request length) say what bounds the figures of
    the report; they are empty where it does not fit. `token_bytes` is what a further token of a
    request takes on the GPU where it takes most; over all GPUs it is `Plan.kv_bytes_per_token`, or
    more where KV heads are replicated.
    """

    mode: GpuMode
    report: FitReport | None
    longest_limit: Limit | None
    concurrent_limits: Mapping[int, Limit]
    token_bytes: int = 0

    @property
    def fits(self) -> bool:
        return self.report is not None and self.report.fits


@dataclass(frozen=True)
class Recommendation:
    """What to do, and the arithmetic of it. `mode` is None where nothing fits."""

    mode: GpuMode | None
    text: str
    arithmetic: str


@dataclass(frozen=True)
class Plan:
    """All modes of one form of the weights."""

    asked: PlanRequest
    weights: str
    weights_bytes: int
    context_tokens: int | None
    kv_bytes_per_token: int
    modes: tuple[ModePlan, ...]
    weights_exact: bool = True
    kv_exact: bool = True

    def of(self, mode: GpuMode) -> ModePlan:
        return next(plan for plan in self.modes if plan.mode == mode)


def own_dtype(config: Mapping[str, Any]) -> str:
    """What `--dtype auto` means on a GPU: the checkpoint's own type, else bfloat16."""
    nested = config.get("text_config")
    for source in (config, nested if isinstance(nested, Mapping) else {}):
        name = str(source.get("dtype") or source.get("torch_dtype") or "")
        name = name.removeprefix("torch.")
        if name in ("float32", "bfloat16", "float16"):
            return name
    return "bfloat16"


def stored_form(config: Mapping[str, Any]) -> str | None:
    """How the checkpoint is quantized, as its configuration names it; None where it is not."""
    stated = config.get("quantization_config")
    return str(stated.get("quant_method")) if isinstance(stated, Mapping) else None


def widened(config: Mapping[str, Any], mode: str, experts: Experts = "auto") -> bool:
    """Whether weights that are stored quantized are held as plain numbers in a mode whatever the
    GPUs can: over several, all but the MXFP4 experts that the engine computes itself."""
    form = stored_form(config)
    if form is None or mode == "single":
        return False
    own = form == "mxfp4" and config.get("model_type") == _OWN_MXFP4
    return not own or experts == "transformers"


def make_plan(config: Mapping[str, Any], asked: PlanRequest) -> Plan:
    """Lay the model out in every mode.

    Raises ShapeUnknown for a configuration that cannot be bounded, ConfigError for weights in a
    form that the checkpoint does not have.
    """
    stored = stored_form(config)
    if asked.weights == "mxfp4" and stored != "mxfp4":
        raise ConfigError(f"the checkpoint's weights are not MXFP4 (they are {stored or 'plain'})")
    shape = shape_from_config(config)
    weights = asked.weights_in(config, "single")
    return Plan(
        asked=asked,
        weights=asked.dtype if asked.weights == "bf16" or stored is None else stored,
        weights_bytes=weights.total_bytes,
        context_tokens=shape.max_positions,
        kv_bytes_per_token=kv_bytes_per_token(shape, DTYPE_BYTES[asked.dtype]),
        modes=tuple(_mode_plan(config, asked, mode, shape) for mode in MODES),
        weights_exact=weights.exact,
        kv_exact=shape.exact,
    )


def _mode_plan(
    config: Mapping[str, Any], asked: PlanRequest, mode: GpuMode, shape: ModelShape
) -> ModePlan:
    if mode != "single" and asked.machine.gpus < 2:
        return ModePlan(mode, None, None, {})
    machine = replace(asked.machine, mode=mode)
    report = _fit(config, asked, machine)
    if not report.fits:
        return ModePlan(mode, report, None, {})
    limits: dict[int, Limit] = {}
    for length, count in report.concurrent.items():
        if length > report.longest_request:
            limits[length] = "too_long"
        else:
            most = asked.machine.max_num_seqs
            limits[length] = "max_num_seqs" if count >= most else "kv_memory"
    longest: Limit = "context" if report.longest_request == shape.max_positions else "kv_memory"
    size = DTYPE_BYTES[asked.dtype]
    runs = asked.weights_in(config, mode).stages(machine.pp)
    stages = [shape.part(layers) for layers in runs]
    most = max(kv_bytes_per_token(stage, size, machine.tp) for stage in stages)
    return ModePlan(mode, report, longest, limits, most)


def _fit(config: Mapping[str, Any], asked: PlanRequest, machine: FitRequest) -> FitReport:
    mode = machine.mode
    report = fit(
        config,
        machine,
        dtype=asked.dtype,
        dequantized=asked.dequantized(config, mode),
        checkpoint_bytes=asked.checkpoint_bytes,
    )
    if asked.weights != "bf16" and widened(config, mode, asked.experts):
        return replace(report, reasons=(*report.reasons, PLAIN_NOTE))
    return report


def recommend(
    config: Mapping[str, Any], plan: Plan, allowed: Sequence[GpuMode] = MODES
) -> Recommendation:
    """One GPU where it takes requests as long as any mode does, else the mode that takes the
    longest request and then the most tokens; where none of the allowed fits, what would."""
    fitting = [mode for mode in plan.modes if mode.fits and mode.mode in allowed]
    if not fitting:
        return Recommendation(None, *_what_would_fit(config, plan, allowed))
    longest = max(_longest(mode) for mode in fitting)
    best = max(fitting, key=lambda mode: _merit(mode, longest))
    sums = "" if best.report is None else memory_sums(plan, best.report)
    return Recommendation(best.mode, _advice(plan, best, fitting), sums)


def _merit(mode: ModePlan, longest: int) -> tuple[bool, int, int, int]:
    alone = mode.mode == "single" and _longest(mode) == longest
    return (alone, _longest(mode), _tokens(mode), -_PREFERENCE.index(mode.mode))


def _advice(plan: Plan, best: ModePlan, fitting: Sequence[ModePlan]) -> str:
    gpus = plan.asked.machine.gpus
    if best.mode != "single":
        single = plan.of("single")
        if not single.fits:
            why = "one GPU cannot hold it"
        else:
            why = f"one GPU holds it too, for requests of {_longest(single):,} tokens at most"
        return f"--gpu-mode {best.mode} over {gpus} GPUs: {why}"
    if gpus == 1:
        return "--gpu-mode single: it fits on this GPU"
    text = (
        f"--gpu-mode single: one GPU holds it; {gpus} GPUs hold {gpus} such replicas, "
        f"{gpus * _tokens(best):,} tokens of KV together"
    )
    others = [mode for mode in fitting if mode.mode != "single"]
    if others:
        most = max(others, key=lambda mode: _merit(mode, 0))
        text += f" (one model over all, --gpu-mode {most.mode}: {_tokens(most):,})"
    return text


def _longest(mode: ModePlan) -> int:
    return mode.report.longest_request if mode.report else 0


def _tokens(mode: ModePlan) -> int:
    return mode.report.kv_tokens if mode.report else 0


def _shortfall(mode: ModePlan) -> int:
    return mode.report.shortfall_bytes if mode.report else 0


def memory_sums(plan: Plan, report: FitReport) -> str:
    """What is left for KV on the fullest GPU, as a sum."""
    machine = plan.asked.machine
    weights, kv = max(report.weights_bytes), min(report.kv_bytes)
    usable = int(machine.gpu_memory_bytes * machine.utilization)
    return (
        f"{gib(machine.gpu_memory_bytes)} x {machine.utilization:g} = {gib(usable)}"
        f" - {gib(weights)} weights - {gib(report.activations_bytes)} activations"
        f" - {gib(machine.workspace_bytes)} workspace = {gib(kv)} for KV"
        f"{' per GPU' if report.gpus_used > 1 else ''}: {report.kv_tokens:,} tokens"
    )


def _what_would_fit(
    config: Mapping[str, Any], plan: Plan, allowed: Sequence[GpuMode]
) -> tuple[str, str]:
    """The least memory per GPU, and the fewest GPUs of this memory; and the sum of the first."""
    machine = plan.asked.machine
    cures: list[str] = []
    sums = ""
    tried = [mode for mode in plan.modes if mode.mode in allowed]
    short = [mode for mode in tried if _shortfall(mode) > 0]
    if short:
        least = min(short, key=lambda m: (_shortfall(m), _PREFERENCE.index(m.mode)))
        usable = int(machine.gpu_memory_bytes * machine.utilization)
        needed = math.ceil((usable + _shortfall(least)) / machine.utilization)
        noun = "a GPU" if least.mode == "single" else "GPUs"
        cures.append(f"{noun} of {_up(needed)} (--gpu-mode {least.mode})")
        sums = (
            f"({gib(usable)} usable + {_shortfall(least):,} bytes missing) / "
            f"{machine.utilization:g} = {gib(needed)} per GPU"
        )
    more = _fewest_gpus(config, plan.asked)
    if more is not None:
        gpus, mode = more
        cures.append(f"{gpus} GPUs of {gib(machine.gpu_memory_bytes)} (--gpu-mode {mode})")
    if plan.asked.weights == "bf16" and stored_form(config) == "mxfp4":
        cures.append("the weights as they are stored (--weights mxfp4)")
    reasons = [m.report.reasons[0] for m in tried if m.report and m.report.reasons]
    text = f"does not fit; it needs {' or '.join(cures) or 'a smaller model'}"
    return text, sums or (reasons[0] if reasons else "")


def _fewest_gpus(config: Mapping[str, Any], asked: PlanRequest) -> tuple[int, GpuMode] | None:
    """A power of two of GPUs, and the mode in which it is enough."""
    tried: tuple[GpuMode, ...] = ("tensor", "pipeline")
    for gpus in (count for count in _MORE_GPUS if count > asked.machine.gpus):
        for mode in tried:
            if _fit(config, asked, replace(asked.machine, gpus=gpus, mode=mode)).fits:
                return gpus, mode
    return None


def gib(size_bytes: int) -> str:
    """Bytes as GiB with two decimals; small sizes as MiB, or as they are."""
    if abs(size_bytes) < 2**20:
        return f"{size_bytes:,} bytes"
    if abs(size_bytes) < 2**30:
        return f"{size_bytes / 2**20:.1f} MiB"
    return f"{size_bytes / 2**30:.2f} GiB"


def _up(size_bytes: int) -> str:
    """Rounded up to a tenth of a GiB, so that it is enough."""
    return f"{math.ceil(size_bytes / 2**30 * 10) / 10:.1f} GiB"
