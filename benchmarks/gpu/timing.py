"""How long work takes on a device, and what the device can do at best.

Knows: CUDA graphs and events, a copy, a product. Does not know: what is measured.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

COPY_BYTES = 2 << 30
PRODUCT_SIDE = 8192
REPEATS = 30


def seconds(work: Callable[[], Any], device: torch.device | str, *, captured: bool = True) -> float:
    """Median seconds of `work`: on CUDA of a captured graph's replays, or, not `captured`, of
    calls; on a CPU of one call."""
    if torch.device(device).type != "cuda":
        began_s = time.perf_counter()
        work()
        return time.perf_counter() - began_s
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())  # which has what `work` reads yet to make
    with torch.cuda.stream(side):
        for _ in range(2):
            work()  # compiles, and takes what is allocated once
    torch.cuda.synchronize()
    if captured:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        work = graph.replay
    for _ in range(3):
        work()
    times_s = []
    for _ in range(REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        times_s.append(begin.elapsed_time(end) / 1000)
    return statistics.median(times_s)


def ceilings(device: torch.device | str, dtype: torch.dtype) -> tuple[float, float]:
    """Bytes per second of a large copy (read and written) and FLOP per second of a product."""
    on_gpu = torch.device(device).type == "cuda"
    source = torch.empty(COPY_BYTES if on_gpu else 1 << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = seconds(lambda: target.copy_(source), device)
    side = PRODUCT_SIDE if on_gpu else 128
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product_s = seconds(lambda: torch.mm(a, b), device)
    return 2 * len(source) / copy_s, 2 * side**3 / product_s
