"""Puts real tensors where a skeleton has none, one at a time, and says how far it is.

Knows: the order, that what was read must have the shape that is wanted. Does not know: where
tensors come from (`source`), how they were cut.

One tensor is on its way at a time: what this takes besides the tensors that stay is that one, on
the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch

from gpt_oss_server.engine.ranks.shard import Cut
from gpt_oss_server.engine.ranks.skeleton import Wanted
from gpt_oss_server.engine.ranks.source import Source

Progress = Callable[[str], None]
PARTS = 20
"""Progress is said so many times."""
WHOLE: Mapping[str, Cut] = MappingProxyType({})


def fill(
    needs: Sequence[Wanted],
    source: Source,
    device_of: Callable[[str], torch.device],
    progress: Progress,
    cuts: Mapping[str, Cut] = WHOLE,
) -> None:
    """Read each of `needs` (what `cuts` has of it; whole by default) onto the device that
    `device_of` has for its name, in the number type of the skeleton. Raises ValueError for a
    tensor of another shape."""
    total = wanted_bytes(needs)
    done = said = 0
    for need in needs:
        blank = need.blank
        tensor = source.read(need.name, cuts.get(need.name))
        if tensor.shape != blank.shape:
            raise ValueError(f"{need.name} is {tuple(tensor.shape)}, not {tuple(blank.shape)}")
        need.fill(tensor.to(device_of(need.name), blank.dtype).contiguous())
        done += _bytes(need)
        if done * PARTS // total > said:
            said = done * PARTS // total
            progress(f"loading weights: {100 * done // total} %")


def wanted_bytes(needs: Iterable[Wanted]) -> int:
    """What all of them take."""
    return sum(_bytes(need) for need in needs)


def place_buffers(modules: Iterable[Any], device: torch.device) -> None:
    """Put the buffers that a skeleton has already on the device."""
    for module in modules:
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = buffer.to(device)


def _bytes(need: Wanted) -> int:
    return need.blank.numel() * need.blank.element_size()
