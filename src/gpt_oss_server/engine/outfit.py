"""What an engine steps with: a loaded model, its pools' sizes, a runner over both.

Knows: how the token budget, the context and the KV budget follow from a spec, a model and its
device. Does not know: scheduling, jobs, other ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from gpt_oss_server.engine.forward import make_forward
from gpt_oss_server.engine.guided import Guides
from gpt_oss_server.engine.host_memory import check_room, free_bytes
from gpt_oss_server.engine.layout import allocate_layers, observe_layers, reconcile
from gpt_oss_server.engine.loader import LoadedModel, load_model
from gpt_oss_server.engine.meter import Meter, make_meter
from gpt_oss_server.engine.phases import Phases
from gpt_oss_server.engine.profile import Limits, Profile
from gpt_oss_server.engine.runner import Runner, make_backend
from gpt_oss_server.engine.single import Opening, Single, say_profile
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.engine.step_cost import StepCost, step_cost
from gpt_oss_server.errors import ConfigError, StartupError
from gpt_oss_server.memory.activations import activations_of
from gpt_oss_server.memory.architecture import LayerAttention, ModelShape, shape_from_config
from gpt_oss_server.memory.errors import PoolTooSmall, ShapeUnknown
from gpt_oss_server.memory.kv import PoolPlan, cache_groups, plan_pools
from gpt_oss_server.types import EngineInfo, KvGroupInfo, RankInfo

CPU_BATCH_TOKENS = 256
CUDA_BATCH_TOKENS = 2048
# On a CPU the pool may take this share of the free memory, up to a bound that fits a laptop.
CPU_KV_SHARE = 0.4
CPU_KV_MAX_BYTES = 2 << 30


@dataclass(frozen=True)
class Outfit:
    """`make_runner` is called once, with the engine's guides. `started` adds to `info` what is
    known only behind that."""

    info: EngineInfo
    cost: StepCost
    make_runner: Callable[[Guides], Runner]
    started: Callable[[EngineInfo], EngineInfo] = lambda info: info


def equip(
    spec: EngineSpec,
    progress: Callable[[str], None],
    meter_of: Callable[[torch.device], Meter | None] = make_meter,
) -> Outfit:
    """Load the model into this process and allocate its pools. Where the device has a meter, the
    largest steps are run first, and the pools take what these leave. Raises StartupError."""
    if spec.gpu_mode == "auto":
        from gpt_oss_server.engine.ranks.auto import equip_spread

        spread = equip_spread(spec, progress)
        if isinstance(spread, Outfit):
            return spread
        spec = msgspec.structs.replace(spec, device=str(spread))
    phases = Phases()
    loaded = load_model(spec, progress, phases)
    config = read_config(spec)
    shape, warnings = shape_of(config, loaded, observe_layers(loaded.model))
    for line in warnings:
        progress(f"warning: {line}")
    bounds = bounds_of(spec, config, loaded)
    with phases.during("rewrite"):
        backend = make_backend(spec.attention_backend, spec.block_size, [loaded.device], progress)
        forward = make_forward(loaded.model, backend.name, bounds.max_len, progress)
    groups = len(cache_groups(shape, loaded.dtype.itemsize))
    limits = Limits(
        batch_tokens=bounds.batch_tokens,
        max_num_seqs=spec.max_num_seqs,
        max_len=bounds.max_len,
        block_size=spec.block_size,
        vocab_size=loaded.vocab_size,
        groups=groups,
    )
    single = Single(spec, loaded, shape, limits, backend, forward)
    meter = meter_of(loaded.device)
    profile = None
    if meter is not None:
        progress("profiling the largest steps")
        with phases.during("profile"):
            profile = single.profiled(meter)
        say_profile(profile, bounds.activations_bytes, progress)
    progress("allocating the KV pools")
    with phases.during("pools"):
        aside = bounds.activations_bytes if profile is None else single.set_aside_bytes(profile)
        budget = spec.kv_cache_bytes or kv_budget(spec, loaded, aside)
        plan = plan_within(spec, loaded, shape, bounds.batch_tokens, budget)
        check_pools(plan, loaded.device, aside, progress)
        layers = allocate_layers(plan, shape, spec.block_size, loaded.dtype, loaded.device)
    opening = Opening(single, layers, meter, phases, progress)
    rank = RankInfo(
        rank=0,
        device=str(loaded.device),
        layers=len(shape.layers),
        weights_bytes=loaded.weights_bytes,
        kv_bytes=plan.total_bytes,
        block_bytes=tuple(group.block_bytes for group in plan.groups),
    )
    info = info_of(spec, loaded, bounds, plan, backend.name, (rank,), profile)
    cost = step_cost(loaded.active_parameters, shape)
    return Outfit(info, cost, opening.make_runner, opening.started)


@dataclass(frozen=True)
class Bounds:
    """The longest sequence, the tokens of all steps in flight, and the most bytes that a step
    holds besides weights and KV (0 where the config does not tell)."""

    max_len: int
    batch_tokens: int
    activations_bytes: int


def read_config(spec: EngineSpec) -> Mapping[str, Any]:
    config: Mapping[str, Any] = msgspec.json.decode(
        (Path(spec.folder) / "config.json").read_bytes()
    )
    return config


def bounds_of(spec: EngineSpec, config: Mapping[str, Any], loaded: LoadedModel) -> Bounds:
    """Raises ConfigError for a context that the model was not made for, or too few tokens.

    A stage has its part of the layers only, so a step in flight on each takes a decoding sequence
    as long from token to token as one step of as many tokens through all layers. With more in
    flight than stages, steps are smaller for the same reason.
    """
    step_tokens = _batch_tokens(spec, loaded)
    try:
        activations = activations_of(
            config, step_tokens, spec.max_num_seqs, loaded.dtype.itemsize
        ).peak_bytes
    except ShapeUnknown:
        activations = 0
    busy_stages = min(spec.depth, spec.world)
    return Bounds(_context(spec, loaded), step_tokens * busy_stages, activations)


def info_of(
    spec: EngineSpec,
    loaded: LoadedModel,
    bounds: Bounds,
    plan: PoolPlan,
    backend: str,
    ranks: tuple[RankInfo, ...],
    profile: Profile | None = None,
) -> EngineInfo:
    """What the engine says of itself. `plan` counts the blocks of all ranks; without a `profile`,
    steps are taken to need what was predicted."""
    bound = bounds.activations_bytes
    return EngineInfo(
        vocab_size=loaded.vocab_size,
        max_model_len=bounds.max_len,
        eos_token_ids=loaded.eos_token_ids,
        block_size=spec.block_size,
        kv_groups=tuple(
            KvGroupInfo(g.name, g.layers, g.window, g.num_blocks, g.block_bytes)
            for g in plan.groups
        ),
        kv_token_capacity=plan.token_capacity,
        max_num_seqs=spec.max_num_seqs,
        max_batch_tokens=bounds.batch_tokens,
        dtype=str(loaded.dtype).removeprefix("torch."),
        device=str(loaded.device),
        weights_bytes=sum(rank.weights_bytes for rank in ranks),
        activations_peak_bytes=bound if profile is None else profile.set_aside_bytes,
        activations_bound_bytes=bound,
        activations_measured_bytes=None if profile is None else profile.step.allocated_bytes,
        attention_backend=backend,
        ranks=ranks,
        micro_batches=spec.depth,
    )


def _context(spec: EngineSpec, loaded: LoadedModel) -> int:
    if spec.max_model_len is None:
        return loaded.context_len
    if spec.max_model_len > loaded.context_len:
        raise ConfigError(
            f"max_model_len {spec.max_model_len} exceeds the model's own context of "
            f"{loaded.context_len} tokens"
        )
    return spec.max_model_len


def _batch_tokens(spec: EngineSpec, loaded: LoadedModel) -> int:
    """Tokens per step. At least one for each sequence: every stream goes on in every step."""
    if spec.max_batch_tokens is None:
        usual = CPU_BATCH_TOKENS if loaded.device.type == "cpu" else CUDA_BATCH_TOKENS
        return max(usual, spec.max_num_seqs)
    if spec.max_batch_tokens < spec.max_num_seqs:
        raise ConfigError(
            f"max_batch_tokens {spec.max_batch_tokens} is less than max_num_seqs "
            f"{spec.max_num_seqs}: each running sequence needs a token per step"
        )
    return spec.max_batch_tokens


def shape_of(
    config: Mapping[str, Any], loaded: LoadedModel, observed: tuple[LayerAttention, ...]
) -> tuple[ModelShape, list[str]]:
    """The config's shape, checked against one forward pass of the model."""
    try:
        predicted = shape_from_config(config)
    except ShapeUnknown as error:
        text = loaded.model.config.get_text_config()
        shape = ModelShape(
            model_type=str(text.model_type),
            layers=observed,
            hidden_size=int(text.hidden_size),
            num_heads=int(text.num_attention_heads),
            vocab_size=loaded.vocab_size,
            max_positions=loaded.context_len,
            exact=False,
        )
        return shape, [f"no prediction from the config, using what was observed: {error}"]
    return reconcile(predicted, observed)


def plan_within(
    spec: EngineSpec, loaded: LoadedModel, shape: ModelShape, batch_tokens: int, budget: int
) -> PoolPlan:
    """Pools within the budget. Raises StartupError where it holds not even one block each."""
    try:
        return plan_pools(
            shape,
            budget,
            spec.block_size,
            spec.max_num_seqs,
            batch_tokens,
            loaded.dtype.itemsize,
        )
    except PoolTooSmall as error:
        cure = "--kv-cache-memory" if spec.kv_cache_bytes else "--memory-budget"
        if loaded.device.type == "cuda" and not spec.kv_cache_bytes:
            cure = "--gpu-memory-utilization"
        raise StartupError(
            f"too little memory for a KV cache: {error}; raise {cure} or use a smaller model"
        ) from error


def check_pools(
    plan: PoolPlan, device: torch.device, aside_bytes: int, progress: Callable[[str], None]
) -> None:
    """Raises StartupError for pools that the device has no room for; says so where it has, and
    none is left for steps."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_bytes()
    check_room(plan.total_bytes, free)
    missing = plan.total_bytes + aside_bytes - free
    if device.type == "cuda" and missing > 0:
        progress(
            f"warning: steps may need {missing / 2**20:.1f} MiB more than the KV cache leaves of "
            f"{device}: choose a smaller --kv-cache-memory"
        )


def kv_budget(spec: EngineSpec, loaded: LoadedModel, activations_bytes: int) -> int:
    """Bytes for this rank's KV pools: what its device has left beside weights and activations.
    Ranks on a CPU share its memory evenly."""
    if loaded.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(loaded.device)
        return int(free - (1.0 - spec.gpu_memory_utilization) * total) - activations_bytes
    if spec.memory_budget_bytes is not None:
        share = spec.memory_budget_bytes // spec.world
        return share - loaded.weights_bytes - activations_bytes
    return min(int(free_bytes() * CPU_KV_SHARE), CPU_KV_MAX_BYTES) // spec.world
