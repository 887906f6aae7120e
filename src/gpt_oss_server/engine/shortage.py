"""A step that the device had no memory for, told apart from all else that may go wrong.

Knows: which exceptions mean that, how to give back what the allocator keeps. Does not know: steps,
who tries again.
"""

from __future__ import annotations

import gc

import torch

from gpt_oss_server.engine.ranks.faults import mishap, places

# cuBLAS says so when it cannot get its workspace.
_LIBRARY_WORDS = "alloc_failed"


class Shortage(Exception):
    """There was no memory for a step. Its text is the kind of what was raised and the places that
    passed it, innermost first: for a log, without a word of the exception's own."""


def shortage_of(error: Exception) -> Shortage | None:
    """`error` as a shortage, None where it is something else. What is returned does not refer to
    `error`: its traceback holds frames, and these the step's tensors."""
    short = isinstance(error, torch.OutOfMemoryError) or mishap(error) == "ran out of memory"
    if short or _LIBRARY_WORDS in str(error).lower():
        return Shortage(places(error))
    return None


def give_back(device: torch.device) -> None:
    """Free what nobody refers to, and hand what the allocator keeps for later back to the device:
    a smaller step may want other pieces. Call it when the exception is gone."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
