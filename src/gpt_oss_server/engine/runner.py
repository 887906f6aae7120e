"""Runs steps: the model's forward pass over the paged cache, then sampling.

Knows: a forward pass, KV tensors, an attention backend, recorded steps. Does not know: queues or
processes, architectures.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from typing import Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from gpt_oss_server.engine.attention.interface import AttentionBackend, LayerKv, StepContext
from gpt_oss_server.engine.attention.reference import ReferenceBackend
from gpt_oss_server.engine.attention.tiled import TiledBackend
from gpt_oss_server.engine.forward import Forward
from gpt_oss_server.engine.graphs import DecodeGraphs
from gpt_oss_server.engine.kernels.usable import why_not
from gpt_oss_server.engine.sampler import Drawn, Sampled, Sampler
from gpt_oss_server.engine.sequence import Sequence
from gpt_oss_server.engine.shortage import give_back, shortage_of
from gpt_oss_server.engine.staging import Fetched, fetch
from gpt_oss_server.engine.step import IntArray, StepInput, StepLayout, to_device
from gpt_oss_server.errors import StartupError


class Runner(Protocol):
    """Steps in, sampled tokens out, in order. Called from one thread.

    `depth` is how many steps may be in flight at once: launched and not collected. Whatever a
    step writes, later ones may read or overwrite: every stage of it takes steps in order.

    With `lookahead` the oldest step may be sampled before it is collected, and one more launched
    in between, with tokens that only the device knows (`StepLayout.ahead_rows`): then it has work
    while the host looks at what was sampled and prepares the step after.

    A `launch` or `sample` that raises `Shortage` leaves nothing behind of the step that it was
    for, and the memory that it took is free again: the step may be launched anew, whole or in
    parts. What the sampler keeps of its sequences is to be dropped. Only a runner of depth 1 may
    raise it: where others compute the same step, a shortage is the end of all of them.
    """

    depth: int
    lookahead: bool
    sampler: Sampler

    def launch(self, layout: StepLayout) -> None:
        """Begin a step, behind those that are in flight. May raise Shortage."""
        ...

    def sample(self, sampling: Seq[Sequence | None]) -> None:
        """Begin to sample from the oldest step, `sampling` as for `collect`. May raise Shortage.
        Without `lookahead` all may be left to `collect`."""
        ...

    def collect(self, sampling: Seq[Sequence | None]) -> tuple[Sampled, frozenset[int]]:
        """The oldest step's outcome. `sampling` has one entry for each of its `sample_rows`: the
        sequence, as it was when the step was launched, whose next token is sampled from that row;
        None for one that has ended since. With `lookahead`, what `sample` was given.

        Returns what was sampled, for the entries that are not None, and which sequences of the
        batch (by index) wrote keys or values that are not finite: their KV is useless.
        """
        ...


NOTHING: Final = Sampled([], [], [])


class _Launched(NamedTuple):
    """A step that is computed, or queued to be. `rows` [S]: which rows of `logits` are those of
    its sample rows."""

    layout: StepLayout
    logits: torch.Tensor
    rows: IntArray
    written: torch.Tensor


class _Sampling(NamedTuple):
    """A step that is sampled from, or queued to be: nothing of it is on the host yet. `finite`
    says which tokens wrote finite keys and values."""

    drawn: Drawn | None
    finite: Fetched


def make_backend(
    name: str,
    block_size: int,
    devices: Iterable[torch.device],
    progress: Callable[[str], None] | None = None,
) -> AttentionBackend:
    """The backend by its setting's name, for layers on `devices`. `auto` is triton on CUDA, and
    tiled elsewhere or, with a line to `progress`, where triton cannot run.

    Raises:
        StartupError: an unknown name, or triton where it cannot run.
    """
    if name in ("auto", "triton"):
        unique = dict.fromkeys(devices)
        trouble = next((why for device in unique if (why := why_not(device)) is not None), None)
        on_gpu = all(device.type == "cuda" for device in unique)
        if trouble is None and (on_gpu or name == "triton"):
            from gpt_oss_server.engine.attention.triton import TritonBackend

            return TritonBackend()
        if name == "triton":
            raise StartupError(f"attention backend triton cannot be used: {trouble}")
        if on_gpu and progress is not None:
            progress(f"attention backend tiled, which is slower than triton: {trouble}")
    if name in ("auto", "tiled"):
        return TiledBackend(block_size)
    if name == "reference":
        return ReferenceBackend()
    raise StartupError(f"unknown attention backend {name!r}: use auto, triton, tiled or reference")


class ModelRunner:
    """A whole model in one process. On a GPU work is queued as soon as it is launched, and the
    host goes on; on a CPU each call takes as long as its work."""

    depth = 1

    def __init__(
        self,
        forward: Forward,
        layers: Seq[LayerKv],
        backend: AttentionBackend,
        sampler: Sampler,
        block_size: int,
        max_num_seqs: int,
        *,
        lookahead: bool = False,
        graphs: DecodeGraphs | None = None,
    ) -> None:
        self._model = forward
        self._device = layers[0].keys.device
        self._layers = layers
        self._backend = backend
        self._block_size = block_size
        self._graphs = graphs
        self._launched: deque[_Launched] = deque()
        self._sampling: _Sampling | None = None
        if graphs is not None:
            self._last = graphs.sampled
        else:
            self._last = torch.zeros(max_num_seqs, dtype=torch.int64, device=self._device)
        self.lookahead = lookahead
        self.sampler = sampler

    def launch(self, layout: StepLayout) -> None:
        try:
            launched = self._compute(layout)
        except (RuntimeError, MemoryError) as error:
            shortage = shortage_of(error)
            if shortage is None:
                raise
        else:
            self._launched.append(launched)
            return
        give_back(self._device)
        raise shortage

    def _compute(self, layout: StepLayout) -> _Launched:
        with torch.inference_mode():
            if self._graphs is not None and self._graphs.takes(layout):
                logits, written = self._graphs.run(layout)
                rows = layout.sample_rows
            else:
                step = to_device(layout, self._block_size, self._device, self._last)
                written = torch.zeros(len(step.token_ids), device=self._device)
                context = StepContext(self._layers, step, self._backend.plan(step), written)
                logits = self._model.forward(step, context)
                rows = np.arange(len(layout.sample_rows))
        return _Launched(layout, logits, rows, written)

    def sample(self, sampling: Seq[Sequence | None]) -> None:
        try:
            self._sampling = self._draw(self._launched[0], sampling)
        except (RuntimeError, MemoryError) as error:
            shortage = shortage_of(error)
            if shortage is None:
                raise
        else:
            return
        self._launched.popleft()
        give_back(self._device)
        raise shortage

    def _draw(self, launched: _Launched, sampling: Seq[Sequence | None]) -> _Sampling:
        live = [seq for seq in sampling if seq is not None]
        drawn = None
        with torch.inference_mode():
            if live:
                rows = launched.rows[[seq is not None for seq in sampling]]
                logits, picked = _picked(launched.logits, rows)
                drawn = self.sampler.draw(logits, live, picked)
                self._last[: len(live)].copy_(drawn.tokens)
            finite = fetch([torch.isfinite(launched.written)])
        return _Sampling(drawn, finite)

    def collect(self, sampling: Seq[Sequence | None]) -> tuple[Sampled, frozenset[int]]:
        if self._sampling is None:
            self.sample(sampling)
        launched, asked = self._launched.popleft(), self._sampling
        self._sampling = None
        if asked is None:
            raise RuntimeError("a step was collected that nobody sampled from")
        with torch.inference_mode():
            live = [seq for seq in sampling if seq is not None]
            sampled = NOTHING
            if asked.drawn is not None:
                sampled = self.sampler.finish(asked.drawn, live)
            [finite] = asked.finite.wait()
        start = launched.layout.host.query_start
        return sampled, _spoiled(start, finite[: start[-1]].numpy())


def _picked(logits: torch.Tensor, rows: IntArray) -> tuple[torch.Tensor, IntArray | None]:
    """The logits to sample from, and which of their rows where that must be said."""
    if rows[-1] == len(rows) - 1:  # they are in order: the first ones
        return logits[: len(rows)], None
    return logits, rows


def sample_live(sampler: Sampler, logits: torch.Tensor, sampling: Seq[Sequence | None]) -> Sampled:
    """Sample from the rows [S, vocab] of those that have not ended."""
    live = [seq for seq in sampling if seq is not None]
    return sampler.sample(live_rows(logits, sampling), live) if live else NOTHING


def live_rows(logits: torch.Tensor, sampling: Seq[Sequence | None]) -> torch.Tensor:
    """The rows of those that have not ended."""
    rows = [row for row, seq in enumerate(sampling) if seq is not None]
    return logits if len(rows) == len(sampling) else logits[rows]


def spoiled(step: StepInput, written: torch.Tensor) -> frozenset[int]:
    """The sequences of a step that wrote what is not finite, by `StepContext.written`."""
    return _spoiled(step.host.query_start, torch.isfinite(written).cpu().numpy())


def _spoiled(query_start: IntArray, finite: npt.NDArray[np.bool_]) -> frozenset[int]:
    if finite.all():
        return frozenset()
    tokens: IntArray = np.flatnonzero(~finite)
    return frozenset((np.searchsorted(query_start, tokens, side="right") - 1).tolist())
