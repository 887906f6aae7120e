"""The tensors of one step: exactly what a paged attention kernel and a sampler take.

Knows: how a batch of sequences is laid out flat. Does not know: models, kernels, policies.
Built with vectorised numpy on the host; nothing per request is left for the forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from gpt_oss_server.engine.batcher import Batch
from gpt_oss_server.engine.kv_space import KvSpace
from gpt_oss_server.engine.staging import Array, send_named

IntArray = npt.NDArray[np.int64]
NOT_KNOWN: Final = np.zeros(1, dtype=np.int32)
"""Stands for a token whose id is on the device only."""


def _no_rows() -> IntArray:
    return np.zeros(0, dtype=np.int64)


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
    of the hidden states whose logits are wanted), and who they belong to. With lookahead the ids at
    `ahead_rows` [A] are not known yet: they are rows `ahead_from` [A] of what was sampled last.
    """

    token_ids: IntArray
    sample_rows: IntArray
    host: HostLayout
    ahead_rows: IntArray = field(default_factory=_no_rows)
    ahead_from: IntArray = field(default_factory=_no_rows)


@dataclass(frozen=True, slots=True)
class StepInput:
    """One forward pass, flat over all sequences' tokens.

    Shapes: `token_ids`, `positions` [T] int64; `slots[g]` [T] int64, where in group g's pool
    (block * block_size + offset) each token's KV is written; `sample_rows` [S] int64, the rows of
    the hidden states whose logits are wanted; `query_start` [R+1], `seq_lens` [R] int32 and
    `tables[g]` [R, blocks] int32 as in `HostLayout`, on the device.

    In a step that is padded to a fixed size, rows from `live` [1] int32 on are nobody's: their
    `seq_lens` are 0, so that they attend nothing, and their slots below 0, so that nothing is
    written.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: tuple[torch.Tensor, ...]
    sample_rows: torch.Tensor
    query_start: torch.Tensor
    seq_lens: torch.Tensor
    tables: tuple[torch.Tensor, ...]
    host: HostLayout
    live: torch.Tensor | None = None


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
            seq.tokens[start : start + n] if start < seq.length else NOT_KNOWN
            for seq, start, n in zip(batch.seqs, batch.starts, batch.tokens, strict=True)
        ]
    ).astype(np.int64)
    columns = -(-int(seq_lens.max()) // kv.block_size)
    tables = tuple(table[rows, :columns] for table in kv.tables)
    sample_rows = query_start[1:][batch.samples] - 1
    # A token that is to come is its sequence's only one in the step.
    ahead = [i for i, seq in enumerate(batch.seqs) if batch.starts[i] == seq.length]
    return StepLayout(
        token_ids,
        sample_rows,
        HostLayout(query_start, seq_lens, tables),
        query_start[np.asarray(ahead, dtype=np.int64)],
        np.asarray([batch.seqs[i].ahead_row for i in ahead], dtype=np.int64),
    )


def to_device(
    layout: StepLayout,
    block_size: int,
    device: torch.device,
    sampled: torch.Tensor | None = None,
) -> StepInput:
    """The step's tensors, with positions and slots, which follow from the rest. `sampled` has the
    token ids [S], on the device, that `ahead_rows` take theirs from."""
    positions, slots = positions_and_slots(layout.host, block_size)
    host = layout.host
    arrays: dict[str, Array] = {
        "token_ids": layout.token_ids,
        "positions": positions,
        "sample_rows": layout.sample_rows,
        "query_start": host.query_start.astype(np.int32),
        "seq_lens": host.seq_lens.astype(np.int32),
    }
    groups = range(len(host.tables))
    for g in groups:
        arrays[f"slots {g}"], arrays[f"table {g}"] = slots[g], host.tables[g]
    if len(layout.ahead_rows):
        arrays["ahead_rows"], arrays["ahead_from"] = layout.ahead_rows, layout.ahead_from
    sent = send_named(arrays, device)
    if len(layout.ahead_rows):
        if sampled is None:
            raise RuntimeError("a step needs tokens that were sampled elsewhere")
        sent["token_ids"][sent["ahead_rows"]] = sampled[sent["ahead_from"]]
    return StepInput(
        token_ids=sent["token_ids"],
        positions=sent["positions"],
        slots=tuple(sent[f"slots {g}"] for g in groups),
        sample_rows=sent["sample_rows"],
        query_start=sent["query_start"],
        seq_lens=sent["seq_lens"],
        tables=tuple(sent[f"table {g}"] for g in groups),
        host=host,
    )


def positions_and_slots(host: HostLayout, block_size: int) -> tuple[IntArray, tuple[IntArray, ...]]:
    """Each token's position [T] in its sequence, and its slot [T] in every group's pool."""
    counts = np.diff(host.query_start)
    if len(counts) == host.query_start[-1]:  # a token each: the usual step, made in half the time
        positions, token_rows = host.seq_lens - 1, np.arange(len(counts))
    else:
        # Where each sequence's first token stands, less its row.
        offset = host.seq_lens - counts - host.query_start[:-1]
        positions = np.arange(host.query_start[-1]) + np.repeat(offset, counts)
        token_rows = np.repeat(np.arange(len(counts)), counts)
    blocks, offsets = positions // block_size, positions % block_size
    slots = tuple(
        table[token_rows, blocks].astype(np.int64) * block_size + offsets for table in host.tables
    )
    return positions, slots


def build_step(batch: Batch, kv: KvSpace, device: torch.device) -> StepInput:
    """Both at once."""
    return to_device(lay_out(batch, kv), kv.block_size, device)
