"""Paged attention by Triton kernels, on CUDA (or, slowly, in Triton's interpreter on a CPU).

Knows: which kernels a step needs, and that its plan is shared by the layers. Does not know: how
the kernels work (`engine/kernels/`). Requires Triton: ask `kernels.usable` before importing this.

A step's sequences with one query token go through the decode kernel, the others through the
prefill kernel; both write to one output. Of the host's layout only "are there any, and how many
tiles" is used. Everything else is found on the device, so that a plan made and used while a graph
is captured is right for other lengths and tables when it is replayed, as long as every sequence
keeps its one query token.
"""

from __future__ import annotations

import numpy as np
import torch

from gpt_oss_server.engine.attention.interface import LayerKv
from gpt_oss_server.engine.kernels.kv_write import write_kv
from gpt_oss_server.engine.kernels.paged_decode import paged_decode
from gpt_oss_server.engine.kernels.paged_merge import Partials, merge, partials_for
from gpt_oss_server.engine.kernels.paged_plan import Work, find_tiles, split
from gpt_oss_server.engine.kernels.paged_prefill import paged_prefill, queries_per_tile
from gpt_oss_server.engine.kernels.paged_problem import PagedQuery
from gpt_oss_server.engine.kernels.paged_tuning import (
    DecodeTuning,
    PrefillTuning,
    decode_tuning,
    prefill_tuning,
)
from gpt_oss_server.engine.kernels.usable import multiprocessors
from gpt_oss_server.engine.step import StepInput


class TritonPlan:
    """One step's work, made when the first layer of each kind asks for it."""

    def __init__(self, step: StepInput, backend: TritonBackend) -> None:
        self._step = step
        self._backend = backend
        counts = np.diff(step.host.query_start)
        self._wide_counts = counts[counts > 1]
        self._any_thin = len(self._wide_counts) < len(counts)
        self._tiles: dict[tuple[int, bool], Work] = {}
        self._works: dict[tuple[int, bool, int | None, int, int], Work] = {}
        self._scratch: dict[tuple[int, ...], Partials] = {}

    def write(
        self,
        layer: LayerKv,
        slots: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        written: torch.Tensor,
    ) -> None:
        with torch.cuda.device_of(key):  # type: ignore[no-untyped-call]
            write_kv(layer.keys, layer.values, slots, _rows(key), _rows(value), written)

    def attend(
        self,
        layer: LayerKv,
        query: torch.Tensor,
        *,
        scale: float,
        sinks: torch.Tensor | None,
        softcap: float | None,
    ) -> torch.Tensor:
        problem = PagedQuery(
            query=_rows(query),
            keys=layer.keys,
            values=layer.values,
            table=self._step.tables[layer.group],
            scale=scale,
            sinks=sinks,
            softcap=softcap,
            window=layer.window,
        )
        shape = (*query.shape[:2], layer.values.shape[3])
        out = torch.empty(shape, dtype=query.dtype, device=query.device)
        with torch.cuda.device_of(query):  # type: ignore[no-untyped-call]
            if self._any_thin:
                self._decode(problem, out)
            if len(self._wide_counts):
                self._prefill(problem, out)
        return out

    def _decode(self, problem: PagedQuery, out: torch.Tensor) -> None:
        tuning = self._backend.decode or decode_tuning(problem.keys, problem.values)
        target = _items_for(problem, tuning.items_per_multiprocessor)
        # A window of no more than a chunk is never split: no second launch.
        short = problem.window is not None and problem.window <= tuning.least_chunk
        work = self._work(1, True, problem.window, 0 if short else target, tuning)
        partials = self._partials(work, out)
        paged_decode(problem, work, partials, out, tuning)
        if partials is not None:
            merge(problem, work, partials, out)

    def _prefill(self, problem: PagedQuery, out: torch.Tensor) -> None:
        tuning = self._backend.prefill or prefill_tuning(problem.keys, problem.values)
        queries = queries_per_tile(problem.query.shape[1] // problem.keys.shape[2], tuning)
        target = _items_for(problem, tuning.items_per_multiprocessor)
        short = problem.window is not None and problem.window <= tuning.least_chunk
        # Enough tiles fill the device by themselves.
        enough = self._tile_count(queries) >= target
        target = 0 if short or enough else target
        work = self._work(queries, False, problem.window, target, tuning)
        partials = self._partials(work, out)
        paged_prefill(problem, work, partials, out, tuning)
        if partials is not None:
            merge(problem, work, partials, out)

    def _tile_count(self, queries: int) -> int:
        return int((-(-self._wide_counts // queries)).sum())

    def _work(
        self,
        queries: int,
        thin: bool,
        window: int | None,
        target: int,
        tuning: DecodeTuning | PrefillTuning,
    ) -> Work:
        """Tiles of `queries` tokens, split if `target` is not 0."""
        tiles = self._tiles.get((queries, thin))
        if tiles is None:
            tiles = self._tiles[queries, thin] = find_tiles(
                self._step.query_start,
                self._step.seq_lens,
                queries_per_tile=queries,
                thin=thin,
                capacity=len(self._step.seq_lens) if thin else self._tile_count(queries),
            )
        if target == 0:
            return tiles
        key = (queries, thin, window, target, tuning.tile)
        work = self._works.get(key)
        if work is None:
            work = self._works[key] = split(
                tiles,
                window=window,
                target=target,
                least_chunk=tuning.least_chunk,
                kv_tile=tuning.tile,
            )
        return work

    def _partials(self, work: Work, out: torch.Tensor) -> Partials | None:
        """Scratch for split work, shared by the layers: they run one after the other."""
        if work.units is None:
            return None
        key = (len(work.items), work.queries_per_tile, *out.shape[1:])
        found = self._scratch.get(key)
        if found is None:
            found = self._scratch[key] = partials_for(work, *out.shape[1:])
        return found


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with a contiguous last dimension, itself where it has one."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _items_for(problem: PagedQuery, per_multiprocessor: int) -> int:
    """How many items per KV head fill the device."""
    programs = multiprocessors(problem.keys.device) * per_multiprocessor
    return max(1, programs // problem.keys.shape[2])


class TritonBackend:
    """See the module. `decode` and `prefill`: tile sizes instead of the table's."""

    name = "triton"
    capturable = True

    def __init__(
        self, decode: DecodeTuning | None = None, prefill: PrefillTuning | None = None
    ) -> None:
        self.decode = decode
        self.prefill = prefill

    def plan(self, step: StepInput) -> TritonPlan:
        return TritonPlan(step, self)
