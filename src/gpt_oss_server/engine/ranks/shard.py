"""What one tensor-parallel rank keeps of a tensor, as index ranges along one dimension.

Knows: shapes, ranks, heads. Does not know: modules, files, devices. Pure but for `Cut.of`, which
takes the ranges out of a tensor or of anything that is indexed like one (a slice of a
safetensors file, which then reads no more than that).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from gpt_oss_server.errors import StartupError
from gpt_oss_server.memory.weight_parts import MXFP4_GROUP

Shape = Sequence[int]
ExpertSplit = Literal["width", "count"]
"""`width`: each rank has a slice of every expert. `count`: each has some experts whole."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The ranges [start, stop) along `dim`, one after the other, then `pad` rows of zeros.
    `blank`: the whole shape, all zeros (what another rank adds)."""

    dim: int = 0
    ranges: tuple[tuple[int, int], ...] = ()
    pad: int = 0
    blank: bool = False

    def shape(self, whole: Shape) -> tuple[int, ...]:
        """The local shape of a tensor of shape `whole`."""
        if self.blank:
            return tuple(whole)
        size = sum(stop - start for start, stop in self.ranges) + self.pad
        return (*whole[: self.dim], size, *whole[self.dim + 1 :])

    def of(self, whole: Any) -> torch.Tensor:
        """The local part of a tensor, or of a safetensors slice, as a tensor of its own."""
        if self.blank:
            return torch.zeros_like(whole[:])
        before = (slice(None),) * self.dim
        parts: list[torch.Tensor] = [
            whole[(*before, slice(start, stop))] for start, stop in self.ranges
        ]
        if self.pad:
            shape = list(parts[0].shape)
            shape[self.dim] = self.pad
            parts.append(parts[0].new_zeros(shape))
        return torch.cat(parts, self.dim) if len(parts) > 1 else parts[0]


BLANK = Cut(blank=True)


def even(size: int, dim: int, tp_rank: int, tp: int, what: str) -> Cut:
    """An equal, contiguous share along `dim` of `size`. Raises StartupError if there is none;
    `what` names the size in it."""
    if size % tp:
        raise StartupError(f"--gpu-mode tensor: {size} {what} do not divide over {tp} GPUs")
    each = size // tp
    return Cut(dim, ((tp_rank * each, (tp_rank + 1) * each),))


def halves(size: int, dim: int, tp_rank: int, tp: int, what: str) -> Cut:
    """An equal share of each half of `size`: gate above up, concatenated."""
    (start, stop) = even(size // 2, dim, tp_rank, tp, what).ranges[0]
    return Cut(dim, ((start, stop), (size // 2 + start, size // 2 + stop)))


def pairs(size: int, dim: int, tp_rank: int, tp: int, what: str) -> Cut:
    """An equal share of the pairs of `size`: gate and up, interleaved."""
    (start, stop) = even(size // 2, dim, tp_rank, tp, what).ranges[0]
    return Cut(dim, ((2 * start, 2 * stop),))


def shares(count: int, dim: int, tp_rank: int, tp: int, unit: int = 1) -> Cut:
    """A share along `dim` of `count` runs of `unit`, none of which is cut. As many on each rank:
    where they do not divide, some ranks have a run of zeros last. At least `tp` runs."""
    start, stop = tp_rank * count // tp, (tp_rank + 1) * count // tp
    pad = -(-count // tp) - (stop - start)
    return Cut(dim, ((start * unit, stop * unit),), pad * unit)


def by_heads(rows: int, head_dim: int, tp_rank: int, tp: int) -> Cut:
    """Rows of this rank's attention heads."""
    heads = rows // head_dim
    (start, stop) = even(heads, 0, tp_rank, tp, "attention heads").ranges[0]
    return Cut(0, ((start * head_dim, stop * head_dim),))


def by_kv_heads(rows: int, head_dim: int, tp_rank: int, tp: int) -> Cut:
    """Rows of this rank's key heads: an equal share, or, where ranks outnumber heads, the one
    that its queries attend with. A head is never cut."""
    heads = rows // head_dim
    if tp > heads and tp % heads == 0:
        start = tp_rank * heads // tp
        return Cut(0, ((start * head_dim, (start + 1) * head_dim),))
    if heads % tp:
        raise StartupError(
            f"--gpu-mode tensor: {heads} key heads can neither be divided over {tp} GPUs nor "
            f"repeated on them: use a divisor or a multiple of {heads}"
        )
    (start, stop) = even(heads, 0, tp_rank, tp, "key heads").ranges[0]
    return Cut(0, ((start * head_dim, stop * head_dim),))


def by_vocabulary(rows: int, tp_rank: int, tp: int) -> Cut:
    """Rows of this rank's part of the vocabulary, as many on each rank: the last parts are filled
    up with zeros where `rows` does not divide."""
    each = -(-rows // tp)
    start, stop = min(rows, tp_rank * each), min(rows, (tp_rank + 1) * each)
    return Cut(0, ((start, stop),), pad=each - (stop - start))


def mxfp4_cuts(
    shapes: dict[str, Shape], *, split: ExpertSplit, tp_rank: int, tp: int
) -> dict[str, Cut]:
    """How each tensor of `engine.experts.stored.Mxfp4Experts` is cut, whose names and shapes
    `shapes` has. By width a rank has whole groups of 32 columns: their rows of gate and up, which
    are interleaved, and the groups of the second product's inputs. A group of zeros adds nothing
    to any sum. The output bias is on the first rank only. Raises StartupError for fewer groups
    than ranks."""
    if split == "count":
        cut = even(shapes["down_proj_bias"][0], 0, tp_rank, tp, "experts")
        return dict.fromkeys(shapes, cut)
    groups = shapes["down_proj_scales"][2]
    if groups < tp:
        raise StartupError(
            f"--gpu-mode tensor: {groups} groups of {MXFP4_GROUP} columns of an expert do not "
            f"divide over {tp} GPUs: use --experts transformers, which makes them wide"
        )
    cuts = {}
    for name, shape in shapes.items():
        if name == "down_proj_bias":
            cuts[name] = BLANK if tp_rank else Cut(0, ((0, shape[0]),))
        elif name.startswith("down_proj"):
            cuts[name] = shares(groups, 2, tp_rank, tp)
        else:
            cuts[name] = shares(groups, 1, tp_rank, tp, 2 * MXFP4_GROUP)
    return cuts


def expert_cuts(
    shapes: dict[str, Shape],
    *,
    transposed: bool,
    concatenated: bool,
    split: ExpertSplit,
    tp_rank: int,
    tp: int,
) -> dict[str, Cut]:
    """How each tensor of a module with stacked experts is cut.

    `shapes` names what is there of `gate_up_proj` or `up_proj` ([E, 2I or I, H], `transposed`:
    [E, H, 2I or I]), `down_proj` ([E, H, I], transposed [E, I, H]) and their `…_bias` ([E, 2I],
    [E, H]). Gate and up are `concatenated` or interleaved. By width the output bias is on the
    first rank only.
    """
    if split == "count":
        experts = shapes["down_proj"][0]
        cut = even(experts, 0, tp_rank, tp, "experts")
        return dict.fromkeys(shapes, cut)
    gated = halves if concatenated else pairs
    outer, inner = (2, 1) if transposed else (1, 2)
    cuts = {}
    for name, shape in shapes.items():
        what = "columns of an expert"
        if name == "down_proj":
            cuts[name] = even(shape[inner], inner, tp_rank, tp, what)
        elif name == "down_proj_bias":
            cuts[name] = BLANK if tp_rank else Cut(0, ((0, shape[0]),))
        else:
            dim = 1 if name.endswith("_bias") else outer
            rule = gated if name.startswith("gate_up") else even
            cuts[name] = rule(shape[dim], dim, tp_rank, tp, what)
    return cuts
