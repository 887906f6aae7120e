"""Small arrays on their way to a device, many as one copy, and results on their way back.

Knows: bytes, pinned memory, events. Does not know: what any of the numbers mean.

A copy from pageable memory makes the host wait for all that the device has been given to do, and
ten small copies take ten times the host's time of one. So what a step needs is laid side by side
in one pinned stretch of bytes and sent once; PyTorch's host allocator keeps that memory until the
copy is done. Results come back through pinned memory too, and an event says when they are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]
# Any dtype may begin here.
ALIGNMENT_BYTES = 16


@dataclass(frozen=True, slots=True)
class Parcel:
    """Where arrays stand in one stretch of `nbytes` bytes: `fields` are (dtype, shape, first
    byte) of each."""

    fields: tuple[tuple[np.dtype[Any], tuple[int, ...], int], ...]
    nbytes: int

    @classmethod
    def of(cls, arrays: Sequence[Array]) -> Parcel:
        fields = []
        at = 0
        for array in arrays:
            fields.append((array.dtype, array.shape, at))
            at += -(-array.nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        return cls(tuple(fields), at)

    def pack(self, arrays: Sequence[Array], *, pinned: bool) -> torch.Tensor:
        """The arrays' bytes [nbytes] uint8, on the host."""
        data = torch.empty(self.nbytes, dtype=torch.uint8, pin_memory=pinned)
        held = data.numpy()
        for array, (dtype, shape, begin) in zip(arrays, self.fields, strict=True):
            held[begin : begin + array.nbytes].view(dtype).reshape(shape)[...] = array
        return data

    def views(self, data: torch.Tensor) -> list[torch.Tensor]:
        """The arrays as tensors over `data` [nbytes or more] uint8, wherever that is."""
        tensors = []
        for dtype, shape, begin in self.fields:
            kind = torch.from_numpy(np.empty(0, dtype)).dtype
            end = begin + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            tensors.append(data[begin:end].view(kind).view(shape))
        return tensors


def send(arrays: Sequence[Array], device: torch.device) -> list[torch.Tensor]:
    """The arrays on `device`, by one copy that nobody waits for. On a CPU they are shared."""
    if device.type == "cpu":
        return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
    parcel = Parcel.of(arrays)
    data = parcel.pack(arrays, pinned=device.type == "cuda")
    return parcel.views(data.to(device, non_blocking=True))


def send_named(arrays: Mapping[str, Array], device: torch.device) -> dict[str, torch.Tensor]:
    """`send`, by name."""
    return dict(zip(arrays, send(list(arrays.values()), device), strict=True))


class Fetched:
    """Tensors on their way to the host."""

    def __init__(self, tensors: Sequence[torch.Tensor], event: torch.cuda.Event | None) -> None:
        self._tensors = list(tensors)
        self._event = event

    def wait(self) -> list[torch.Tensor]:
        """The tensors, on the host, as soon as the work that they come from is done."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        return self._tensors


def fetch(tensors: Sequence[torch.Tensor]) -> Fetched:
    """Begin to copy tensors of one device to the host, behind what that device has to do. On a
    CPU they are the tensors themselves: nobody may write to them before they are looked at."""
    if not tensors or tensors[0].device.type != "cuda":
        return Fetched(tensors, None)
    held = []
    for tensor in tensors:
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        held.append(pinned.copy_(tensor, non_blocking=True))
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(tensors[0].device))
    return Fetched(held, event)
