"""The tensors of one step, laid out for a small batch and compared number by number."""

from __future__ import annotations

import pytest
import torch
from stub_engine import StubConfig, StubEngine

from gpt_oss_server.engine.kv_space import GroupSpec
from gpt_oss_server.engine.sequence import Sequence
from gpt_oss_server.engine.step import build_step
from gpt_oss_server.types import Job, SamplingParams

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_mixed_batch_is_laid_out_flat() -> None:
    """Decode and prefill chunk side by side: ids, positions, slots, bounds, sample rows."""
    stub = StubEngine(
        StubConfig(
            (GroupSpec("full", None, 20), GroupSpec("sliding", 2, 20)),
            block_size=2,
            max_batch_tokens=4,
            vocab=9,
        )
    )
    stub.submit([5, 6, 7], 4)
    stub.step()
    produced = int(stub.live[0].tokens[3])
    stub.submit([1, 2, 3, 4, 5, 6], 2)
    batch = stub.batcher.schedule()
    assert [(seq.arrival, n) for seq, n in zip(batch.seqs, batch.tokens, strict=True)] == [
        (0, 1),
        (1, 3),
    ]
    assert batch.samples == [0]
    step = build_step(batch, stub.kv, torch.device("cpu"))
    assert step.token_ids.tolist() == [produced, 1, 2, 3]
    assert step.positions.tolist() == [3, 0, 1, 2]
    assert step.sample_rows.tolist() == [0]
    assert step.query_start.tolist() == step.host.query_start.tolist() == [0, 1, 4]
    assert step.seq_lens.tolist() == step.host.seq_lens.tolist() == [4, 3]
    for g in range(2):
        decoding, prefilling = (stub.live[a] for a in (0, 1))
        first = decoding.first_block[g]
        blocks = [decoding.blocks[g][1 - first], *prefilling.blocks[g]]
        assert step.slots[g].tolist() == [
            blocks[0] * 2 + 1,
            blocks[1] * 2,
            blocks[1] * 2 + 1,
            blocks[2] * 2,
        ]
        assert step.tables[g].shape == (2, 2)
        assert step.tables[g].tolist() == step.host.tables[g].tolist()
        assert step.tables[g][1].tolist() == prefilling.blocks[g]
    dtypes = {tensor.dtype for tensor in (step.token_ids, step.positions, *step.slots)}
    assert dtypes == {torch.int64}
    assert {t.dtype for t in (step.query_start, step.seq_lens, *step.tables)} == {torch.int32}


def test_a_sequence_grows_past_its_buffer() -> None:
    """Appending keeps every token, however often the buffer has to grow."""
    seq = Sequence.create(
        0,
        Job(id="0", prompt=[1, 2], sampling=SamplingParams(max_tokens=500)),
        arrival=0,
        max_tokens=500,
        groups=1,
        block_size=4,
        stop_ids=frozenset(),
    )
    for token in range(300):
        seq.append(token)
    assert seq.tokens.tolist() == [1, 2, *range(300)]
    assert (seq.prompt_len, seq.output_len, seq.remaining) == (2, 300, 302)
    assert not seq.decoding
    seq.computed = seq.launched = 301
    assert seq.decoding
