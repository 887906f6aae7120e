"""How one model copy lies on GPUs: the KV room that is left, or how much is missing.

Knows: weights, activations and pools of a tensor- and pipeline-parallel replica, from `memory/`.
Does not know: what runs there, or how fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from gpt_oss_server.admission.config import AdmissionConfig
from gpt_oss_server.errors import ConfigError, StartupError
from gpt_oss_server.memory.activations import activations_of
from gpt_oss_server.memory.errors import PoolTooSmall
from gpt_oss_server.memory.kv import PoolPlan, plan_pools
from gpt_oss_server.simulate.cost.gpu_types import GpuType
from gpt_oss_server.simulate.cost.pipeline import StageTime, stage_share
from gpt_oss_server.simulate.cost.roofline import Efficiency, ModelCost, ReplicaCost
from gpt_oss_server.simulate.cost.step_time import StepTime
from gpt_oss_server.types import EngineInfo, KvGroupInfo, RankInfo

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
    `micro_batches` steps are in flight in a pipeline (None: one per stage); `max_batch_tokens` is
    for all of them.

    `admission` says what stands before the engine. `reserve`: this server, which lets a request in
    when its KV is reserved (as `admission_mode` says) and lets others wait, by priority and client.
    `engine`: nothing; requests queue in the engine itself, as in most others. `max_waiting` and
    `max_wait_s` bound either queue; None is the server's own default where it reserves, no bound
    where the engine queues. `open_tokens` bounds answers whose clients do not (None: what the
    context has room for). Raises ConfigError.
    """

    max_num_seqs: int = 256
    max_batch_tokens: int = 8192
    block_size: int = 16
    prefill_order: str = "shortest"
    oldest_share: float = 0.25
    prefix_caching: bool = True
    memory_utilization: float = 0.9
    workspace_bytes: int = WORKSPACE_BYTES
    micro_batches: int | None = None
    admission: str = "reserve"
    admission_mode: str = "optimistic"
    max_waiting: int | None = None
    max_wait_s: float | None = None
    open_tokens: int | None = None

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
        for name, least in (("micro_batches", 1), ("open_tokens", 1), ("max_waiting", 0)):
            given = getattr(self, name)
            if given is not None and given < least:
                raise ConfigError(f"{name} must be at least {least}, not {given}")
        if self.admission not in ("reserve", "engine"):
            raise ConfigError(f"admission must be reserve or engine, not {self.admission}")
        self.reservation()

    def reservation(self) -> AdmissionConfig:
        """How the server before the engine reserves. Raises ConfigError."""
        given: dict[str, Any] = {"mode": self.admission_mode}
        if self.max_waiting is not None:
            given["max_queue_length"] = self.max_waiting
        if self.max_wait_s is not None:
            given["max_wait_s"] = self.max_wait_s
        return AdmissionConfig(**given)


@dataclass(frozen=True)
class Replica:
    """Everything about a pool's replicas that does not change while they run.

    `kv_blocks` counts blocks that hold every full layer's rows of `block_size` tokens;
    `longest_tokens` is the longest sequence: what the pool or the model's context holds. `time` is
    of a step that has the replica to itself; `stages`, where there are several, is how steps in
    flight overlap. `info` is what an engine laid out like this says of itself.
    """

    shape: Shape
    settings: EngineSettings
    time: StepTime
    kv_blocks: int
    kv_bytes_per_token: int
    longest_tokens: int
    info: EngineInfo
    stages: StageTime | None = None

    @property
    def kv_tokens(self) -> int:
        return self.kv_blocks * self.settings.block_size

    def with_blocks(self, blocks: int) -> Replica:
        """The same with a pool of another size."""
        tokens = blocks * self.settings.block_size
        groups = tuple(
            msgspec.structs.replace(
                group,
                num_blocks=blocks if group.window is None else min(blocks, group.num_blocks),
            )
            for group in self.info.kv_groups
        )
        return replace(
            self,
            kv_blocks=blocks,
            longest_tokens=min(tokens, self.info.max_model_len),
            info=msgspec.structs.replace(self.info, kv_groups=groups, kv_token_capacity=tokens),
        )


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
    plans = _stage_plans(model, shape, settings, activations)
    growing = [[group for group in plan.groups if group.window is None] for plan in plans]
    blocks = [min(group.num_blocks for group in groups) for groups in growing if groups]
    rows = sum(group.block_bytes for groups in growing for group in groups)
    positions = model.shape.max_positions
    # Where every layer has a window nothing grows: the context bounds a sequence, slots the rest.
    size = settings.block_size
    room = min(blocks) if blocks else settings.max_num_seqs * -(-(positions or size) // size)
    time = StepTime(cost, efficiency)
    in_flight = settings.micro_batches or shape.pp
    stages = None
    if shape.pp > 1 and in_flight > 1:
        share = stage_share(model.weights, shape.tp, shape.pp)
        stages = StageTime(time, in_flight, share, settings.max_batch_tokens)
    longest = min(room * size, positions) if positions else room * size
    return Replica(
        shape=shape,
        settings=settings,
        time=time,
        kv_blocks=room,
        kv_bytes_per_token=shape.tp * rows // size,
        longest_tokens=longest,
        info=_info(model, shape, settings, plans, activations, room),
        stages=stages,
    )


def _stage_plans(
    model: ModelCost, shape: Shape, settings: EngineSettings, activations: int
) -> list[PoolPlan]:
    """The pools that one rank of each stage has room for. Raises DoesNotFit."""
    usable = int(shape.gpu.memory_bytes * settings.memory_utilization)
    stages = model.weights.stages(shape.pp)
    plans = []
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
        plans.append(plan)
    return plans


def _info(
    model: ModelCost,
    shape: Shape,
    settings: EngineSettings,
    plans: Sequence[PoolPlan],
    activations: int,
    blocks: int,
) -> EngineInfo:
    """What the engine of such a replica says: pools as all ranks share them, each rank's part."""
    layers = model.weights.stages(shape.pp)
    names = list(dict.fromkeys(group.name for plan in plans for group in plan.groups))
    members = [{group.name: group for group in plan.groups} for plan in plans]
    groups = []
    for name in names:
        parts = [own[name] for own in members if name in own]
        groups.append(
            KvGroupInfo(
                name=name,
                layers=sum(part.layers for part in parts),
                window=parts[0].window,
                num_blocks=min(part.num_blocks for part in parts),
                block_bytes=shape.tp * sum(part.block_bytes for part in parts),
            )
        )
    counts = {group.name: group.num_blocks for group in groups}
    weights = model.weights.rank_bytes(shape.tp, shape.pp)
    ranks = []
    for stage, own in enumerate(members):
        sizes = tuple(own[name].block_bytes if name in own else 0 for name in names)
        ranks += [
            RankInfo(
                rank=stage * shape.tp + tp_rank,
                device=f"cuda:{stage * shape.tp + tp_rank}",
                stage=stage,
                tp_rank=tp_rank,
                first_layer=layers[stage].start,
                layers=len(layers[stage]),
                weights_bytes=weights[stage],
                kv_bytes=sum(counts[name] * size for name, size in zip(names, sizes, strict=True)),
                block_bytes=sizes,
            )
            for tp_rank in range(shape.tp)
        ]
    capacity = blocks * settings.block_size
    return EngineInfo(
        vocab_size=model.shape.vocab_size or 0,
        max_model_len=model.shape.max_positions or capacity,
        eos_token_ids=(),
        block_size=settings.block_size,
        kv_groups=tuple(groups),
        kv_token_capacity=capacity,
        max_num_seqs=settings.max_num_seqs,
        max_batch_tokens=settings.max_batch_tokens,
        dtype="bfloat16",
        device="cuda:0",
        weights_bytes=shape.tp * sum(weights),
        activations_peak_bytes=activations,
        attention_backend="simulated",
        ranks=tuple(ranks),
        micro_batches=(settings.micro_batches or shape.pp) if shape.pp > 1 else 1,
    )
