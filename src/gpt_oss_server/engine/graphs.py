"""Decode steps recorded once and done again: CUDA graphs over a ladder of batch sizes.

Knows: which steps can be replayed, the fixed tensors that they read and write, padding. Does not
know: what a forward pass does, how sampling works, who schedules.

A decode step of gpt-oss is some three hundred launches that take the host longer to give than the
device to do. Recorded, they are one. A recorded step reads the same memory every time, so a step's
numbers are copied into fixed tensors first: one copy from pinned memory, and two on the device that
put them where they belong. Batches are padded to the next size of the ladder: rows beyond the
batch see no keys, write to no slot, and no expert is computed for them.

All sizes share one pool of memory, largest first, so that the smaller ones fit into what it took;
logits and flags are in tensors that all sizes share, valid until the next replay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch

from gpt_oss_server.engine.attention.interface import AttentionBackend, LayerKv, StepContext
from gpt_oss_server.engine.forward import Forward
from gpt_oss_server.engine.staging import ALIGNMENT_BYTES, Array, Parcel
from gpt_oss_server.engine.step import HostLayout, StepInput, StepLayout, positions_and_slots
from gpt_oss_server.errors import StartupError

# A larger batch keeps the device busy without.
MOST_SEQUENCES = 512
WARM_UPS = 2
# For one size's nodes and their arguments, some 300 launches: reckoned, not measured.
DRIVER_BYTES = 16 << 20
# Recordings are made on a stream of their own, for which cuBLAS and cuBLASLt take workspaces: up to
# 32 MiB each on Hopper, less on others. Reckoned, not measured.
LIBRARY_BYTES = 64 << 20
_NO_SLOT = -1
_KNOWN = -1


class Recording(Protocol):
    """Work that can be done again."""

    def replay(self) -> None: ...


class Recorder(Protocol):
    """Makes recordings. `work` reads and writes tensors that stay where they are, gives the
    device nothing that depends on their contents, and may be called several times for it."""

    def record(self, work: Callable[[], None]) -> Recording: ...


class CudaRecorder:
    """CUDA graphs, in one memory pool."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], None]) -> Recording:
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS):  # kernels are compiled, libraries take their workspaces
                    work()
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            # Other threads fill masks meanwhile; what they do is not to be recorded.
            mode = "thread_local"
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode=mode):
                work()
        return graph


class _Again(NamedTuple):
    work: Callable[[], None]

    def replay(self) -> None:
        self.work()


class RerunRecorder:
    """Does the work itself again: for devices without graphs, where that shows the same."""

    def record(self, work: Callable[[], None]) -> Recording:
        work()
        return _Again(work)


def make_recorder(device: torch.device) -> Recorder:
    """CUDA graphs on CUDA."""
    return CudaRecorder(device) if device.type == "cuda" else RerunRecorder()


class Replayed(NamedTuple):
    """A replayed step of n sequences: `logits` [n or more, vocab] by sequence and `written` [n or
    more] as in `StepContext`. Both are overwritten by the next replay."""

    logits: torch.Tensor
    written: torch.Tensor


@dataclass(frozen=True, slots=True)
class Room:
    """What steps may need: sequences in a step, blocks of the longest, KV groups."""

    max_num_seqs: int
    columns: int
    groups: int
    block_size: int


@dataclass(frozen=True, slots=True)
class _Size:
    """One size's place in the fixed tensors. `head` says where what is sent stands in them."""

    head: Parcel
    step: StepInput
    ahead_from: torch.Tensor


def predicted_bytes(room: Room, vocab_size: int, dtype_bytes: int, decode_bytes: int) -> int:
    """What recordings will take of the device, at most: their fixed tensors, `decode_bytes` for
    the largest decode step (smaller ones fit into what it took), libraries' workspaces and the
    driver's own. For a pool that is allocated before them: they have its addresses in them."""
    sizes = ladder(room.max_num_seqs)
    most = sizes[-1]
    arrays = 5 + room.groups  # ids, ids to come, positions, starts, lengths; slots
    fixed = (
        most * vocab_size * dtype_bytes
        + room.groups * most * room.columns * 4
        + most * (4 + 8 * arrays)
        + ALIGNMENT_BYTES * (arrays + 1)
        + 8 * room.max_num_seqs
    )
    return fixed + decode_bytes + LIBRARY_BYTES + len(sizes) * DRIVER_BYTES


def ladder(max_num_seqs: int) -> list[int]:
    """1, 2, 4, 8, … and the largest batch itself."""
    most = min(max_num_seqs, MOST_SEQUENCES)
    sizes = [1]
    while 2 * sizes[-1] < most:
        sizes.append(2 * sizes[-1])
    return sizes if most == 1 else [*sizes, most]


class DecodeGraphs:
    """Recordings of a model's decode steps. `sampled` [max_num_seqs] int64 is where the token ids
    are that were sampled last, for those that the host does not know yet."""

    def __init__(
        self,
        forward: Forward,
        layers: Sequence[LayerKv],
        backend: AttentionBackend,
        room: Room,
        recorder: Recorder,
        progress: Callable[[str], None],
    ) -> None:
        """Record every size. Raises StartupError where that fails."""
        device = layers[0].keys.device
        self._forward = forward
        self._layers = layers
        self._backend = backend
        self._room = room
        self._device = device
        self._ladder = ladder(room.max_num_seqs)
        most = self._ladder[-1]
        self.sampled = torch.zeros(room.max_num_seqs, dtype=torch.int64, device=device)
        shape = (room.groups, most, room.columns)
        self._tables = torch.zeros(shape, dtype=torch.int32, device=device)
        self._written = torch.zeros(most, device=device)
        largest = Parcel.of(self._blank(most))
        self._head = torch.zeros(largest.nbytes, dtype=torch.uint8, device=device)
        self._sizes = {size: self._placed(size) for size in self._ladder}
        self._recordings: dict[int, Recording] = {}
        try:
            with torch.inference_mode():
                self._record(recorder, progress)
        except RuntimeError as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise StartupError(
                f"cannot capture decode steps: {reason[0][:300]}; --eager goes without"
            ) from error

    def takes(self, layout: StepLayout) -> bool:
        """Whether a step can be replayed: a token for each sequence, and not too many."""
        count = len(layout.host.seq_lens)
        return len(layout.token_ids) == count <= self._ladder[-1]

    def run(self, layout: StepLayout) -> Replayed:
        """Compute a step that `takes`."""
        rows = len(layout.token_ids)
        size = next(size for size in self._ladder if size >= rows)
        self._load(size, layout)
        self._recordings[size].replay()
        return Replayed(self._logits, self._written)

    def _record(self, recorder: Recorder, progress: Callable[[str], None]) -> None:
        for done, size in enumerate(reversed(self._ladder)):
            progress(f"capturing decode steps: {done + 1} of {len(self._ladder)} (batch {size})")
            self._head.zero_()
            parcel = self._sizes[size].head
            blank = parcel.pack(self._blank(size), pinned=False)
            self._head[: parcel.nbytes].copy_(blank)
            if done == 0:
                self._logits = torch.empty_like(self._compute(size))
            self._recordings[size] = recorder.record(self._work(size))

    def _work(self, size: int) -> Callable[[], None]:
        def work() -> None:
            self._logits[:size].copy_(self._compute(size))

        return work

    def _compute(self, size: int) -> torch.Tensor:
        """The forward pass over the fixed tensors: logits [size, vocab]."""
        placed = self._sizes[size]
        ahead = placed.ahead_from
        told = self.sampled.index_select(0, ahead.clamp(min=0))
        ids = torch.where(ahead == _KNOWN, placed.step.token_ids, told)
        step = replace(placed.step, token_ids=ids)
        written = self._written[:size].zero_()
        context = StepContext(self._layers, step, self._backend.plan(step), written)
        return self._forward.forward(step, context)

    def _load(self, size: int, layout: StepLayout) -> None:
        """Put a step's numbers where the recording of `size` reads them."""
        tables = np.stack(layout.host.tables)
        arrays = [*self._filled(size, layout), tables]
        parcel = Parcel.of(arrays)
        data = parcel.pack(arrays, pinned=self._device.type == "cuda")
        sent = data.to(self._device, non_blocking=True)
        head = self._sizes[size].head.nbytes
        self._head[:head].copy_(sent[:head])
        _, rows, columns = tables.shape
        self._tables[:, :rows, :columns].copy_(parcel.views(sent)[-1])

    def _blank(self, size: int) -> list[Array]:
        """A step of nobody: token ids, ids to come, positions, slots, query starts, lengths, and
        how many rows are somebody's."""
        return [
            np.zeros(size, dtype=np.int64),
            np.full(size, _KNOWN, dtype=np.int64),
            np.zeros(size, dtype=np.int64),
            np.full((self._room.groups, size), _NO_SLOT, dtype=np.int64),
            np.arange(size + 1, dtype=np.int32),
            np.zeros(size, dtype=np.int32),
            np.zeros(1, dtype=np.int32),
        ]

    def _filled(self, size: int, layout: StepLayout) -> list[Array]:
        rows = len(layout.token_ids)
        arrays = self._blank(size)
        ids, ahead, positions, slots, _, seq_lens, live = arrays
        ids[:rows] = layout.token_ids
        ahead[layout.ahead_rows] = layout.ahead_from
        positions[:rows], by_group = positions_and_slots(layout.host, self._room.block_size)
        for group, its_slots in enumerate(by_group):
            slots[group, :rows] = its_slots
        seq_lens[:rows] = layout.host.seq_lens
        live[0] = rows
        return arrays

    def _placed(self, size: int) -> _Size:
        head = Parcel.of(self._blank(size))
        ids, ahead, positions, slots, query_start, seq_lens, live = head.views(self._head)
        # What the host knows of a recorded step: that every sequence has a token.
        host = HostLayout(np.arange(size + 1), np.ones(size, dtype=np.int64), ())
        step = StepInput(
            token_ids=ids,
            positions=positions,
            slots=tuple(slots),
            sample_rows=positions,  # only their number counts: all are wanted
            query_start=query_start,
            seq_lens=seq_lens,
            tables=tuple(table[:size] for table in self._tables),
            host=host,
            live=live,
        )
        return _Size(head, step, ahead)
