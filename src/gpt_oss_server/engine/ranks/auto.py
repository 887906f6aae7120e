"""One process over several devices: whole layers on each, by a device map.

Knows: how such a model is loaded, where its KV goes, what a step needs on each device. Does not
know: how a map is found (`device_map`), scheduling.

Nothing that is loaded ever moves. Weights that are offloaded, because the user asked for it, are
copied to the device for each use by accelerate's hooks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

from gpt_oss_server.engine.attention.interface import (
    ATTENTION_NAME,
    AttentionBackend,
    LayerKv,
    StepContext,
)
from gpt_oss_server.engine.experts.choice import choose_experts, wide_line
from gpt_oss_server.engine.experts.loading import stored_skeleton
from gpt_oss_server.engine.guided import Guides
from gpt_oss_server.engine.layout import allocate_layers, observe, register_attention
from gpt_oss_server.engine.loader import (
    LoadedModel,
    check_weights,
    pick_device,
    pick_dtype,
    read_config,
    tensor_bytes,
)
from gpt_oss_server.engine.outfit import (
    Outfit,
    bounds_of,
    info_of,
    kv_budget,
    plan_within,
    shape_of,
)
from gpt_oss_server.engine.outfit import read_config as read_config_file
from gpt_oss_server.engine.phases import Phases, summary
from gpt_oss_server.engine.ranks.device_map import DeviceMap, device_map, flat, offload_warning
from gpt_oss_server.engine.ranks.skeleton import skeleton
from gpt_oss_server.engine.ranks.spread import load_spread
from gpt_oss_server.engine.runner import NOTHING, Runner, live_rows, make_backend, spoiled
from gpt_oss_server.engine.sampler import Drawn, Sampled, Sampler
from gpt_oss_server.engine.sequence import Sequence as Seq
from gpt_oss_server.engine.shortage import give_back, shortage_of
from gpt_oss_server.engine.single import sampler_of
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.engine.step import StepInput, StepLayout, to_device
from gpt_oss_server.engine.step_cost import step_cost
from gpt_oss_server.memory.architecture import ModelShape
from gpt_oss_server.memory.kv import PoolGroup, PoolPlan, cache_groups
from gpt_oss_server.types import RankInfo

Progress = Callable[[str], None]
Devices = Sequence[torch.device]
HOST = torch.device("cpu")


def equip_spread(spec: EngineSpec, progress: Progress) -> Outfit | torch.device:
    """Load the model over the devices of its map and allocate its pools beside its layers. Where
    one device is to have it all, as in single mode, that device. Raises StartupError."""
    folder = Path(spec.folder)
    check_weights(spec)
    config = read_config(folder)
    device = pick_device(spec.device)
    dtype = pick_dtype(spec.dtype, config, device)
    choice = choose_experts(spec, config, dtype, device)
    blank = (stored_skeleton if choice.as_stored else skeleton)(folder, config, dtype)
    found = device_map(spec, blank, dtype, device)
    if found.single is not None:
        return found.single
    warning = offload_warning(found)
    if warning is not None:
        progress(f"warning: {warning}")
    # A map that was computed is flat as it is.
    modules = dict(found.modules) if spec.device_map is None else flat(found, blank)
    line = None if spec.experts == "transformers" else wide_line(choice, dtype)
    if line is not None:
        progress(line)
    phases = Phases()
    with phases.during("load"):
        loaded = load_spread(spec, blank, dtype, found, modules, choice, progress)
    model = loaded.model
    observed, devices = observe(model, found.main)
    file = read_config_file(spec)
    shape, warnings = shape_of(file, loaded, observed)
    for line in warnings:
        progress(f"warning: {line}")
    bounds = bounds_of(spec, file, loaded)
    progress("allocating the KV pools")
    with phases.during("pools"):
        plan = _plan(spec, loaded, shape, devices, bounds.batch_tokens, bounds.activations_bytes)
        backend = make_backend(spec.attention_backend, spec.block_size, devices, progress)
        layers = allocate_layers(plan, shape, spec.block_size, dtype, devices)
    progress(f"start-up: {summary(phases.passed)}")

    def make_runner(guides: Guides) -> Runner:
        return SpreadRunner(loaded, layers, backend, sampler_of(loaded, guides), spec.block_size)

    ranks = held_by_device(model, found, layers, devices, plan)
    info = info_of(spec, loaded, bounds, plan, backend.name, ranks)
    info = msgspec.structs.replace(info, startup=phases.passed)
    return Outfit(info, step_cost(loaded.active_parameters, shape), make_runner)


class _Outcome(NamedTuple):
    """A step that is computed and sampled from."""

    drawn: Drawn | None
    spoiled: frozenset[int]


class SpreadRunner:
    """A model over several devices in one process. What a step needs is copied once to each. It is
    computed as it is sampled from."""

    depth = 1
    lookahead = False

    def __init__(
        self,
        loaded: LoadedModel,
        layers: Sequence[LayerKv],
        backend: AttentionBackend,
        sampler: Sampler,
        block_size: int,
    ) -> None:
        register_attention()
        loaded.model.set_attn_implementation(ATTENTION_NAME)
        loaded.model.get_decoder().register_forward_hook(_back_to(loaded.device))
        self._model = loaded.model
        self._main = loaded.device
        self._layers = layers
        self._devices = {layer.keys.device for layer in layers} | {loaded.device}
        self._backend = backend
        self._block_size = block_size
        self._launched: deque[StepLayout] = deque()
        self._outcome: _Outcome | None = None
        self.sampler = sampler

    def launch(self, layout: StepLayout) -> None:
        self._launched.append(layout)

    def sample(self, sampling: Sequence[Seq | None]) -> None:
        layout = self._launched.popleft()
        try:
            self._outcome = self._compute(layout, sampling)
        except (RuntimeError, MemoryError) as error:
            shortage = shortage_of(error)
            if shortage is None:
                raise
        else:
            return
        give_back(self._main)
        raise shortage

    def collect(self, sampling: Sequence[Seq | None]) -> tuple[Sampled, frozenset[int]]:
        if self._outcome is None:
            self.sample(sampling)
        outcome, self._outcome = self._outcome, None
        if outcome is None:
            raise RuntimeError("a step was collected that nobody sampled from")
        live = [seq for seq in sampling if seq is not None]
        if outcome.drawn is None:
            return NOTHING, outcome.spoiled
        with torch.inference_mode():
            return self.sampler.finish(outcome.drawn, live), outcome.spoiled

    def _compute(self, layout: StepLayout, sampling: Sequence[Seq | None]) -> _Outcome:
        with torch.inference_mode():
            contexts = {device: self._context(layout, device) for device in self._devices}
            main = contexts.pop(self._main)
            step = main.step
            output = self._model(
                input_ids=step.token_ids.unsqueeze(0),
                position_ids=step.positions.unsqueeze(0),
                use_cache=False,
                logits_to_keep=step.sample_rows,
                step_context=replace(main, elsewhere=contexts),
            )
            logits = output.logits[0].to(self._main)
            written = main.written
            for other in contexts.values():
                written += other.written.to(self._main)
            live = [seq for seq in sampling if seq is not None]
            drawn = self.sampler.draw(live_rows(logits, sampling), live) if live else None
            return _Outcome(drawn, spoiled(step, written))

    def _context(self, layout: StepLayout, device: torch.device) -> StepContext:
        step: StepInput = to_device(layout, self._block_size, device)
        written = torch.zeros(len(step.token_ids), device=device)
        return StepContext(self._layers, step, self._backend.plan(step), written)


def _back_to(main: torch.device) -> Callable[[Any, Any, Any], Any]:
    """After the decoder: its states where the rows to sample are named, whatever its last layer's
    device was."""

    def hook(module: Any, inputs: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state.to(main)
        return output

    return hook


def _plan(
    spec: EngineSpec,
    loaded: LoadedModel,
    shape: ModelShape,
    devices: Devices,
    batch_tokens: int,
    activations_bytes: int,
) -> PoolPlan:
    """Pools with as many blocks as the device that has least room for each can hold."""
    if spec.kv_cache_bytes is not None:
        return plan_within(spec, loaded, shape, batch_tokens, spec.kv_cache_bytes)
    groups = cache_groups(shape, loaded.dtype.itemsize)
    group_of = {index: g for g, group in enumerate(groups) for index in group.layer_indices}
    blocks: dict[int, int] = {}
    for device in dict.fromkeys(devices):
        here = [index for index, where in enumerate(devices) if where == device]
        part = replace(shape, layers=tuple(shape.layers[index] for index in here))
        budget = kv_budget(spec, replace(loaded, device=device), activations_bytes)
        for pool in plan_within(spec, loaded, part, batch_tokens, budget).groups:
            group = group_of[here[pool.layer_indices[0]]]
            blocks[group] = min(pool.num_blocks, blocks.get(group, pool.num_blocks))
    pools = tuple(
        PoolGroup(
            group.name,
            group.window,
            group.layer_indices,
            blocks[g],
            group.row_bytes * spec.block_size,
        )
        for g, group in enumerate(groups)
    )
    holding = [pool for pool in pools if pool.window is None] or list(pools)
    return PoolPlan(pools, min(pool.num_blocks for pool in holding) * spec.block_size)


def held_by_device(
    model: Any, found: DeviceMap, layers: Sequence[LayerKv], devices: Devices, plan: PoolPlan
) -> tuple[RankInfo, ...]:
    """What each device has, also one with weights and no layer, and the host where weights are
    offloaded to it. What is on disk is in nobody's memory."""
    tensors = [t for t in (*model.parameters(), *model.buffers()) if t.device.type != "meta"]
    weights = dict.fromkeys(dict.fromkeys((*devices, *(t.device for t in tensors))), 0)
    for device in weights:
        weights[device] = tensor_bytes([t for t in tensors if t.device == device])
    host = sum(size for name, size in found.tensors.items() if found.on_host(name))
    if host:
        weights[HOST] = weights.get(HOST, 0) + host
    infos = []
    for number, (device, weights_bytes) in enumerate(weights.items()):
        here = [index for index, where in enumerate(devices) if where == device]
        infos.append(
            RankInfo(
                rank=number,
                device=str(device),
                first_layer=min(here, default=0),
                layers=len(here),
                weights_bytes=weights_bytes,
                kv_bytes=tensor_bytes(
                    [t for i in here for t in (layers[i].keys, layers[i].values)]
                ),
                block_bytes=tuple(
                    sum(group.block_bytes // group.layers for i in here if i in group.layer_indices)
                    for group in plan.groups
                ),
            )
        )
    return tuple(infos)
