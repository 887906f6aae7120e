"""Tiny gpt-oss checkpoints whose experts are in MXFP4, as published ones are.

Knows: the published names, shapes and config. Does not know: engines.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tiny_models import build

SCALES = (119, 125)
"""Of random groups: numbers up to 6 then spread as the wide models' weights do."""


def random_mxfp4(
    experts: int, outputs: int, inputs: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks [E, out, in / 32, 16] and scales [E, out, in / 32]."""
    random = torch.Generator().manual_seed(seed)
    shape = (experts, outputs, inputs // 32)
    blocks = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=random)
    return blocks, torch.randint(*SCALES, shape, dtype=torch.uint8, generator=random)


def saved_mxfp4(folder: Path, **changes: Any) -> str:
    """A gpt-oss model's folder, in two files; returns it as an `EngineSpec` wants it."""
    model = build("gpt_oss", **changes)
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, inputs, outputs = tensor.shape
            blocks, scales = random_mxfp4(experts, outputs, inputs, seed=len(tensors))
            tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = blocks, scales
        else:
            tensors[name] = tensor.contiguous()
    config = model.config.to_dict()
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": []}
    (folder / "config.json").write_text(json.dumps(config))
    return save_in_two_files(folder, tensors)


def save_in_two_files(folder: Path, tensors: dict[str, torch.Tensor]) -> str:
    """As large checkpoints are, with an index."""
    names = sorted(tensors)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    files = {f"model-{i}-of-2.safetensors": half for i, half in enumerate(halves, 1)}
    for file, half in files.items():
        save_file({name: tensors[name] for name in half}, folder / file, {"format": "pt"})
    where = {name: file for file, half in files.items() for name in half}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": where})
    )
    return str(folder)
