"""Where a rank's tensors come from: slices of safetensors files, or a model that is whole.

Knows: the two sources, MXFP4 as gpt-oss checkpoints store it, how to tell one checkpoint from
another. Does not know: who wants what.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from gpt_oss_server.engine.ranks.shard import Cut

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin")
# FP4 (E2M1) by its four bits, OCP Microscaling formats 1.0, table 5.
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_GROUP = 32
# Of each file, to tell it from another.
_SAMPLES, _SAMPLE_BYTES = 128, 4096
_EXPONENT_BIAS = 127


class Source(Protocol):
    def read(self, name: str, cut: Cut | None) -> torch.Tensor:
        """A tensor, or what `cut` leaves of it, on the host."""
        ...


class WholeModel:
    """A model that was loaded whole. Each tensor is let go of as soon as it is read."""

    def __init__(self, model: Any) -> None:
        self._tensors: dict[str, torch.Tensor] = dict(model.state_dict())
        for module in model.modules():
            module._parameters.clear()
            module._buffers.clear()

    def read(self, name: str, cut: Cut | None) -> torch.Tensor:
        whole = self._tensors.pop(name)
        # A copy, else the slice would keep all of it.
        return whole if cut is None else cut.of(whole).clone()


class Checkpoint:
    """The safetensors files of a folder. `names` maps a tensor's name to its file."""

    def __init__(self, folder: Path, names: Mapping[str, str]) -> None:
        self._folder = folder
        self._names = names
        self._files: dict[str, Any] = {}

    @classmethod
    def in_folder(cls, folder: Path) -> Checkpoint | None:
        """None where there is no such checkpoint."""
        from safetensors import safe_open

        if (folder / _INDEX).is_file():
            return cls(folder, json.loads((folder / _INDEX).read_text())["weight_map"])
        if (folder / _SINGLE).is_file():
            with safe_open(folder / _SINGLE, "pt") as file:
                return cls(folder, dict.fromkeys(file.keys(), _SINGLE))
        return None

    def supplies(self, shapes: Mapping[str, Sequence[int]]) -> bool:
        """Whether all these tensors are here, under these names and in these shapes."""
        return all(self._shape(name) == tuple(shape) for name, shape in shapes.items())

    def has(self, names: Iterable[str]) -> bool:
        """Whether all these tensors are here as they are, whatever their shapes."""
        return all(name in self._names for name in names)

    def file_of(self, name: str) -> Path:
        """Where a tensor is. Raises KeyError for one that is not."""
        return self._folder / self._names[name]

    def read(self, name: str, cut: Cut | None) -> torch.Tensor:
        if name not in self._names:
            return self._dequantized(name, cut)
        stored = self._slice(name)
        return stored[:] if cut is None else cut.of(stored)

    def _shape(self, name: str) -> tuple[int, ...] | None:
        if name in self._names:
            return tuple(self._slice(name).get_shape())
        if f"{name}_blocks" in self._names and f"{name}_scales" in self._names:
            experts, rows, groups, _ = self._slice(f"{name}_blocks").get_shape()
            return experts, groups * _GROUP, rows
        return None

    def _slice(self, name: str) -> Any:
        from safetensors import safe_open

        file = self._names[name]
        if file not in self._files:
            self._files[file] = safe_open(self._folder / file, "pt")
        return self._files[file].get_slice(name)

    def _dequantized(self, name: str, cut: Cut | None) -> torch.Tensor:
        """MXFP4 experts as bfloat16 [E, in, out], of which only the groups of 32 inputs that
        `cut` touches are read."""
        blocks, scales = self._slice(f"{name}_blocks"), self._slice(f"{name}_scales")
        if cut is None:
            return mxfp4(blocks[:], scales[:])
        if cut.dim != 1:
            stored = Cut(0 if cut.dim == 0 else 1, cut.ranges)
            return mxfp4(stored.of(blocks), stored.of(scales))
        parts = []
        for start, stop in cut.ranges:
            first = start // _GROUP
            groups = Cut(2, ((first, -(-stop // _GROUP)),))
            part = mxfp4(groups.of(blocks), groups.of(scales))
            parts.append(part[:, start - first * _GROUP : stop - first * _GROUP])
        return torch.cat(parts, 1)


def weights_digest(folder: Path) -> bytes:
    """Of the names and sizes of a folder's weight files, of their headers, and of samples all over
    them: tells one checkpoint from another without reading it."""
    digest = hashlib.sha256()
    for path in sorted(path for kind in _WEIGHTS for path in folder.glob(kind)):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little") if path.suffix == ".safetensors" else 0
            digest.update(file.read(min(header, 1 << 24)))
            stride = max(_SAMPLE_BYTES, (size - header) // _SAMPLES)
            for place in (*range(header, size, stride), max(0, size - _SAMPLE_BYTES)):
                file.seek(place)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.digest()


def mxfp4(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """blocks [E, out, groups, 16] of two numbers a byte, low half first, times two to the power
    of scales [E, out, groups] less 127: as bfloat16 [E, 32 groups, out], where all are exact."""
    values = torch.tensor(_FP4)
    experts, rows, groups, _ = blocks.shape
    result = torch.empty(experts, groups * _GROUP, rows, dtype=torch.bfloat16)
    for expert in range(experts):  # one at a time: the steps between take many times the space
        packed = blocks[expert]
        numbers = torch.stack((values[(packed & 15).long()], values[(packed >> 4).long()]), -1)
        exponents = scales[expert].to(torch.int32) - _EXPONENT_BIAS
        scaled = torch.ldexp(numbers.flatten(2), exponents.unsqueeze(-1))
        result[expert] = scaled.flatten(1).T
    return result
