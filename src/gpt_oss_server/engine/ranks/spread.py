"""Loads a model over several devices of one process, by its device map.

Knows: transformers' and accelerate's calls for it, MXFP4 experts beside them. Does not know: how
a map is found (`device_map`), KV, steps.

Nothing that is loaded ever moves: what is read goes to its place at once. Weights that the map has
on the host or on disk beside a device that uses them are copied there for each use by accelerate's
hooks, in four bits where they are kept so, and made wide there expert by expert.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from gpt_oss_server.engine.experts.choice import ExpertsChoice, kernels_wanted
from gpt_oss_server.engine.experts.loading import stored_source
from gpt_oss_server.engine.loader import LoadedModel, describe, loading_errors, whole_model
from gpt_oss_server.engine.ranks.device_map import DeviceMap
from gpt_oss_server.engine.ranks.filling import Progress, fill, place_buffers, wanted_bytes
from gpt_oss_server.engine.ranks.skeleton import module_name, wanted
from gpt_oss_server.engine.ranks.source import Checkpoint
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.errors import StartupError

Modules = dict[str, int | str]


def load_spread(
    spec: EngineSpec,
    blank: Any,
    dtype: torch.dtype,
    found: DeviceMap,
    modules: Modules,
    choice: ExpertsChoice,
    progress: Progress,
) -> LoadedModel:
    """The model on its devices, by `modules`; `blank` is its skeleton. What is to be on disk stays
    in the checkpoint's files, and is read from there. Raises StartupError where it is not in them
    as the model has it."""
    if "disk" in modules.values():
        _check_on_disk(spec, found)
    if choice.as_stored:
        return _in_four_bits(spec, blank, dtype, found, modules, progress)
    if spec.load_format == "random":
        from accelerate import dispatch_model  # type: ignore[import-untyped]

        model = whole_model(spec, blank.config, dtype, torch.device("cpu"), progress)
        model = dispatch_model(model, modules, main_device=found.main)
    else:
        model = whole_model(spec, blank.config, dtype, modules, progress)
    loaded = describe(model, found.main, dtype)
    if choice.kernels:
        _use_kernels(spec, model, dtype, found, progress)
    return loaded


def _check_on_disk(spec: EngineSpec, found: DeviceMap) -> None:
    folder = Path(spec.folder)
    checkpoint = None if spec.load_format == "random" else Checkpoint.in_folder(folder)
    names = [name for name in found.tensors if found.offloaded(name)]
    if checkpoint is None or not checkpoint.has(names):
        raise StartupError(
            f"{folder}: its files do not have the model's tensors as they are used, so these "
            "cannot be left on disk: use --offload cpu, or more or larger GPUs"
        )


def _in_four_bits(
    spec: EngineSpec,
    model: Any,
    dtype: torch.dtype,
    found: DeviceMap,
    modules: Modules,
    progress: Progress,
) -> LoadedModel:
    """Fill the skeleton `model`, whose experts are `Mxfp4Experts`. Kernels compute those of layers
    that are where they are used."""
    from accelerate import dispatch_model

    folder = Path(spec.folder)
    needs = wanted(model)
    blanks = {need.name: need.blank for need in needs}
    with loading_errors(folder, "its devices"):
        source = stored_source(spec, blanks, found.main, progress)
        here = [need for need in needs if found.place(need.name) != "disk"]
        size = wanted_bytes(here) / 2**30
        progress(f"loading {size:.1f} GiB of weights onto its devices, experts as MXFP4")
        fill(here, source, lambda name: _device(found.place(name)), progress)
        place_buffers(model.modules(), found.main)
        loaded = describe(model, found.main, dtype)
        widened = _use_kernels(spec, model, dtype, found, progress)
        if widened:
            progress(f"experts of {widened} layers are made wide in each step, one by one")
        dispatch_model(
            model,
            modules,
            main_device="cpu" if found.main.type == "cpu" else found.main.index,
            offload_index=_left_on_disk(folder, blanks, found),
            skip_keys=model._skip_keys_device_placement,
        )
    return loaded


def _use_kernels(
    spec: EngineSpec, model: Any, dtype: torch.dtype, found: DeviceMap, progress: Progress
) -> int:
    """Let Triton compute the experts of the layers that have them where they are used. Returns how
    many layers are left."""
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        return 0
    above = module_name(model, layers)
    computed = left = 0
    for index, layer in enumerate(layers):
        names = [f"{above}.{index}.{name}" for name, _ in layer.named_parameters()]
        mixture = [name for name in names if ".mlp." in name]
        places = {found.place(name) for name in mixture}
        resident = len(places) == 1 and not any(map(found.offloaded, mixture))
        if resident and kernels_wanted(spec, dtype, _device(places.pop())):
            from gpt_oss_server.engine.experts.replace import use_kernels

            computed += use_kernels(layer)
        else:
            left += 1
    if computed:
        progress(f"experts of {computed} layers are computed by Triton kernels")
    return left


def _left_on_disk(
    folder: Path, blanks: dict[str, torch.Tensor], found: DeviceMap
) -> dict[str, dict[str, str]] | None:
    """Where accelerate's hooks find each tensor that is on disk; None where none is."""
    checkpoint = Checkpoint.in_folder(folder)
    names = [name for name in blanks if found.place(name) == "disk"]
    if checkpoint is None or not names:
        return None
    return {
        name: {
            "safetensors_file": str(checkpoint.file_of(name)),
            "weight_name": name,
            "dtype": str(blanks[name].dtype).removeprefix("torch."),
        }
        for name in names
    }


def _device(place: int | str) -> torch.device:
    """Where a tensor with this entry in a map is kept; what is on disk is nowhere."""
    return torch.device("cpu") if isinstance(place, str) else torch.device("cuda", place)
