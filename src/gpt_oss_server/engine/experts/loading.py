"""Reads an MXFP4 checkpoint without making its experts wide.

Knows: the order in which files are read, what takes the place of transformers' experts. Does not
know: who computes. One tensor is in flight at a time, read from its file and copied to the device,
so neither memory holds more than the model and that tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gpt_oss_server.engine.experts.stored import Mxfp4Experts
from gpt_oss_server.engine.kernels.gates import Gate
from gpt_oss_server.engine.loader import check_weights, loading_errors
from gpt_oss_server.engine.ranks.skeleton import Wanted, skeleton, wanted
from gpt_oss_server.engine.ranks.source import Checkpoint
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.errors import StartupError

Progress = Callable[[str], None]
_PARTS = 20
"""Progress is said so many times."""
# Random bytes with this scale spread as much as the wide weights of a fresh model: E2M1's numbers
# have a root mean square of 2.93, and 2.93 * 2^(120 - 127) = 0.023.
_RANDOM_SCALE = 120
_RANDOM_SPREAD = 0.02


def load_as_stored(
    spec: EngineSpec, config: Any, dtype: torch.dtype, device: torch.device, progress: Progress
) -> Any:
    """The whole gpt-oss model on `device`, in evaluation mode, its experts as `Mxfp4Experts`, the
    rest as `dtype`. Raises StartupError as `loader.load_model`."""
    folder = Path(spec.folder)
    check_weights(spec)
    model = skeleton(folder, config, dtype)
    _put_stored(model, dtype)
    needs = wanted(model)
    with loading_errors(folder, device):
        if spec.load_format == "random":
            progress(f"initialising random MXFP4 weights (seed {spec.weights_seed})")
            _fill_randomly(needs, spec.weights_seed, device)
        else:
            _fill_from_files(needs, _checkpoint(folder, needs), device, progress)
        for module in model.modules():
            for key, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[key] = buffer.to(device)
    return model


def _put_stored(model: nn.Module, dtype: torch.dtype) -> None:
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, GptOssExperts):
                experts: Any = child
                gate = Gate("swiglu", alpha=float(experts.alpha), limit=float(experts.limit))
                count, hidden, outputs = experts.gate_up_proj.shape
                setattr(parent, name, Mxfp4Experts(count, hidden, outputs // 2, gate, dtype))


def _checkpoint(folder: Path, needs: list[Wanted]) -> Checkpoint:
    checkpoint = Checkpoint.in_folder(folder)
    if checkpoint is None:
        raise StartupError(f"{folder} holds no model.safetensors: fetch the checkpoint again")
    missing = [need.name for need in needs if not checkpoint.has([need.name])]
    if missing:
        raise StartupError(
            f"{folder}: the checkpoint lacks {len(missing)} of the model's tensors "
            f"({', '.join(sorted(missing)[:3])}{', …' if len(missing) > 3 else ''}): fetch it "
            "again, or use --experts transformers"
        )
    return checkpoint


def _fill_from_files(
    needs: list[Wanted], checkpoint: Checkpoint, device: torch.device, progress: Progress
) -> None:
    total = sum(need.blank.numel() * need.blank.element_size() for need in needs)
    progress(f"loading {total / 2**30:.1f} GiB of weights onto {device}, experts as MXFP4")
    done = said = 0
    for need in needs:
        blank = need.blank
        tensor = checkpoint.read(need.name, None)
        if tensor.shape != blank.shape:
            raise ValueError(f"{need.name} is {tuple(tensor.shape)}, not {tuple(blank.shape)}")
        need.fill(tensor.to(device, blank.dtype).contiguous())
        done += blank.numel() * blank.element_size()
        if done * _PARTS // total > said:
            said = done * _PARTS // total
            progress(f"loading weights: {100 * done // total} %")


def _fill_randomly(needs: list[Wanted], seed: int, device: torch.device) -> None:
    """The same for the same seed and kind of device."""
    random = torch.Generator(device).manual_seed(seed)
    for need in needs:
        blank = need.blank
        tensor = torch.empty(blank.shape, dtype=blank.dtype, device=device)
        if need.name.endswith("_blocks"):
            tensor.random_(0, 256, generator=random)
        elif need.name.endswith("_scales"):
            tensor.fill_(_RANDOM_SCALE)
        elif "norm" in need.name:
            tensor.fill_(1.0)
        elif need.name.endswith("bias"):
            tensor.zero_()
        else:
            tensor.normal_(std=_RANDOM_SPREAD, generator=random)
        need.fill(tensor)
