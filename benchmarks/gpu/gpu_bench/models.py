"""Random models of the shape, made where they are measured.

Knows: config files, the names and layout of published gpt-oss checkpoints. Does not know: engines.

A bfloat16 model is a config and a seed: whoever loads it draws the same weights on the same kind of
device. An MXFP4 model is on disk as published ones are: experts in blocks and scales, the rest
bfloat16, eight layers a file. One file's tensors are in memory at a time.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from gpu_bench.settings import Settings
from gpu_bench.shapes import SEED

LAYERS_A_FILE = 8
SPREAD = 0.02
# E2M1's sixteen numbers have a root mean square of 2.93: times 2^(s - 127) from 0.012 to 0.046.
SCALES = (119, 122)
INDEX = "model.safetensors.index.json"


def write_config(settings: Settings, form: str) -> Path:
    folder = settings.model(form)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings.config(form), indent=1))
    return folder


def ensure(settings: Settings, form: str) -> dict[str, Any]:
    """What the form needs in its folder, unless it is there: bytes of weights, and seconds that it
    took. Raises RuntimeError where the disk is too small."""
    began_s = time.perf_counter()
    folder = write_config(settings, form)
    written, there = 0, (folder / INDEX).is_file()
    if there:
        written = json.loads((folder / INDEX).read_text())["metadata"]["total_size"]
    elif form == "mxfp4":
        written = _write_mxfp4(settings, folder)
    seconds = time.perf_counter() - began_s
    return {"bytes": written, "was_there": there, "seconds": round(seconds, 1)}


def _write_mxfp4(settings: Settings, folder: Path) -> int:
    from gpt_oss_server.memory.weights import weights_of

    config = settings.config("mxfp4")
    needed, free = weights_of(config).total_bytes, shutil.disk_usage(folder).free
    if free < 1.05 * needed:
        raise RuntimeError(
            f"the model takes {needed / 2**30:.1f} GiB and {folder} has {free / 2**30:.1f} free: "
            "give --work another folder"
        )
    draw = _Draw(torch.device(settings.device), getattr(torch, settings.dtype))
    count = config["num_hidden_layers"]
    parts: list[Callable[[], dict[str, torch.Tensor]]] = []
    for begin in range(0, count, LAYERS_A_FILE):
        layers = range(begin, min(begin + LAYERS_A_FILE, count))
        parts.append(lambda layers=layers: _layers(config, draw, layers))
    parts.append(lambda: _beside(config, draw))
    where: dict[str, str] = {}
    total = 0
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        tensors = part()
        save_file(tensors, folder / file, {"format": "pt"})
        where |= dict.fromkeys(tensors, file)
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(index))
    return total


class _Draw:
    """Random tensors, drawn on the device and handed out on the host."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._random = torch.Generator(device).manual_seed(SEED)

    def numbers(self, *shape: int) -> torch.Tensor:
        made = torch.empty(shape, dtype=self._dtype, device=self._device)
        return made.normal_(std=SPREAD, generator=self._random).cpu()

    def ones(self, *shape: int) -> torch.Tensor:
        return torch.ones(shape, dtype=self._dtype)

    def bytes(self, low: int, high: int, *shape: int) -> torch.Tensor:
        made = torch.empty(shape, dtype=torch.uint8, device=self._device)
        return made.random_(low, high, generator=self._random).cpu()


def _layers(config: dict[str, Any], draw: _Draw, layers: range) -> dict[str, torch.Tensor]:
    hidden, dim = config["hidden_size"], config["head_dim"]
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    experts, width = config["num_local_experts"], config["intermediate_size"]
    tensors: dict[str, torch.Tensor] = {}
    for index in layers:
        at = f"model.layers.{index}."
        sizes = {"q": (heads * dim, hidden), "k": (kv * dim, hidden), "v": (kv * dim, hidden)}
        for name, (rows, columns) in {**sizes, "o": (hidden, heads * dim)}.items():
            tensors[f"{at}self_attn.{name}_proj.weight"] = draw.numbers(rows, columns)
            tensors[f"{at}self_attn.{name}_proj.bias"] = draw.numbers(rows)
        tensors[f"{at}self_attn.sinks"] = draw.numbers(heads)
        for name in ("input", "post_attention"):
            tensors[f"{at}{name}_layernorm.weight"] = draw.ones(hidden)
        tensors[f"{at}mlp.router.weight"] = draw.numbers(experts, hidden)
        tensors[f"{at}mlp.router.bias"] = draw.numbers(experts)
        for name, outputs, inputs in (
            ("gate_up_proj", 2 * width, hidden),
            ("down_proj", hidden, width),
        ):
            groups = (experts, outputs, inputs // 32)
            tensors[f"{at}mlp.experts.{name}_blocks"] = draw.bytes(0, 256, *groups, 16)
            tensors[f"{at}mlp.experts.{name}_scales"] = draw.bytes(*SCALES, *groups)
            tensors[f"{at}mlp.experts.{name}_bias"] = draw.numbers(experts, outputs)
    return tensors


def _beside(config: dict[str, Any], draw: _Draw) -> dict[str, torch.Tensor]:
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    return {
        "model.embed_tokens.weight": draw.numbers(vocab, hidden),
        "model.norm.weight": draw.ones(hidden),
        "lm_head.weight": draw.numbers(vocab, hidden),
    }
