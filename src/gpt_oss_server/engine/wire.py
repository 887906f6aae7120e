"""The messages between front and worker, and their framing. One message a step, not one a token.

A frame is a 4-byte big-endian length and that many bytes of msgpack. Knows: encodings. Does not
know: sockets or what the messages mean.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from gpt_oss_server import errors
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.errors import ServerError
from gpt_oss_server.types import EngineInfo, EngineStats, Job, TokenDelta

LENGTH_BYTES = 4
# Far above any real message (a 131k-token prompt is 0.4 MB): a larger one is a broken stream.
MAX_FRAME_BYTES = 256 << 20


class Start(msgspec.Struct, frozen=True, tag=True):
    """Front to worker, first and once: load this."""

    spec: EngineSpec


class Submit(msgspec.Struct, frozen=True, tag=True):
    key: int
    job: Job


class Cancel(msgspec.Struct, frozen=True, tag=True):
    key: int


class Forget(msgspec.Struct, frozen=True, tag=True):
    """Front to worker: a session's cached prefix is not needed beyond `keep_tokens`."""

    session: str
    keep_tokens: int


class Progress(msgspec.Struct, frozen=True, tag=True):
    """Worker to front, while loading: what it does now."""

    text: str


class Notice(msgspec.Struct, frozen=True, tag=True):
    """Worker to front, at work: something for the log. Without prompt text."""

    text: str


class Started(msgspec.Struct, frozen=True, tag=True):
    info: EngineInfo


class StartFailed(msgspec.Struct, frozen=True, tag=True):
    """The worker cannot start and ends; one line that says what to do."""

    message: str
    exit_status: int


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """A job ended in an error of the named class in `errors`."""

    key: int
    kind: str
    message: str
    param: str | None
    retry_after_s: float | None


class StepResult(msgspec.Struct, frozen=True, tag=True):
    """All that one step, and the submissions before it, say. `stats` now and then, and always
    when the engine falls idle."""

    deltas: list[tuple[int, TokenDelta]] = []
    failures: list[Failure] = []
    stats: EngineStats | None = None


class Crashed(msgspec.Struct, frozen=True, tag=True):
    """The worker's last words: its step raised, or one of its ranks is lost. `places` is for the
    log (see `ranks.faults`). Neither has prompt text."""

    message: str
    places: str = ""


class Alive(msgspec.Struct, frozen=True, tag=True):
    """Worker to front, now and then, where it leads several ranks: it watches them."""


ToWorker = Start | Submit | Cancel | Forget
ToFront = Progress | Notice | Started | StartFailed | StepResult | Crashed | Alive


class FrameBuffer:
    """Collects bytes and yields complete frames' payloads."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Raises ValueError on a length that no message has."""
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= LENGTH_BYTES:
            length = int.from_bytes(buffer[start : start + LENGTH_BYTES], "big")
            if length > MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {length} bytes")
            end = start + LENGTH_BYTES + length
            if len(buffer) < end:
                break
            yield bytes(memoryview(buffer)[start + LENGTH_BYTES : end])
            start = end
        del buffer[:start]


_encoder = msgspec.msgpack.Encoder()


def frame(message: msgspec.Struct) -> bytes:
    """One message, ready to be written."""
    payload = _encoder.encode(message)
    return len(payload).to_bytes(LENGTH_BYTES, "big") + payload


def failure(key: int, error: ServerError) -> Failure:
    return Failure(key, type(error).__name__, error.message, error.param, error.retry_after_s)


def error_of(failed: Failure) -> ServerError:
    """The error that a `Failure` stands for; an unknown class becomes `EngineFailed`."""
    cls = getattr(errors, failed.kind, None)
    if not (isinstance(cls, type) and issubclass(cls, ServerError)):
        cls = errors.EngineFailed
    return cls(failed.message, param=failed.param, retry_after_s=failed.retry_after_s)
