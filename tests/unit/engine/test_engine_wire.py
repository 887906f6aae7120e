"""Frames and messages between front and worker: nothing lost, however the bytes arrive."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_oss_server.engine import wire
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.errors import (
    SPECS,
    BadRequest,
    ContextTooLong,
    EngineFailed,
    Overloaded,
    ServerError,
)
from gpt_oss_server.types import EngineStats, Job, SamplingParams, TokenDelta, TokenLogprob

TO_WORKER: list[wire.ToWorker] = [
    wire.Start(EngineSpec(folder="/models/tiny", device="cpu", kv_cache_bytes=1 << 33)),
    wire.Submit(
        7,
        Job(
            id="job",
            prompt=[0, 200_000],
            sampling=SamplingParams(
                max_tokens=3, seed=(1 << 64) - 1, logit_bias={5: -1.5}, stop_token_ids=(1, 2)
            ),
            max_tokens_explicit=False,
        ),
    ),
    wire.Cancel(1 << 40),
]
TO_FRONT: list[wire.ToFront] = [
    wire.Progress("loading weights"),
    wire.Notice("out of memory in a step"),
    wire.StartFailed("no such folder", 2),
    wire.StepResult(
        [(3, TokenDelta((9,), (TokenLogprob(9, -0.5, ((9, -0.5), (4, -1.0))),), "stop", 16))],
        [wire.failure(4, ContextTooLong("too long", param="messages"))],
        EngineStats(running=2, blocks_in_use={"full": 3}),
    ),
    wire.StepResult(),
    wire.Crashed("RuntimeError"),
]


@pytest.mark.parametrize("message", [*TO_WORKER, *TO_FRONT], ids=lambda m: type(m).__name__)
def test_messages_survive_the_wire(message: wire.ToWorker | wire.ToFront) -> None:
    """Every message is read back as it was written, by the reader of its direction."""
    [payload] = wire.FrameBuffer().feed(wire.frame(message))
    union = wire.ToWorker if message in TO_WORKER else wire.ToFront
    assert msgspec.msgpack.decode(payload, type=union) == message


@given(st.lists(st.binary(max_size=40), max_size=8), st.lists(st.integers(1, 30), max_size=30))
def test_frames_do_not_depend_on_how_bytes_arrive(payloads: list[bytes], cuts: list[int]) -> None:
    """Any cutting of the stream yields the same payloads, each as soon as it is complete."""
    stream = b"".join(len(p).to_bytes(wire.LENGTH_BYTES, "big") + p for p in payloads)
    frames, received, fed = wire.FrameBuffer(), [], 0
    for size in [*cuts, len(stream)]:
        received += list(frames.feed(stream[fed : fed + size]))
        fed = min(len(stream), fed + size)
        complete, end = 0, 0
        for payload in payloads:
            end += wire.LENGTH_BYTES + len(payload)
            complete += end <= fed
        assert received == payloads[:complete]
    assert received == payloads


def test_an_impossible_length_is_refused() -> None:
    """A length that no message has means a broken stream, noticed before it is waited for."""
    largest = wire.MAX_FRAME_BYTES.to_bytes(wire.LENGTH_BYTES, "big")
    assert list(wire.FrameBuffer().feed(largest)) == []
    with pytest.raises(ValueError, match="a frame of"):
        list(wire.FrameBuffer().feed((wire.MAX_FRAME_BYTES + 1).to_bytes(4, "big")))


@pytest.mark.parametrize("kind", SPECS, ids=lambda kind: kind.__name__)
def test_errors_keep_their_class(kind: type[ServerError]) -> None:
    """Class, message, parameter and retry hint cross the process boundary."""
    failed = wire.failure(5, kind("why", param="prompt", retry_after_s=1.5))
    assert failed.key == 5
    error = wire.error_of(failed)
    assert type(error) is kind
    assert (error.message, error.param, error.retry_after_s) == ("why", "prompt", 1.5)


@pytest.mark.parametrize("kind", ["Nonsense", "StartupError", "SPECS", "annotations"])
def test_unknown_errors_become_engine_failures(kind: str) -> None:
    """A name that is no error class of a request is the engine's failure."""
    assert type(wire.error_of(wire.Failure(1, kind, "why", None, None))) is EngineFailed


def test_the_nearest_class_is_not_guessed() -> None:
    """A subclass arrives as itself, not as its parent."""
    assert type(wire.error_of(wire.failure(1, BadRequest("x")))) is BadRequest
    assert type(wire.error_of(wire.failure(1, Overloaded("x")))) is Overloaded
