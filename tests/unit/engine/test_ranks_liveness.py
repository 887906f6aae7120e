"""Who is lost, by what ranks say of themselves; and that it is noticed by the socket alone."""

from __future__ import annotations

import queue
import socket
from dataclasses import dataclass, field

import pytest

from gpt_oss_server.engine.ranks.faults import ending, mishap
from gpt_oss_server.engine.ranks.liveness import (
    LOADING_STILL_S,
    STILL_S,
    Activity,
    Link,
    Member,
    Watch,
    pulse_interval_s,
)
from gpt_oss_server.engine.ranks.messages import Broken, Failed, Loaded, Pulse, Ready

TIMEOUT_S = 8.0


@dataclass
class Scene:
    """A leader and two followers, on a clock that is set by hand."""

    now_s: float = 100.0
    activity: Activity = field(default_factory=Activity)

    def __post_init__(self) -> None:
        self.pairs = [socket.socketpair() for _ in range(2)]
        self.members = [
            Member(rank, 1000 + rank, Link(ours), self.now_s)
            for rank, (ours, _) in enumerate(self.pairs)
        ]
        self.watch = Watch(
            self.members,
            self.activity,
            TIMEOUT_S,
            lost=lambda member, what: None,
            clock=lambda: self.now_s,
        )

    def close(self) -> None:
        for pair in self.pairs:
            for end in pair:
                end.close()

    def passes(self, seconds: float, *speaking: int, progress: bool = False) -> str:
        """Time, in intervals; these members send pulses. The first verdict that is one."""
        for _ in range(int(seconds / 0.5)):
            self.now_s += 0.5
            for rank in speaking:
                member = self.members[rank]
                member.heard_s = self.now_s
                if progress:
                    old = member.pulse
                    member.pulse = Pulse(old.progress + 1, old.waiting, old.idle)
            if line := self.watch.verdict():
                return line
        return ""


@pytest.fixture
def scene() -> object:
    made = Scene()
    yield made
    made.close()


def begin_step(scene: Scene, *waiting: int) -> None:
    """A step is under way; the leader waits in a call, and so do these."""
    scene.activity.steps_taken += 1
    scene.activity.calls = lambda: (1, 0)
    for member in scene.members:
        member.pulse = Pulse(1, member.rank in waiting, idle=False)


def test_without_a_step_nobody_is_judged(scene: Scene) -> None:
    """Ranks that do nothing because there is nothing to do are well."""
    assert scene.passes(STILL_S * 3, 0, 1) == ""


def test_as_long_as_one_moves_all_are_well(scene: Scene) -> None:
    """A rank that waits long for another's work is not stuck."""
    begin_step(scene, 0)
    assert scene.passes(TIMEOUT_S * 5, 0, 1, progress=True) == ""


def test_a_mute_rank_is_named(scene: Scene) -> None:
    """Of ranks that stand still, the one that says nothing is the one that is stopped."""
    begin_step(scene, 0)
    line = scene.passes(TIMEOUT_S + 1, 0)
    assert line == (
        "rank 1 (process 1001) does not respond: it is stopped, or this machine is overloaded"
    )
    assert scene.now_s - 100.0 <= TIMEOUT_S + 0.5


def test_a_rank_that_speaks_and_does_nothing_is_named(scene: Scene) -> None:
    """The one that is in no call to others keeps them waiting."""
    begin_step(scene, 0)
    line = scene.passes(TIMEOUT_S + 1, 0, 1)
    assert line == "rank 1 (process 1001) has made no progress for 8 s"


def test_the_leader_may_be_the_one(scene: Scene) -> None:
    """The leader accuses itself where all others wait."""
    begin_step(scene, 0, 1)
    scene.activity.calls = lambda: (1, 1)
    assert scene.passes(TIMEOUT_S + 1, 0, 1) == ("the leading rank has made no progress for 8 s")


def test_all_waiting_for_each_other(scene: Scene) -> None:
    """A dead lock has nobody to blame."""
    begin_step(scene, 0, 1)
    line = scene.passes(TIMEOUT_S + 1, 0, 1)
    assert line == "each rank waits for another: the replica has made no progress for 8 s"


def test_a_rank_is_lost_even_when_idle_but_later(scene: Scene) -> None:
    """Silence without a step under way is judged with more patience."""
    scene.activity.loading = False
    assert scene.passes(STILL_S - 1, 1) == ""
    assert scene.passes(2, 1) == "rank 0 (process 1000) has said nothing for 60 s"


def test_a_rank_that_loads_may_be_silent_for_longer(scene: Scene) -> None:
    """A slow disk keeps it from speaking; one that is stopped is found out in the end."""
    assert scene.passes(LOADING_STILL_S - 1, 1) == ""
    assert scene.passes(2, 1) == "rank 0 (process 1000) has said nothing for 300 s"


def test_a_leader_that_was_stopped_itself_blames_nobody(scene: Scene) -> None:
    """After a pause of the whole machine everybody gets the full time again."""
    begin_step(scene, 0, 1)
    assert scene.passes(TIMEOUT_S - 1, 0, 1) == ""
    scene.now_s += 3600
    assert scene.watch.verdict() == ""
    assert scene.passes(TIMEOUT_S - 1, 0, 1) == ""
    assert scene.passes(2, 0, 1) != ""


@pytest.mark.parametrize(("timeout_s", "interval_s"), [(1.0, 0.125), (8.0, 0.5), (3600.0, 0.5)])
def test_pulses_come_often_enough(timeout_s: float, interval_s: float) -> None:
    """Several within any timeout, never more than a few a second otherwise."""
    assert pulse_interval_s(timeout_s) == interval_s


LOADED = Loaded("cpu", 0, (), 1, 2)


def heard(*messages: object, close: bool) -> tuple[Member, list[tuple[int | None, object]]]:
    """One follower that says this; what the watch makes of it."""
    ours, theirs = socket.socketpair()
    member = Member(3, 77, Link(ours), 0.0)
    lost: queue.SimpleQueue[tuple[int | None, object]] = queue.SimpleQueue()
    watch = Watch(
        [member],
        Activity(),
        TIMEOUT_S,
        lost=lambda who, what: lost.put((None if who is None else who.rank, what)),
    )
    speaker = Link(theirs)
    for message in messages:
        speaker.send(message)  # type: ignore[arg-type]
    if close:
        theirs.close()
    watch.start()
    first = lost.get(timeout=30)
    watch.join(30)
    ours.close()
    theirs.close()
    return member, [first]


def test_the_end_of_a_socket_is_the_end_of_a_rank() -> None:
    """What it said before is kept; then it is lost without a word."""
    member, lost = heard(LOADED, Pulse(5, False, True), Ready(96), close=True)
    assert lost == [(3, "")]
    assert member.said.get() == LOADED
    assert member.said.get() == Ready(96)
    assert member.pulse == Pulse(5, False, True)


@pytest.mark.parametrize("words", [Failed("no such model", 2), Broken("ran out of memory")])
def test_last_words_are_heard(words: Failed | Broken) -> None:
    """A rank that says why it ends is quoted."""
    _, lost = heard(LOADED, words, close=True)
    assert lost == [(3, words)]


def test_the_front_is_watched_too() -> None:
    """A front that is gone ends the watch, without touching what it has sent."""
    ours, front = socket.socketpair()
    mine, theirs = socket.socketpair()
    abandoned: queue.SimpleQueue[bool] = queue.SimpleQueue()
    watch = Watch(
        [Member(0, 1, Link(mine), 0.0)],
        Activity(),
        TIMEOUT_S,
        lost=lambda who, what: abandoned.put(False),
        abandoned=lambda: abandoned.put(True),
        front=ours,
    )
    front.sendall(b"a job")
    front.close()
    watch.start()
    assert abandoned.get(timeout=30)
    assert ours.recv(100) == b"a job"
    for end in (ours, mine, theirs):
        end.close()


def test_progress_grows_with_all_that_a_rank_does() -> None:
    """Layers, calls and steps each count."""
    activity = Activity()
    assert activity.pulse() == Pulse(0, waiting=False, idle=True)
    activity.steps_taken += 1
    activity.layers += 3
    activity.calls = lambda: (2, 1)
    assert activity.pulse() == Pulse(7, waiting=True, idle=False)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "ran out of memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "ran out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "ran out of memory"),
        (RuntimeError("could not create a primitive"), "ran out of memory"),
        (RuntimeError("could not create a primitive descriptor"), "failed with RuntimeError"),
        (RuntimeError("a prompt"), "failed with RuntimeError"),
    ],
)
def test_what_to_call_a_mishap(error: Exception, words: str) -> None:
    """Memory is named; of anything else the kind and place, and nothing that it says."""
    assert mishap(error) == words
    try:
        raise error
    except Exception as raised:  # noqa: BLE001 - with a place
        text = mishap(raised)
    assert text.startswith(words)
    assert "a prompt" not in text
    assert ("at test_ranks_liveness.py:" in text) == (words != "ran out of memory")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (None, "closed its connection"),
        (3, "ended (exit status 3)"),
        (-9, "was killed (SIGKILL), by somebody or for want of memory"),
        (-11, "was killed by signal 11"),
    ],
)
def test_how_a_process_ended(code: int | None, words: str) -> None:
    """In words, for the operator."""
    assert ending(code) == words


def test_messages_load_no_torch() -> None:
    """A follower listens for its leader's end before anything that takes long is imported."""
    import subprocess
    import sys

    program = (
        "import sys, gpt_oss_server.engine.ranks.follower, gpt_oss_server.engine.ranks.crew\n"
        "print(*sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
