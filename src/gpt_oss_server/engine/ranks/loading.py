"""Loads one rank's part of a model: cut first, then read no more than that.

Knows: the order of it, for tensor ranks and stages. Does not know: how anything is cut; who
starts ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import torch

from gpt_oss_server.engine.experts.choice import (
    ExpertsChoice,
    choose_experts,
    is_mxfp4,
    wide_line,
)
from gpt_oss_server.engine.experts.loading import stored_skeleton, stored_source
from gpt_oss_server.engine.layout import observe_layers, reconcile
from gpt_oss_server.engine.loader import (
    check_weights,
    describe,
    kernels_if_wanted,
    loading_errors,
    pack_if_possible,
    pick_device,
    pick_dtype,
    read_config,
    whole_model,
)
from gpt_oss_server.engine.ranks.comms import Comms
from gpt_oss_server.engine.ranks.filling import Progress, fill, place_buffers
from gpt_oss_server.engine.ranks.part import ModelPart, StagePart, TensorPart
from gpt_oss_server.engine.ranks.place import Place
from gpt_oss_server.engine.ranks.plan import tensor_plan
from gpt_oss_server.engine.ranks.shard import ExpertSplit
from gpt_oss_server.engine.ranks.skeleton import skeleton, wanted
from gpt_oss_server.engine.ranks.source import Checkpoint, Source, WholeModel, weights_digest
from gpt_oss_server.engine.ranks.stages import StageCutter
from gpt_oss_server.engine.ranks.tensor import TensorCutter
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.errors import StartupError
from gpt_oss_server.memory.architecture import ModelShape, shape_from_config
from gpt_oss_server.memory.errors import ImpossibleSplit, ShapeUnknown
from gpt_oss_server.memory.weights import weights_of

# Of a GPU, for its context and kernels, as `memory.fit` sets aside.
WORKSPACE_BYTES = 1 << 30


def rank_device(spec: EngineSpec, place: Place) -> torch.device:
    """The CPU for every rank, or the GPU of the rank's number counted from the one that `spec`
    names. Raises StartupError for too few GPUs."""
    first = pick_device(spec.device)
    if first.type != "cuda":
        return first
    there, index = torch.cuda.device_count(), (first.index or 0) + place.rank
    if index >= there:
        raise StartupError(
            f"--gpu-mode {spec.gpu_mode} over {place.world} GPUs from {first} on: this machine "
            f"has {there}"
        )
    return torch.device("cuda", index)


def load_part(
    spec: EngineSpec, place: Place, comms: Comms, progress: Progress, experts: ExpertSplit = "width"
) -> ModelPart:
    """This rank's part of the model that `spec` names. All ranks call it together: at its end
    they make sure that they loaded the same, and tensor ranks run a pass.

    Raises StartupError, each with one line that says what to do.
    """
    folder = Path(spec.folder)
    device = comms.device
    config = read_config(folder)
    dtype = pick_dtype(spec.dtype, config, device)
    check_weights(spec)
    whole = predicted_shape(folder)
    choice = _chosen(spec, config, dtype, comms, progress)
    model = (stored_skeleton if choice.as_stored else skeleton)(folder, config, dtype)
    seen = _model_seen(spec)
    needs = wanted(model)
    blanks = {need.name: need.blank for need in needs}
    layers = _stages(spec, dtype, place, device, choice)[place.stage]
    cutter = _cutter(model, comms, experts, layers)
    cutter.cut()
    predicted = _local_shape(whole, place, layers)
    _check_same(spec, seen, comms)
    source = _source(spec, blanks, choice, dtype, device, progress)
    modules = set(model.modules())
    here = [need for need in (one.among(modules) for one in needs) if need.holders]
    with loading_errors(folder, device):
        fill(here, source, lambda _: device, progress, cutter.cuts)
        place_buffers(modules, device)
    if _model_seen(spec) != seen:
        raise StartupError(
            f"{folder}: its files changed while rank {place.rank} read them: start again"
        )
    cutter.join()
    loaded = describe(model, device, dtype)
    kernels_if_wanted(spec, model, device, dtype, progress)
    pack_if_possible(model, device, dtype, progress)
    shape, warnings = reconcile(predicted, observe_layers(model, not place.is_first_stage))
    kind = StagePart if place.pp > 1 else TensorPart
    return kind(loaded, layers, shape, whole, tuple(warnings), place)


def predicted_shape(folder: Path) -> ModelShape:
    """The whole model's shape from its config. Raises StartupError where it cannot be told."""
    try:
        return shape_from_config(_config_dict(folder))
    except ShapeUnknown as error:
        raise StartupError(f"{folder}: {error}") from error


def _config_dict(folder: Path) -> dict[str, Any]:
    return msgspec.json.decode((folder / "config.json").read_bytes(), type=dict[str, Any])


def _chosen(
    spec: EngineSpec, config: Any, dtype: torch.dtype, comms: Comms, progress: Progress
) -> ExpertsChoice:
    """Who computes experts here, and in which form all ranks hold them: in four bits if each of
    them can. Raises StartupError as `choose_experts`."""
    choice = choose_experts(spec, config, dtype, comms.device)
    if is_mxfp4(config):
        unable = torch.tensor([int(not choice.as_stored)], device=comms.device)
        if int(comms.all_reduce(unable)) and choice.as_stored:
            choice = replace(choice, as_stored=False, wide_because="another rank's GPU cannot")
    line = wide_line(choice, dtype)
    if line is not None:
        progress(line)
    return choice


def _stages(
    spec: EngineSpec, dtype: torch.dtype, place: Place, device: torch.device, choice: ExpertsChoice
) -> tuple[range, ...]:
    """The layers of each stage, the same on all ranks. Quantized weights that are not kept as they
    are stored are plain numbers. Raises StartupError for more stages than layers."""
    name, plain = str(dtype).removeprefix("torch."), not choice.as_stored
    try:
        weights = weights_of(_config_dict(Path(spec.folder)), dtype=name, dequantized=plain)
        return weights.stages(place.pp, _room(spec, place, device))
    except (ImpossibleSplit, ShapeUnknown) as error:
        raise StartupError(f"--gpu-mode pipeline: {error}") from error


def _room(spec: EngineSpec, place: Place, device: torch.device) -> int | None:
    """What the weights of a stage may take: of all stages' GPUs the smallest, whatever else is on
    it now, since every rank must come to the same cut. On a CPU there is no such bound."""
    if device.type != "cuda" or place.pp == 1:
        return None
    first = (device.index or 0) - place.rank
    totals = [torch.cuda.get_device_properties(first + i).total_memory for i in range(place.pp)]
    return int(min(totals) * spec.gpu_memory_utilization) - WORKSPACE_BYTES


def _source(
    spec: EngineSpec,
    blanks: Mapping[str, torch.Tensor],
    choice: ExpertsChoice,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress,
) -> Source:
    """The checkpoint's files where they have the model's own tensors, else the model, whole.
    `blanks` are those tensors before any is cut."""
    folder = Path(spec.folder)
    reading = "reading this rank's part of the weights"
    if choice.as_stored:
        with loading_errors(folder, device):
            source = stored_source(spec, blanks, device, progress)
        progress(reading)
        return source
    if spec.load_format == "auto":
        shapes = {name: tuple(blank.shape) for name, blank in blanks.items()}
        with loading_errors(folder, "the host"):
            checkpoint = Checkpoint.in_folder(folder)
            if checkpoint is not None and checkpoint.supplies(shapes):
                progress(reading)
                return checkpoint
        progress("the checkpoint has other tensors than the model: it is loaded whole, then cut")
    return WholeModel(whole_model(spec, read_config(folder), dtype, torch.device("cpu"), progress))


def _model_seen(spec: EngineSpec) -> int:
    """A number for the model that is in the folder now."""
    folder = Path(spec.folder)
    with loading_errors(folder, "the host"):
        digest = hashlib.sha256((folder / "config.json").read_bytes())
        digest.update(repr((spec.load_format, spec.weights_seed, spec.dtype)).encode())
        if spec.load_format == "auto":
            digest.update(weights_digest(folder))
    return int.from_bytes(digest.digest()[:7], "little")


def _check_same(spec: EngineSpec, seen: int, comms: Comms) -> None:
    """Raises StartupError, on every rank, where ranks see different models."""
    place = comms.place
    numbers = torch.zeros(place.world, dtype=torch.int64, device=comms.device)
    numbers[place.rank] = seen
    values = comms.all_reduce(numbers).tolist()
    different = [rank for rank, value in enumerate(values) if value != values[place.leader]]
    if different:
        raise StartupError(
            f"ranks {different} see another model in {spec.folder} than rank {place.leader}: give "
            "all the same files"
        )


def _cutter(
    model: Any, comms: Comms, experts: ExpertSplit, layers: range
) -> TensorCutter | StageCutter:
    if comms.place.pp > 1:
        return StageCutter(model, comms.place, layers)
    text = model.config.get_text_config()
    plan = tensor_plan(text.model_type, getattr(text, "base_model_tp_plan", None))
    return TensorCutter(model, plan, comms, experts)


def _local_shape(whole: ModelShape, place: Place, layers: range) -> ModelShape:
    try:
        return whole.part(layers).sharded(place.tp)
    except ImpossibleSplit as error:
        raise StartupError(f"--gpu-mode tensor: {error}") from error
