"""Live bytes on a CPU, counted storage by storage: what a GPU's allocator counts of itself.

Knows: PyTorch's dispatch, weak references. Does not know: what is measured. Importing this imports
torch. What kernels of Triton's interpreter hold inside is numpy's and not seen, as on a GPU what is
in registers and shared memory is not; what they are given and give is.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gpt_oss_server.engine.meter import Peak


class PeakBytes(TorchDispatchMode):
    """The most bytes that tensors made inside it held at once (`peak`), and what they hold now
    (`held`); what was there before, and views of it, are left out."""

    def __init__(self, standing: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self._standing = {tensor.untyped_storage()._cdata for tensor in standing}
        self._live: dict[int, int] = {}
        self.peak = 0
        self.held = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        given = {storage._cdata for storage in _storages((args, kwargs))}
        result = function(*args, **(kwargs or {}))
        for storage in _storages(result):
            self._note(storage, given)
        self.peak = max(self.peak, self.held)
        return result

    def _note(self, storage: Any, given: set[int]) -> None:
        key = storage._cdata
        # What an operator was given and returns, it did not make.
        if key in self._live or key in self._standing or key in given:
            return
        self._live[key] = storage.nbytes()
        self.held += storage.nbytes()
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.held -= self._live.pop(key, 0)


def _storages(tree: Any) -> list[Any]:
    """Of all tensors in there that have one in memory: oneDNN's own and meta tensors do not."""
    return [
        tensor.untyped_storage()
        for tensor in tree_leaves(tree)
        if isinstance(tensor, torch.Tensor) and not tensor.is_mkldnn and not tensor.is_meta
    ]


class StorageMeter:
    """A `Meter` of a CPU, without a driver and fragments: what is allocated is what is taken."""

    def peak(self, work: Callable[[], None]) -> Peak:
        with PeakBytes() as measured:
            work()
        return Peak(measured.peak, measured.peak)

    def taken(self, work: Callable[[], None]) -> int:
        with PeakBytes() as measured:
            work()
        return measured.held
