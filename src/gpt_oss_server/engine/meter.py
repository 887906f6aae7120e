"""What work takes of a device's memory, as its allocator and its driver count it.

Knows: PyTorch's accounts of a CUDA device. Does not know: what the work is, or what is to be done
with the figures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch

from gpt_oss_server.engine.shortage import give_back


class Peak(NamedTuple):
    """The most that work held beyond what was there before. `allocated_bytes` are those of its
    tensors; `reserved_bytes` those that the allocator took from the device for them, with what it
    could not use of its pieces."""

    allocated_bytes: int
    reserved_bytes: int


class Meter(Protocol):
    """Measures one device. One thread at a time, with nobody else at work on that device."""

    def peak(self, work: Callable[[], None]) -> Peak:
        """The most that `work` held at once. What it leaves behind is not told apart."""
        ...

    def taken(self, work: Callable[[], None]) -> int:
        """Bytes that are gone from the device after `work`: by whomever, for whatever."""
        ...


class CudaMeter:
    """A CUDA device, by `torch.cuda.memory_stats` and by what the driver says is free."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def peak(self, work: Callable[[], None]) -> Peak:
        device = self._device
        self._settle()
        torch.cuda.reset_peak_memory_stats(device)
        allocated = torch.cuda.memory_allocated(device)
        reserved = torch.cuda.memory_reserved(device)
        work()
        torch.cuda.synchronize(device)
        peak = Peak(
            torch.cuda.max_memory_allocated(device) - allocated,
            torch.cuda.max_memory_reserved(device) - reserved,
        )
        self._settle()
        return peak

    def taken(self, work: Callable[[], None]) -> int:
        self._settle()
        free, _ = torch.cuda.mem_get_info(self._device)
        work()
        self._settle()
        return free - torch.cuda.mem_get_info(self._device)[0]

    def _settle(self) -> None:
        torch.cuda.synchronize(self._device)
        with torch.cuda.device(self._device):
            give_back(self._device)


def make_meter(device: torch.device) -> Meter | None:
    """None for a device whose memory is not ours to count: a CPU's."""
    return CudaMeter(device) if device.type == "cuda" else None
