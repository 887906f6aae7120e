"""The tensors of one step: exactly what a paged attention kernel and a sampler take.

Knows: how a batch of sequences is laid out flat. Does not know: models, kernels, policies.
Built with vectorised numpy on the host; nothing per request is left for the forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gpt_oss_server.engine.batcher import Batch
from gpt_oss_server.engine.kv_space import KvSpace

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class HostLayout:
    """The same step as numpy arrays, for backends that plan their work on the host.

    R sequences, T tokens. `query_start` [R+1] delimits each sequence's tokens; `seq_lens` [R]
    counts the tokens it attends over, this step's included; `tables[g]` [R, blocks] are block
    ids by logical block (stale where the sequence holds none).
    """

    query_start: IntArray
    seq_lens: IntArray
    tables: tuple[npt.NDArray[np.int32], ...]


@dataclass(frozen=True, slots=True)
class StepLayout:
    """All that a rank must know to compute a step: `token_ids` [T], `sample_rows` [S] (the rows
    of the hidden states whose logits are wanted), and who they belong to."""

    token_ids: IntArray
    sample_rows: IntArray
    host: HostLayout


@dataclass(frozen=True, slots=True)
class StepInput:
    """One forward pass, flat over all sequences' tokens.

    Shapes: `token_ids`, `positions` [T] int64; `slots[g]` [T] int64, where in group g's pool
    (block * block_size + offset) each token's KV is written; `sample_rows` [S] int64, the rows of
    the hidden states whose logits are wanted; `query_start` [R+1], `seq_lens` [R] int32 and
    `tables[g]` [R, blocks] int32 as in `HostLayout`, on the device.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: tuple[torch.Tensor, ...]
    sample_rows: torch.Tensor
    query_start: torch.Tensor
    seq_lens: torch.Tensor
    tables: tuple[torch.Tensor, ...]
    host: HostLayout


def lay_out(batch: Batch, kv: KvSpace) -> StepLayout:
    """Lay a batch out. The block tables are cut to the longest sequence of the batch, and are
    copies: later steps may change what they were taken from."""
    counts = np.asarray(batch.tokens, dtype=np.int64)
    starts = np.asarray(batch.starts, dtype=np.int64)
    rows = np.asarray([seq.slot for seq in batch.seqs], dtype=np.int64)
    query_start = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=query_start[1:])
    seq_lens = starts + counts
    token_ids = np.concatenate(
        [
            seq.tokens[start : start + n]
            for seq, start, n in zip(batch.seqs, batch.starts, batch.tokens, strict=True)
        ]
    ).astype(np.int64)
    columns = -(-int(seq_lens.max()) // kv.block_size)
    tables = tuple(table[rows, :columns] for table in kv.tables)
    sample_rows = query_start[1:][batch.samples] - 1
    return StepLayout(token_ids, sample_rows, HostLayout(query_start, seq_lens, tables))


def to_device(layout: StepLayout, block_size: int, device: torch.device) -> StepInput:
    """The step's tensors, with positions and slots, which follow from the rest."""
    host = layout.host
    counts = np.diff(host.query_start)
    # Where each sequence's first token stands, less its row.
    offset = host.seq_lens - counts - host.query_start[:-1]
    positions = np.arange(host.query_start[-1]) + np.repeat(offset, counts)
    token_rows = np.repeat(np.arange(len(counts)), counts)
    slots = tuple(
        table[token_rows, positions // block_size].astype(np.int64) * block_size
        + positions % block_size
        for table in host.tables
    )

    def put(array: npt.NDArray[np.int64] | npt.NDArray[np.int32]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)

    return StepInput(
        token_ids=put(layout.token_ids),
        positions=put(positions),
        slots=tuple(put(s) for s in slots),
        sample_rows=put(layout.sample_rows),
        query_start=put(host.query_start.astype(np.int32)),
        seq_lens=put(host.seq_lens.astype(np.int32)),
        tables=tuple(put(t) for t in host.tables),
        host=host,
    )


def build_step(batch: Batch, kv: KvSpace, device: torch.device) -> StepInput:
    """Both at once."""
    return to_device(lay_out(batch, kv), kv.block_size, device)
