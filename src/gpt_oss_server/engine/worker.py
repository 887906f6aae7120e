"""The engine's own process: reads jobs from a socket, steps the core, writes results.

Run as `python -m gpt_oss_server.engine.worker FD PARENT` by `client`, FD being one end of a socket
pair. The loop is single-threaded: it looks at the socket between steps, and sleeps on it when
there is nothing to do. It ends when the socket does, and where it does not get to look at that,
with its front's process.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING

import msgspec

from gpt_oss_server.engine import wire
from gpt_oss_server.engine.ranks.faults import mishap, places
from gpt_oss_server.engine.ranks.liveness import end_with_parent
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.engine.threads import set_threads
from gpt_oss_server.errors import ServerError, StartupError
from gpt_oss_server.heap import settle_heap

if TYPE_CHECKING:
    from gpt_oss_server.engine.ranks.crew import Crew

STATS_INTERVAL_S = 0.1
# Steps ask for tensors of ever other sizes: with segments that grow, what is freed of one is of use
# to all others. Read by PyTorch when it first allocates on a GPU; whatever a user has set stands.
ALLOCATOR_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
GROWING_SEGMENTS = "expandable_segments:True"
EXIT_CRASH = 70


class FrontGone(Exception):
    """The front closed its end: time to go."""


class Channel:
    """The worker's end of the socket pair."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        # Not select(): the number of this end is the front's, where a thousand connections may
        # have been open when it started this worker, and select() ends at 1024.
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._frames = wire.FrameBuffer()
        self._decoder = msgspec.msgpack.Decoder(wire.ToWorker)
        self._lock = threading.Lock()
        self.started = False

    def alive(self) -> None:
        """A sign of life, from whoever watches the ranks."""
        with contextlib.suppress(FrontGone):
            self.send(wire.Alive())

    def last_words(self, line: str, exit_status: int, where: str = "") -> None:
        """Why the process ends, from whoever ends it; only the first are heard."""
        words = wire.Crashed(line, where) if self.started else wire.StartFailed(line, exit_status)
        with contextlib.suppress(FrontGone):
            self.send(words)

    def send(self, message: wire.ToFront) -> None:
        """May be called by any thread."""
        data = wire.frame(message)
        try:
            with self._lock:
                self.sock.sendall(data)
        except OSError as error:
            raise FrontGone from error

    def receive(self, *, wait: bool) -> list[wire.ToWorker]:
        """What has arrived; with `wait`, sleeps until something has. Raises FrontGone."""
        messages: list[wire.ToWorker] = []
        while self._poll.poll(None if wait and not messages else 0):
            try:
                data = self.sock.recv(1 << 20)
            except OSError as error:
                raise FrontGone from error
            if not data:
                raise FrontGone
            messages += [self._decoder.decode(payload) for payload in self._frames.feed(data)]
        return messages


def _await_spec(channel: Channel) -> tuple[EngineSpec, list[wire.ToWorker]]:
    """The first message, and whatever came with it."""
    messages = channel.receive(wait=True)
    while not messages:
        messages = channel.receive(wait=True)
    first, *rest = messages
    if not isinstance(first, wire.Start):
        raise StartupError("the first message to a worker must be Start")
    return first.spec, rest


class Loop:
    """Serves one core until the front goes away."""

    def __init__(self, channel: Channel, spec: EngineSpec, crew: Crew | None = None) -> None:
        from gpt_oss_server.engine.core import EngineCore

        def progress(text: str) -> None:
            channel.send(wire.Notice(text) if channel.started else wire.Progress(text))

        self._channel = channel
        outfit = None
        if crew is not None:
            from gpt_oss_server.engine.ranks.leading import equip

            outfit = equip(crew, progress)
        self._core = EngineCore(spec, progress, outfit)
        self._stats_at = 0.0

    def run(self, backlog: list[wire.ToWorker]) -> None:
        core, channel = self._core, self._channel
        settle_heap()
        channel.started = True
        channel.send(wire.Started(core.info()))
        messages = backlog
        while True:
            failures = [f for m in messages if (f := self._take(m)) is not None]
            events = core.step()
            failures += [wire.failure(key, error) for key, error in events.failures]
            stats = None
            now = time.monotonic()
            if not core.has_work or now - self._stats_at >= STATS_INTERVAL_S:
                stats, self._stats_at = core.stats(), now
            if events.deltas or failures or stats is not None:
                channel.send(wire.StepResult(events.deltas, failures, stats))
            messages = channel.receive(wait=not core.has_work)

    def _take(self, message: wire.ToWorker) -> wire.Failure | None:
        if isinstance(message, wire.Submit):
            try:
                self._core.submit(message.key, message.job)
            except ServerError as error:
                return wire.failure(message.key, error)
        elif isinstance(message, wire.Cancel):
            self._core.cancel(message.key)
        elif isinstance(message, wire.Forget):
            self._core.forget(message.session, message.keep_tokens)
        return None


def _start_failure(error: Exception) -> str:
    """One line for an exception that nobody foresaw: what, where, and in what words. A worker that
    starts has seen no prompt yet, whose text these words could hold."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = (str(error).strip() or "no message").splitlines()[0][:300]
    place = f"{os.path.basename(frame.filename)}:{frame.lineno}"
    return f"the engine cannot start: {type(error).__name__} at {place}: {text}"


@contextlib.contextmanager
def _crew_of(spec: EngineSpec, channel: Channel) -> Iterator[Crew | None]:
    """The other ranks' processes while they are needed. If one is lost, so is this process: a call
    to it that fails here is not what the operator should read."""
    if spec.world == 1:
        yield None
        return
    from gpt_oss_server.engine.ranks.crew import Crew, Front

    crew = Crew(spec, Front(channel.sock, channel.alive, channel.last_words))
    try:
        yield crew
    except FrontGone:
        raise
    except Exception:
        crew.await_end()
        raise
    finally:
        crew.close()


def serve(sock: socket.socket) -> int:
    """The worker's life. Returns its exit status."""
    channel = Channel(sock)
    try:
        spec, backlog = _await_spec(channel)
        try:
            with _crew_of(spec, channel) as crew:
                set_threads(spec)
                Loop(channel, spec, crew).run(backlog)
        except FrontGone:
            raise
        except StartupError as error:
            channel.last_words(str(error), error.exit_status)
            return error.exit_status
        except Exception as error:  # noqa: BLE001 - the process ends, whatever it was
            if not channel.started:  # one line to the operator
                channel.last_words(_start_failure(error), 1)
                return 1
            # What the exception says may quote a prompt: it goes nowhere.
            who = "it" if spec.world == 1 else "the leading rank"
            channel.last_words(f"{who} {mishap(error)}", EXIT_CRASH, places(error))
            return EXIT_CRASH
    except FrontGone:
        return 0
    return 0


def settle_allocator(environment: MutableMapping[str, str]) -> None:
    """Have PyTorch's allocator use segments that grow, also in the ranks that this process
    starts, unless the user has said how it is to allocate."""
    if not any(name in environment for name in ALLOCATOR_SETTINGS):
        environment[ALLOCATOR_SETTINGS[0]] = GROWING_SEGMENTS


def main() -> None:
    end_with_parent(int(sys.argv[2]))
    settle_allocator(os.environ)
    # Ctrl-C and a supervisor's SIGTERM reach the whole group: the front decides what they mean,
    # and this process ends when the front closes the socket.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as sock:
        status = serve(sock)
    # Skip interpreter teardown: freeing a large model tensor by tensor only delays the exit.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
