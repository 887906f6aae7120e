"""Recorded decode steps: a replay computes the step that it is given, and nothing of another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt_oss_server.engine.attention.interface import LayerKv, StepContext
from gpt_oss_server.engine.attention.reference import ReferenceBackend
from gpt_oss_server.engine.graphs import (
    DRIVER_BYTES,
    LIBRARY_BYTES,
    DecodeGraphs,
    Recording,
    RerunRecorder,
    Room,
    ladder,
    predicted_bytes,
)
from gpt_oss_server.engine.step import HostLayout, StepInput, StepLayout, to_device
from gpt_oss_server.errors import StartupError
from storage_meter import StorageMeter

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
BLOCK = 4
ROOM = Room(max_num_seqs=6, columns=8, groups=2, block_size=BLOCK)
POISON = 99


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    """As in the runner."""
    with torch.inference_mode():
        yield


class Telling:
    """A forward pass whose logits are what it was given: for each sequence its token, position,
    length, slots, and the last block of its tables."""

    name = "telling"
    capturable = True

    def __init__(self) -> None:
        self.steps: list[StepInput] = []

    def forward(self, step: StepInput, context: StepContext) -> torch.Tensor:
        self.steps.append(step)
        last = (step.seq_lens.long() - 1).clamp(min=0) // BLOCK
        blocks = [table.gather(1, last[:, None]).squeeze(1) for table in step.tables]
        context.written.masked_fill_(step.token_ids == POISON, torch.nan)
        columns = [step.token_ids, step.positions, step.seq_lens, *step.slots, *blocks]
        return torch.stack([column.float() for column in columns], dim=1)


class Counting:
    """A recorder that notes how often there was something to record."""

    def __init__(self) -> None:
        self.recorded = 0

    def record(self, work: Callable[[], None]) -> Recording:
        self.recorded += 1
        return RerunRecorder().record(work)


def graphs(
    forward: Telling, room: Room = ROOM, said: list[str] | None = None
) -> tuple[DecodeGraphs, Counting]:
    pool = torch.zeros(4, BLOCK, 1, 2)
    layers = [LayerKv(0, None, pool, pool), LayerKv(1, 8, pool, pool)]
    recorder = Counting()
    lines = said if said is not None else []
    made = DecodeGraphs(forward, layers, ReferenceBackend(), room, recorder, lines.append)
    return made, recorder


def decode(lens: Sequence[int], ids: Sequence[int], seed: int = 0) -> StepLayout:
    """One token of each sequence, at its end; block tables are drawn from `seed`."""
    columns = -(-max(lens) // BLOCK)
    rng = np.random.default_rng(seed)
    tables = tuple(
        rng.integers(0, 50, size=(len(lens), columns), dtype=np.int32) for _ in range(ROOM.groups)
    )
    start = np.arange(len(lens) + 1)
    return StepLayout(
        token_ids=np.array(ids, dtype=np.int64),
        sample_rows=np.arange(len(lens)),
        host=HostLayout(start, np.array(lens, dtype=np.int64), tables),
    )


def as_it_comes(layout: StepLayout, sampled: torch.Tensor | None = None) -> torch.Tensor:
    """What the same step says without a recording."""
    step = to_device(layout, BLOCK, CPU, sampled)
    plan = ReferenceBackend().plan(step)
    return Telling().forward(step, StepContext([], step, plan, torch.zeros(len(step.token_ids))))


@pytest.mark.parametrize(
    ("most", "sizes"),
    [
        (1, [1]),
        (2, [1, 2]),
        (3, [1, 2, 3]),
        (8, [1, 2, 4, 8]),
        (48, [1, 2, 4, 8, 16, 32, 48]),
        (64, [1, 2, 4, 8, 16, 32, 64]),
        (4096, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]),
    ],
)
def test_the_ladder_doubles_up_to_the_largest_batch(most: int, sizes: list[int]) -> None:
    """Powers of two, the largest batch itself, and no more than is worth a recording."""
    assert ladder(most) == sizes


def test_each_size_is_recorded_once_and_largest_first() -> None:
    """What is recorded at start-up is said; steps record nothing more."""
    forward, said = Telling(), []
    made, recorder = graphs(forward, said=said)
    assert said == [
        "capturing decode steps: 1 of 4 (batch 6)",
        "capturing decode steps: 2 of 4 (batch 4)",
        "capturing decode steps: 3 of 4 (batch 2)",
        "capturing decode steps: 4 of 4 (batch 1)",
    ]
    made.run(decode([3, 9], [1, 2]))
    made.run(decode([4], [5]))
    assert recorder.recorded == 4


def test_what_recordings_take_is_predicted() -> None:
    """Their fixed tensors are no more than the prediction without its parts for the driver and for
    a decode step, and nearly as much."""

    class Forgetful(Telling):
        def forward(self, step: StepInput, context: StepContext) -> torch.Tensor:
            logits = super().forward(step, context)
            self.steps.clear()
            return logits

    room = Room(max_num_seqs=64, columns=300, groups=2, block_size=BLOCK)
    kept = []
    taken = StorageMeter().taken(lambda: kept.append(graphs(Forgetful(), room)))
    driver = LIBRARY_BYTES + len(ladder(64)) * DRIVER_BYTES
    columns_of_logits = 7
    bound = predicted_bytes(room, columns_of_logits, 4, decode_bytes=0) - driver
    assert taken <= bound <= 1.05 * taken
    assert predicted_bytes(room, columns_of_logits, 4, decode_bytes=1000) == bound + driver + 1000


steps = st.lists(
    st.lists(st.tuples(st.integers(1, 32), st.integers(0, 98)), min_size=1, max_size=6),
    min_size=1,
    max_size=6,
)


@given(steps)
def test_replays_say_what_the_steps_say(batches: list[list[tuple[int, int]]]) -> None:
    """One batch after another, of any sizes, lengths and tables: each says what it says without a
    recording, whatever the one before left."""
    forward = Telling()
    made, _ = graphs(forward)
    for seed, batch in enumerate(batches):
        lens, ids = [n for n, _ in batch], [i for _, i in batch]
        layout = decode(lens, ids, seed)
        assert made.takes(layout)
        replayed = made.run(layout)
        assert torch.equal(replayed.logits[: len(batch)], as_it_comes(layout))
        assert torch.isfinite(replayed.written).all()


@pytest.mark.parametrize(("count", "size"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 6), (6, 6)])
def test_padding_is_nobody(count: int, size: int) -> None:
    """Rows beyond the batch have no keys and no slot, whatever a larger batch left there."""
    forward = Telling()
    made, _ = graphs(forward)
    made.run(decode([32] * 6, [7] * 6, seed=1))
    made.run(decode([20] * count, [8] * count, seed=2))
    step = forward.steps[-1]
    assert len(step.token_ids) == size
    assert step.live is not None
    assert step.live.tolist() == [count]
    assert step.query_start.tolist() == list(range(size + 1))
    assert step.seq_lens.tolist() == [20] * count + [0] * (size - count)
    assert step.positions.tolist() == [19] * count + [0] * (size - count)
    for slots in step.slots:
        assert slots[count:].tolist() == [-1] * (size - count)
        assert (slots[:count] >= 0).all()


def test_tokens_to_come_are_those_sampled_last() -> None:
    """A row whose token is not on the host has the one that the sampler left for it."""
    made, _ = graphs(Telling())
    made.sampled.copy_(torch.tensor([41, 42, 43, 44, 45, 46]))
    layout = decode([5, 6, 7], [11, 0, 0])
    layout = StepLayout(
        layout.token_ids, layout.sample_rows, layout.host, np.array([1, 2]), np.array([3, 0])
    )
    assert made.run(layout).logits[:3, 0].tolist() == [11, 44, 41]
    assert torch.equal(made.run(layout).logits[:3], as_it_comes(layout, made.sampled))
    made.sampled[3] = 50
    assert made.run(layout).logits[:3, 0].tolist() == [11, 50, 41]
    assert made.run(decode([5, 6, 7], [11, 12, 13])).logits[:3, 0].tolist() == [11, 12, 13]


def test_flags_are_of_this_step() -> None:
    """A token that was not finite is flagged in its step and no longer in the next."""
    made, _ = graphs(Telling())
    flags = made.run(decode([5, 6, 7], [1, POISON, 2])).written
    assert torch.isfinite(flags[:3]).tolist() == [True, False, True]
    assert torch.isfinite(made.run(decode([6, 7, 8], [1, 2, 3])).written).all()


def test_only_steps_of_a_token_each_are_taken() -> None:
    """A prefill, and a batch beyond the ladder, run as they come."""
    made, _ = graphs(Telling())
    assert made.takes(decode([1] * 6, [1] * 6))
    assert not made.takes(decode([1] * 7, [1] * 7))
    one = decode([5, 5], [1, 2])
    host = HostLayout(np.array([0, 1, 3]), one.host.seq_lens, one.host.tables)
    assert not made.takes(StepLayout(np.array([1, 2, 3]), np.array([0, 2]), host))


def test_a_failed_capture_says_what_to_do() -> None:
    """What goes wrong on the device is one line that names the way out."""

    class Failing(Telling):
        def forward(self, step: StepInput, context: StepContext) -> torch.Tensor:
            raise RuntimeError("CUDA error: operation not permitted\nmore")

    with pytest.raises(StartupError, match=r"^cannot capture .*: operation not permitted; --eager"):
        graphs(Failing())
