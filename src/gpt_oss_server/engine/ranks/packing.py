"""A step's layout as a message and back. Knows: numpy's bytes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gpt_oss_server.engine.ranks.messages import Step
from gpt_oss_server.engine.step import HostLayout, StepLayout


def pack(layout: StepLayout) -> Step:
    host = layout.host
    return Step(
        _bytes(layout.token_ids),
        _bytes(layout.sample_rows),
        _bytes(host.query_start),
        _bytes(host.seq_lens),
        host.tables[0].shape[1],
        [_bytes(table) for table in host.tables],
    )


def unpack(step: Step) -> StepLayout:
    host = HostLayout(
        query_start=_integers(step.query_start).astype(np.int64),
        seq_lens=_integers(step.seq_lens).astype(np.int64),
        # Copies: what a frame is made of cannot be written to, and torch objects to that.
        tables=tuple(_integers(t).reshape(-1, step.columns).copy() for t in step.tables),
    )
    return StepLayout(
        token_ids=_integers(step.token_ids).astype(np.int64),
        sample_rows=_integers(step.sample_rows).astype(np.int64),
        host=host,
    )


def _bytes(array: npt.NDArray[np.int64] | npt.NDArray[np.int32]) -> bytes:
    return array.astype(np.int32).tobytes()


def _integers(data: bytes) -> npt.NDArray[np.int32]:
    return np.frombuffer(data, dtype=np.int32)
