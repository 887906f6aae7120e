"""Does a model fit on given GPUs, and with how much KV left? Answered without loading anything.

Knows: weights, activations and pools of one layout of ranks. Does not know: which GPUs the
machine has, what else runs on them, or how an answer is printed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.memory.activations import activations_of
from gpt_oss_server.memory.architecture import ModelShape, shape_from_config
from gpt_oss_server.memory.blocks import Reach, max_blocks_in_life
from gpt_oss_server.memory.errors import ImpossibleSplit, PoolTooSmall
from gpt_oss_server.memory.kv import PoolPlan, plan_pools
from gpt_oss_server.memory.weights import ModelWeights, weights_of

GpuMode = Literal["single", "auto", "tensor", "pipeline"]
REPORT_LENGTHS = (2048, 8192, 32768, 131072)
_COUNTS = ("gpu_memory_bytes", "gpus", "block_size", "max_num_seqs", "max_batch_tokens")


@dataclass(frozen=True)
class FitRequest:
    """The machine and the settings asked about.

    `utilization` is the share of a GPU's memory this server may use; `workspace_bytes` is set
    aside per GPU for the CUDA context, kernels' workspaces and captured graphs.
    `kv_dtype_bytes` and `dtype_bytes` are the cache's and the activations' number sizes.
    Raises `ConfigError` for a setting that is no machine.
    """

    gpu_memory_bytes: int
    gpus: int = 1
    mode: GpuMode = "single"
    utilization: float = 0.9
    block_size: int = 16
    max_num_seqs: int = 256
    max_batch_tokens: int = 8192
    workspace_bytes: int = 1 << 30
    dtype_bytes: int = 2
    kv_dtype_bytes: int = 2

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.utilization <= 1:
            raise ConfigError(f"utilization must be above 0 and at most 1, not {self.utilization}")
        if self.workspace_bytes < 0:
            raise ConfigError(f"workspace_bytes must not be negative: {self.workspace_bytes}")

    @property
    def tp(self) -> int:
        return self.gpus if self.mode == "tensor" else 1

    @property
    def pp(self) -> int:
        """`auto` places whole layers on the GPUs in order, as `pipeline` does."""
        return self.gpus if self.mode in ("auto", "pipeline") else 1


@dataclass(frozen=True)
class FitReport:
    """The answer. Per-GPU tuples have one entry per pipeline stage (tensor ranks are equal).

    `longest_request` counts KV rows, bounded by the model's own context. `concurrent` maps a
    request length to how many such requests hold KV at once (0: not even one). `shortfall_bytes`
    is what the worst GPU lacks, 0 when it fits. `reasons` say why not, and what was assumed.
    """

    fits: bool
    gpus_used: int
    weights_bytes: tuple[int, ...]
    activations_bytes: int
    kv_bytes: tuple[int, ...]
    kv_tokens: int
    longest_request: int
    concurrent: Mapping[int, int]
    shortfall_bytes: int
    exact: bool
    reasons: tuple[str, ...]


def fit(
    config: Mapping[str, Any],
    asked: FitRequest,
    *,
    dtype: str | None = None,
    dequantized: bool = False,
    checkpoint_bytes: int | None = None,
) -> FitReport:
    """Lay the model in `config` out as `asked` and say what is left for KV.

    `dtype`, `dequantized` and `checkpoint_bytes` are those of `weights_of`. A layout that is
    impossible (heads or layers that do not divide) is a report that does not fit, with the
    reason. Raises `ShapeUnknown` when the config cannot even be bounded.
    """
    shape = shape_from_config(config)
    weights = weights_of(
        config, dtype=dtype, dequantized=dequantized, checkpoint_bytes=checkpoint_bytes
    )
    assumed = tuple(dict.fromkeys(shape.warnings + weights.warnings))
    try:
        return _laid_out(config, asked, shape, weights, assumed)
    except ImpossibleSplit as impossible:
        return _refused(asked, (str(impossible), *assumed))


def _laid_out(
    config: Mapping[str, Any],
    asked: FitRequest,
    shape: ModelShape,
    weights: ModelWeights,
    assumed: tuple[str, ...],
) -> FitReport:
    weights.rank_bytes(asked.tp, asked.pp)  # what cannot be split is first said of the weights
    activations = activations_of(
        config,
        asked.max_batch_tokens,
        min(asked.max_num_seqs, asked.max_batch_tokens),
        asked.dtype_bytes,
        asked.tp,
    ).peak_bytes
    usable = int(asked.gpu_memory_bytes * asked.utilization)
    room = usable - asked.workspace_bytes - activations
    per_stage = weights.rank_bytes(asked.tp, asked.pp, room)
    stages = weights.stages(asked.pp, room)
    left = tuple(room - size for size in per_stage)
    plans: list[PoolPlan] = []
    reasons: list[str] = []
    shortfall = 0
    for stage, (layers, budget) in enumerate(zip(stages, left, strict=True)):
        try:
            plans.append(_plan(shape.part(layers), budget, asked))
        except PoolTooSmall as small:
            shortfall = max(shortfall, small.needed_bytes - budget)
            reasons.append(
                f"GPU {stage * asked.tp}: weights {per_stage[stage]}, activations {activations} "
                f"and workspace {asked.workspace_bytes} leave {budget} of {usable} bytes for KV; "
                f"{small.needed_bytes} are the least"
            )
    fits = not reasons
    tokens = _kv_tokens(plans) if fits else 0
    longest = _longest(shape, plans) if fits else 0
    return FitReport(
        fits=fits,
        gpus_used=asked.tp * asked.pp,
        weights_bytes=per_stage,
        activations_bytes=activations,
        kv_bytes=tuple(max(0, budget) for budget in left),
        kv_tokens=tokens,
        longest_request=longest,
        concurrent=MappingProxyType(
            {
                length: _concurrent(length, plans, asked) if length <= longest else 0
                for length in REPORT_LENGTHS
            }
        ),
        shortfall_bytes=shortfall,
        exact=shape.exact and weights.exact,
        reasons=(*reasons, *assumed),
    )


def _plan(stage: ModelShape, budget: int, asked: FitRequest) -> PoolPlan:
    return plan_pools(
        stage,
        budget,
        asked.block_size,
        asked.max_num_seqs,
        asked.max_batch_tokens,
        asked.kv_dtype_bytes,
        asked.tp,
    )


def _kv_tokens(plans: list[PoolPlan]) -> int:
    """Tokens that all stages hold at once: those of the pools without a window, or of the
    smallest pool where every layer of the model has one."""
    return min(plan.token_capacity for plan in _growing(plans) or plans)


def _longest(shape: ModelShape, plans: list[PoolPlan]) -> int:
    """KV rows of the longest single request: what the pools without a window hold, at most the
    model's context. Where every layer has a window any length fits, so the context alone."""
    bounds = [_kv_tokens(plans)] if _growing(plans) or shape.max_positions is None else []
    return min([*bounds, *([shape.max_positions] if shape.max_positions is not None else [])])


def _growing(plans: list[PoolPlan]) -> list[PoolPlan]:
    """The stages with a layer that keeps every token."""
    return [plan for plan in plans if any(group.window is None for group in plan.groups)]


def _concurrent(length: int, plans: list[PoolPlan], asked: FitRequest) -> int:
    """Requests of `length` tokens that hold KV at once while they decode."""
    counts = [
        group.num_blocks
        // max_blocks_in_life(length, asked.block_size, Reach(group.window), step_tokens=1)
        for plan in plans
        for group in plan.groups
    ]
    return min(asked.max_num_seqs, *counts)


def _refused(asked: FitRequest, reasons: tuple[str, ...]) -> FitReport:
    """A layout that no memory would make possible."""
    return FitReport(
        fits=False,
        gpus_used=asked.tp * asked.pp,
        weights_bytes=(),
        activations_bytes=0,
        kv_bytes=(),
        kv_tokens=0,
        longest_request=0,
        concurrent=MappingProxyType(dict.fromkeys(REPORT_LENGTHS, 0)),
        shortfall_bytes=0,
        exact=True,
        reasons=reasons,
    )
