"""Reads an MXFP4 checkpoint without making its experts wide.

Knows: what takes the place of transformers' experts, what a checkpoint must have for it, random
weights in its form. Does not know: who computes, which part of a tensor a rank wants.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from torch import nn

from gpt_oss_server.engine.experts.stored import Mxfp4Experts
from gpt_oss_server.engine.kernels.gates import Gate
from gpt_oss_server.engine.loader import check_weights, loading_errors
from gpt_oss_server.engine.ranks.filling import Progress, fill, place_buffers, wanted_bytes
from gpt_oss_server.engine.ranks.shard import Cut
from gpt_oss_server.engine.ranks.skeleton import skeleton, wanted
from gpt_oss_server.engine.ranks.source import Checkpoint, Source
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.errors import StartupError

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
    model = stored_skeleton(folder, config, dtype)
    needs = wanted(model)
    with loading_errors(folder, device):
        blanks = {need.name: need.blank for need in needs}
        source = stored_source(spec, blanks, device, progress)
        size = wanted_bytes(needs) / 2**30
        progress(f"loading {size:.1f} GiB of weights onto {device}, experts as MXFP4")
        fill(needs, source, lambda _: device, progress)
        place_buffers(model.modules(), device)
    return model


def stored_skeleton(folder: Path, config: Any, dtype: torch.dtype) -> Any:
    """A model without weights, its experts as `Mxfp4Experts`. Raises StartupError."""
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    model = skeleton(folder, config, dtype)
    with loading_errors(folder, "the meta device"):
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, GptOssExperts):
                    setattr(parent, name, _stored(child, dtype))
    return model


def stored_source(
    spec: EngineSpec, blanks: Mapping[str, torch.Tensor], device: torch.device, progress: Progress
) -> Source:
    """Where the tensors of a `stored_skeleton` come from: `blanks` by name, nothing cut yet.
    Raises StartupError for a checkpoint that lacks some."""
    if spec.load_format == "random":
        progress(f"initialising random MXFP4 weights (seed {spec.weights_seed})")
        return RandomWeights(blanks, spec.weights_seed, device)
    folder = Path(spec.folder)
    checkpoint = Checkpoint.in_folder(folder)
    if checkpoint is None:
        raise StartupError(f"{folder} holds no model.safetensors: fetch the checkpoint again")
    missing = [name for name in blanks if not checkpoint.has([name])]
    if missing:
        raise StartupError(
            f"{folder}: the checkpoint lacks {len(missing)} of the model's tensors "
            f"({', '.join(sorted(missing)[:3])}{', …' if len(missing) > 3 else ''}): fetch it "
            "again, or use --experts transformers"
        )
    return checkpoint


class RandomWeights:
    """Random tensors in the shapes and number types of `blanks`, by name. Each has a seed of its
    own, so a part of a model is the same in whichever order it is read, and however it is cut: for
    the same seed and kind of device. Made on that device, whole and then cut."""

    def __init__(self, blanks: Mapping[str, torch.Tensor], seed: int, device: torch.device) -> None:
        self._blanks = dict(blanks)
        self._seed = seed
        self._device = device

    def read(self, name: str, cut: Cut | None) -> torch.Tensor:
        blank = self._blanks[name]
        # Of 32 bits: a CPU's generator looks at no more of them.
        seed = crc32(f"{self._seed} {name}".encode())
        random = torch.Generator(self._device).manual_seed(seed)
        tensor = torch.empty(blank.shape, dtype=blank.dtype, device=self._device)
        if name.endswith("_blocks"):
            tensor.random_(0, 256, generator=random)
        elif name.endswith("_scales"):
            tensor.fill_(_RANDOM_SCALE)
        elif "norm" in name:
            tensor.fill_(1.0)
        elif name.endswith("bias"):
            tensor.zero_()
        else:
            tensor.normal_(std=_RANDOM_SPREAD, generator=random)
        # A copy, else the part would keep all of it.
        return tensor if cut is None else cut.of(tensor).clone()


def _stored(experts: Any, dtype: torch.dtype) -> nn.Module:
    gate = Gate("swiglu", alpha=float(experts.alpha), limit=float(experts.limit))
    count, hidden, outputs = experts.gate_up_proj.shape
    return Mxfp4Experts(count, hidden, outputs // 2, gate, dtype)
