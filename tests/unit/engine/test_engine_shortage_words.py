"""Which exceptions mean that there was no memory, and what is kept of them."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from gpt_oss_server.engine.shortage import Shortage, shortage_of


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of range"), False),
    ],
)
def test_only_a_want_of_memory_is_a_shortage(error: Exception, short: bool) -> None:
    """Everything else is somebody's fault, and not to be tried again."""
    assert (shortage_of(error) is not None) == short


class Held:
    """Something that a frame holds."""


def test_a_shortage_names_places_and_holds_none_of_their_frames() -> None:
    """The kind and the way it came, without its words; what was computed there can be freed."""
    seen: list[weakref.ref[Held]] = []

    def compute() -> None:
        tensor = Held()
        seen.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("secret")

    shortage = None
    try:
        compute()
    except torch.OutOfMemoryError as error:
        shortage = shortage_of(error)
    gc.collect()
    assert isinstance(shortage, Shortage)
    text = str(shortage)
    assert text.startswith("OutOfMemoryError at test_engine_shortage_words.py:")
    assert "compute" in text
    assert "secret" not in text
    assert seen[0]() is None
