"""What is said of an exception: its kind and its places, and nothing that it says itself."""

from __future__ import annotations

import queue
import socket
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from gpt_oss_server.engine import wire, worker
from gpt_oss_server.engine.ranks import follower
from gpt_oss_server.engine.ranks.faults import EXIT_BROKEN, mishap, places
from gpt_oss_server.engine.ranks.messages import Broken, ToLeader
from gpt_oss_server.engine.spec import EngineSpec

PROMPT = "my secret diary"
SPEC = EngineSpec(folder="nowhere", threads=1)


def stumble() -> None:
    """An exception that quotes what it stumbled over, as many do, raised from another."""
    try:
        {}[PROMPT]  # type: ignore[index]
    except KeyError as error:
        raise ValueError(f"cannot read {PROMPT!r}") from error


def stumbled() -> ValueError:
    with pytest.raises(ValueError, match=PROMPT) as caught:
        stumble()
    return caught.value


def test_places_are_a_line_without_words() -> None:
    """Innermost first, the cause behind, one line; what was said is not in it."""
    line = places(stumbled())
    assert line.startswith("ValueError at test_ranks_faults.py:")
    first, second = line.split(", from ")
    assert " stumble < test_ranks_faults.py:" in first
    assert second.startswith("KeyError at test_ranks_faults.py:")
    assert PROMPT not in line
    assert "\n" not in line


def test_a_mishap_is_a_kind_and_a_place() -> None:
    """The end of a sentence; an exception that was never raised has no place."""
    assert mishap(stumbled()).startswith("failed with ValueError at test_ranks_faults.py:")
    assert PROMPT not in mishap(stumbled())
    assert (mishap(KeyError(PROMPT)), places(KeyError(PROMPT))) == (
        "failed with KeyError",
        "KeyError",
    )


def test_a_ring_of_causes_ends() -> None:
    """Exceptions that name each other as their cause are each told once."""
    one, other = ValueError(PROMPT), TypeError(PROMPT)
    one.__cause__, other.__cause__ = other, one
    assert places(one) == "ValueError, from TypeError"


class BrokenLoop:
    """Starts, and fails at its first prompt."""

    def __init__(self, channel: worker.Channel, spec: EngineSpec, crew: Any) -> None:
        self._channel = channel

    def run(self, backlog: list[wire.ToWorker]) -> None:
        self._channel.started = True
        stumble()


@pytest.mark.usefixtures("one_thread")
def test_a_worker_s_last_words_hold_nothing_of_a_prompt(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Kind and places go to the front; nothing is written to the terminal."""
    monkeypatch.setattr(worker, "Loop", BrokenLoop)
    front, back = socket.socketpair()
    with front, back:
        front.sendall(wire.frame(wire.Start(SPEC)))
        assert worker.serve(back) == worker.EXIT_CRASH
        (payload,) = wire.FrameBuffer().feed(front.recv(1 << 16))
    words = msgspec.msgpack.decode(payload, type=wire.ToFront)
    assert isinstance(words, wire.Crashed)
    assert words.message.startswith("it failed with ValueError at test_ranks_faults.py:")
    assert "KeyError at test_ranks_faults.py:" in words.places
    assert PROMPT not in repr(words)
    assert capfd.readouterr() == ("", "")


class Ready:
    """A follower that fails at its first step."""

    def __init__(self, *unused: object) -> None:
        self.prepare = lambda: None

    def work(self, rank: object) -> None:
        stumble()


def test_a_follower_s_last_words_hold_nothing_of_a_prompt(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same of one that follows."""
    lifeline = SimpleNamespace(start=lambda: None, orders=queue.SimpleQueue())
    monkeypatch.setattr(follower, "Lifeline", lambda *unused: lifeline)
    monkeypatch.setattr(follower, "Follower", Ready)
    leader, back = socket.socketpair()
    with leader, back:
        assert follower.serve(back) == EXIT_BROKEN
        (payload,) = wire.FrameBuffer().feed(leader.recv(1 << 16))
    words = msgspec.msgpack.decode(payload, type=ToLeader)
    assert isinstance(words, Broken)
    assert words.message.startswith("failed with ValueError at test_ranks_faults.py:")
    assert PROMPT not in repr(words)
    assert capfd.readouterr() == ("", "")
