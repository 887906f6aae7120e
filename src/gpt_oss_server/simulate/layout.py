"""How one model copy lies on GPUs: the KV room that is left, or how much is missing.

Knows: weights, activations and pools of a tensor- and pipeline-parallel replica, from `memory/`.
Does not know: what runs there, or how fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpt_oss_server.errors import ConfigError, StartupError
from gpt_oss_server.memory.activations import activations_of
from gpt_oss_server.memory.errors import PoolTooSmall
from gpt_oss_server.memory.kv import plan_pools
from gpt_oss_server.simulate.cost import Efficiency, ModelCost, ReplicaCost
from gpt_oss_server.simulate.gpu_types import GpuType
from gpt_oss_server.simulate.step_time import StepTime

WORKSPACE_BYTES = 1 << 30


class DoesNotFit(StartupError):
    """A layout for which a GPU's memory is too small. `missing_bytes` is what the fullest lacks."""

    def __init__(self, message: str, *, missing_bytes: int) -> None:
        super().__init__(message)
        self.missing_bytes = missing_bytes


@dataclass(frozen=True)
class Shape:
    """The replicas of one pool: `tp · pp` GPUs of one type each. Raises ConfigError."""

    gpu: GpuType
    tp: int = 1
    pp: int = 1

    def __post_init__(self) -> None:
        if self.tp < 1 or self.pp < 1:
            raise ConfigError(f"tp and pp must be at least 1, not {self.tp} and {self.pp}")

    @property
    def gpus(self) -> int:
        return self.tp * self.pp

    @property
    def name(self) -> str:
        return f"{self.gpu.name}-tp{self.tp}" + (f"-pp{self.pp}" if self.pp > 1 else "")


@dataclass(frozen=True)
class EngineSettings:
    """An engine's limits and order, by the names of its flags.

    `prefill_order` is `shortest` (with `oldest_share` of a step for the oldest prompt) or `fcfs`.
    `max_waiting` and `max_wait_s` bound the queue before a replica: None is no bound. Raises
    ConfigError.
    """

    max_num_seqs: int = 256
    max_batch_tokens: int = 8192
    block_size: int = 16
    prefill_order: str = "shortest"
    oldest_share: float = 0.25
    prefix_caching: bool = True
    memory_utilization: float = 0.9
    workspace_bytes: int = WORKSPACE_BYTES
    max_waiting: int | None = None
    max_wait_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_batch_tokens", "block_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.max_batch_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_batch_tokens ({self.max_batch_tokens}) is less than max_num_seqs "
                f"({self.max_num_seqs}): each running sequence needs a token per step"
            )
        if self.prefill_order not in ("shortest", "fcfs"):
            raise ConfigError(f"prefill_order must be shortest or fcfs, not {self.prefill_order}")
        if not 0.0 <= self.oldest_share <= 1.0:
            raise ConfigError("oldest_share must be within 0..1")
        if not 0.0 < self.memory_utilization <= 1.0:
            raise ConfigError("memory_utilization must be above 0 and at most 1")


@dataclass(frozen=True)
class Replica:
    """Everything about a pool's replicas that does not change while they run.

    `kv_blocks` counts blocks that hold every full layer's rows of `block_size` tokens;
    `longest_tokens` is the longest sequence: what the pool or the model's context holds.
    """

    shape: Shape
    settings: EngineSettings
    time: StepTime
    kv_blocks: int
    kv_bytes_per_token: int
    longest_tokens: int

    @property
    def kv_tokens(self) -> int:
        return self.kv_blocks * self.settings.block_size


def lay_out(
    config: Mapping[str, Any],
    model: ModelCost,
    shape: Shape,
    settings: EngineSettings,
    efficiency: Efficiency,
) -> Replica:
    """A replica of the model in `config` on this shape.

    Raises `DoesNotFit` with the bytes that are missing, `ImpossibleSplit`, `ShapeUnknown`.
    """
    cost = ReplicaCost(model, shape.gpu, shape.tp, shape.pp)
    activations = activations_of(
        config,
        settings.max_batch_tokens,
        min(settings.max_num_seqs, settings.max_batch_tokens),
        tp=shape.tp,
    ).peak_bytes
    usable = int(shape.gpu.memory_bytes * settings.memory_utilization)
    blocks: list[int] = []
    bytes_per_token = 0
    stages = model.weights.stages(shape.pp)
    for stage, weights in enumerate(model.weights.rank_bytes(shape.tp, shape.pp)):
        budget = usable - settings.workspace_bytes - weights - activations
        try:
            plan = plan_pools(
                model.shape.part(stages[stage]),
                budget,
                settings.block_size,
                settings.max_num_seqs,
                settings.max_batch_tokens,
                tp=shape.tp,
            )
        except PoolTooSmall as small:
            missing = small.needed_bytes - budget
            raise DoesNotFit(
                f"{model.name} does not fit {shape.name}: {missing} bytes are missing on each GPU "
                f"of stage {stage} (weights {weights}, activations {activations}, workspace "
                f"{settings.workspace_bytes} of {usable} usable)",
                missing_bytes=missing,
            ) from small
        growing = [group for group in plan.groups if group.window is None]
        if growing:
            blocks.append(min(group.num_blocks for group in growing))
            rows = sum(group.block_bytes for group in growing)
            bytes_per_token += shape.tp * rows // settings.block_size
    positions = model.shape.max_positions
    # Where every layer has a window nothing grows: the context bounds a sequence, slots the rest.
    size = settings.block_size
    room = min(blocks) if blocks else settings.max_num_seqs * -(-(positions or size) // size)
    longest = room * settings.block_size
    return Replica(
        shape=shape,
        settings=settings,
        time=StepTime(cost, efficiency),
        kv_blocks=room,
        kv_bytes_per_token=bytes_per_token,
        longest_tokens=min(longest, positions) if positions else longest,
    )
