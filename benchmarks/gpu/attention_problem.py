"""Attention as gpt-oss-20b does it, in shuffled blocks, with the answer and the work known.

Knows: shapes, cases, the reference. Does not know: kernels, timing.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from gpt_oss_server.engine.attention.interface import AttentionBackend, LayerKv, StepPlan
from gpt_oss_server.engine.attention.reference import ReferenceBackend
from gpt_oss_server.engine.step import HostLayout, StepInput

# (norm of the difference) / (norm of the reference); products of bfloat16 numbers.
LARGEST_ERROR = 1e-2
CACHE_BYTES = 256 << 20  # more than the L2 of any GPU: pools rotate over at least this
REFERENCE_QUERIES = 256


@dataclass(frozen=True)
class Shape:
    """One model's attention, and where it runs."""

    heads: int
    kv_heads: int
    dim: int
    block: int
    dtype: torch.dtype
    device: torch.device
    layers: int


FULL = Shape(64, 8, 64, 16, torch.bfloat16, torch.device("cuda"), 12)
TINY = Shape(4, 2, 16, 16, torch.float32, torch.device("cpu"), 2)


@dataclass(frozen=True)
class Case:
    """`seqs` are (tokens already computed, tokens of this step)."""

    name: str
    seqs: tuple[tuple[int, int], ...]
    window: int | None = None

    @property
    def decode(self) -> bool:
        return all(new == 1 for _, new in self.seqs)


def cases() -> list[Case]:
    def same(batch: int, context: int) -> tuple[tuple[int, int], ...]:
        return ((context - 1, 1),) * batch

    ragged = ((65_535, 1), *same(63, 512))
    return [
        Case("decode 1 x 1k", same(1, 1024)),
        Case("decode 1 x 8k", same(1, 8192)),
        Case("decode 1 x 128k", same(1, 131_072)),
        Case("decode 8 x 8k", same(8, 8192)),
        Case("decode 64 x 2k", same(64, 2048)),
        Case("decode 64 x 8k", same(64, 8192)),
        Case("decode 256 x 1k", same(256, 1024)),
        Case("decode 1 x 64k beside 63 x 512", ragged),
        Case("decode 1 x 8k, window 128", same(1, 8192), 128),
        Case("decode 64 x 8k, window 128", same(64, 8192), 128),
        Case("prefill 8k", ((0, 8192),)),
        Case("prefill 8k, window 128", ((0, 8192),), 128),
        Case("prefill 2k behind 32k", ((32_768, 2048),)),
        Case("prefill 32 behind 64k", ((65_536, 32),)),
        Case("prefill 16 x 512", ((0, 512),) * 16),
        Case("prefill 2k beside 32 x decode 4k", ((0, 2048), *same(32, 4096))),
    ]


def tiny_cases() -> list[Case]:
    return [
        Case("decode 3 ragged", ((120, 1), (3, 1), (40, 1))),
        Case("decode 2, window 20", ((99, 1), (7, 1)), 20),
        Case("prefill 70 beside decode", ((0, 70), (50, 1))),
        Case("prefill 9 behind 90, window 20", ((90, 9),), 20),
    ]


class Problem:
    """A case's step, and as many layers' pools as caches need to be of no use."""

    def __init__(self, case: Case, shape: Shape, seed: int) -> None:
        self.case, self.shape = case, shape
        random = torch.Generator(shape.device).manual_seed(seed)
        lens = np.array([computed + new for computed, new in case.seqs], dtype=np.int64)
        counts = np.array([new for _, new in case.seqs], dtype=np.int64)
        start = np.concatenate([[0], np.cumsum(counts)])
        held = -(-lens // shape.block)
        blocks = int(held.sum())
        order = np.random.default_rng(seed).permutation(blocks).astype(np.int32)
        table = np.zeros((len(lens), int(held.max())), dtype=np.int32)
        for row, (count, end) in enumerate(zip(held, np.cumsum(held), strict=True)):
            table[row, :count] = order[end - count : end]
        size = (blocks, shape.block, shape.kv_heads, shape.dim)

        def numbers(*dims: int) -> torch.Tensor:
            return torch.randn(dims, generator=random, device=shape.device, dtype=shape.dtype)

        pool_bytes = 2 * blocks * shape.block * shape.kv_heads * shape.dim * shape.dtype.itemsize
        pools = min(shape.layers, max(1, -(-CACHE_BYTES // pool_bytes)))
        self.layers = [
            LayerKv(0, case.window, numbers(*size), numbers(*size)) for _ in range(pools)
        ]
        self.query = numbers(int(start[-1]), shape.heads, shape.dim)
        self.sinks = numbers(shape.heads)
        self.step = self._step(start, lens, table)

    def _step(self, start: Any, lens: Any, table: Any) -> StepInput:
        device = self.shape.device

        def put(array: Any) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        nothing = torch.zeros(int(start[-1]), dtype=torch.long, device=device)
        return StepInput(
            token_ids=nothing,
            positions=nothing,
            slots=(nothing,),
            sample_rows=nothing,
            query_start=put(start.astype(np.int32)),
            seq_lens=put(lens.astype(np.int32)),
            tables=(put(table),),
            host=HostLayout(start, lens, (table,)),
        )

    def attend(self, backend: AttentionBackend, layers: int) -> torch.Tensor:
        """One plan and so many layers, taking the pools in turn; the last layer's result."""
        plan = backend.plan(self.step)
        for index in range(layers):
            out = self._attend(plan, index % len(self.layers), self.query)
        return out

    def _attend(self, plan: StepPlan, layer: int, query: torch.Tensor) -> torch.Tensor:
        return plan.attend(
            self.layers[layer],
            query,
            scale=self.shape.dim**-0.5,
            sinks=self.sinks,
            softcap=None,
        )

    def error(self, backend: AttentionBackend) -> float:
        """Of the first layer, against the reference in float32. Raises RuntimeError for too much,
        NaN included."""
        got = self.attend(backend, 1).float()
        wanted = self.reference().float()
        found = float((got - wanted).norm() / wanted.norm())
        if not found <= LARGEST_ERROR:
            raise RuntimeError(f"{self.case.name}: relative error {found}")
        return found

    def reference(self) -> torch.Tensor:
        """The first layer's result by the reference backend, so few queries at a time that its
        scores fit in memory."""
        host, parts = self.step.host, []
        for row, (computed, new) in enumerate(self.case.seqs):
            first = int(host.query_start[row])
            for begin in range(0, new, REFERENCE_QUERIES):
                end = min(begin + REFERENCE_QUERIES, new)
                part = HostLayout(
                    np.array([0, end - begin]),
                    np.array([computed + end]),
                    (host.tables[0][row : row + 1],),
                )
                plan = ReferenceBackend().plan(replace(self.step, host=part))
                parts.append(self._attend(plan, 0, self.query[first + begin : first + end]))
        return torch.cat(parts)

    def pairs(self) -> int:
        """Query tokens times the keys that each sees."""
        window = self.case.window or sys.maxsize
        return sum(
            int(np.minimum(np.arange(computed, computed + new) + 1, window).sum())
            for computed, new in self.case.seqs
        )

    def least_bytes(self) -> int:
        """Every key and value that is seen once, queries in, results out."""
        window = self.case.window or sys.maxsize
        keys = sum(min(computed + new, window + new - 1) for computed, new in self.case.seqs)
        row = self.shape.dim * self.shape.dtype.itemsize
        return 2 * row * (keys * self.shape.kv_heads + len(self.query) * self.shape.heads)

    def flop(self) -> int:
        return 4 * self.pairs() * self.shape.heads * self.shape.dim
