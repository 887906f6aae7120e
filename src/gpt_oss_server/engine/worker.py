"""The engine's own process: reads jobs from a socket, steps the core, writes results.

Run as `python -m gpt_oss_server.engine.worker FD` by `client`, FD being one end of a socket
pair. The loop is single-threaded: it looks at the socket between steps, and sleeps on it when
there is nothing to do. It ends when the socket does, so it never outlives its front.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
import traceback

import msgspec

from gpt_oss_server.engine import wire
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.errors import ServerError, StartupError
from gpt_oss_server.heap import settle_heap

STATS_INTERVAL_S = 0.1
EXIT_CRASH = 70


class FrontGone(Exception):
    """The front closed its end: time to go."""


class Channel:
    """The worker's end of the socket pair."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        # Not select(): the number of this end is the front's, where a thousand connections may
        # have been open when it started this worker, and select() ends at 1024.
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._frames = wire.FrameBuffer()
        self._decoder = msgspec.msgpack.Decoder(wire.ToWorker)

    def send(self, message: wire.ToFront) -> None:
        try:
            self._sock.sendall(wire.frame(message))
        except OSError as error:
            raise FrontGone from error

    def receive(self, *, wait: bool) -> list[wire.ToWorker]:
        """What has arrived; with `wait`, sleeps until something has. Raises FrontGone."""
        messages: list[wire.ToWorker] = []
        while self._poll.poll(None if wait and not messages else 0):
            try:
                data = self._sock.recv(1 << 20)
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


def _set_threads(spec: EngineSpec) -> None:
    """`threads` 0 leaves one core to the front: two busy torch threads on two cores slow both
    processes down by up to ten times."""
    import torch

    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(spec.threads or max(1, cores - 1))


class Loop:
    """Serves one core until the front goes away."""

    def __init__(self, channel: Channel, spec: EngineSpec) -> None:
        from gpt_oss_server.engine.core import EngineCore

        self._channel = channel
        self._core = EngineCore(spec, lambda text: channel.send(wire.Progress(text)))
        self._stats_at = 0.0

    def run(self, backlog: list[wire.ToWorker]) -> None:
        core, channel = self._core, self._channel
        settle_heap()
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
    """One line for an exception that nobody foresaw: what, where, and in what words."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = (str(error).strip() or "no message").splitlines()[0][:300]
    place = f"{os.path.basename(frame.filename)}:{frame.lineno}"
    return f"the engine cannot start: {type(error).__name__} at {place}: {text}"


def serve(sock: socket.socket) -> int:
    """The worker's life. Returns its exit status."""
    channel = Channel(sock)
    try:
        spec, backlog = _await_spec(channel)
        try:
            _set_threads(spec)
            loop = Loop(channel, spec)
        except StartupError as error:
            channel.send(wire.StartFailed(str(error), error.exit_status))
            return error.exit_status
        except FrontGone:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it was, it is one line to the operator
            channel.send(wire.StartFailed(_start_failure(error), 1))
            return 1
        try:
            loop.run(backlog)
        except FrontGone:
            raise
        except Exception as error:  # noqa: BLE001 - the process ends, whatever it was
            # The trace goes to the operator's terminal; its locals, which hold prompts, do not.
            traceback.print_exc()
            channel.send(wire.Crashed(type(error).__name__))
            return EXIT_CRASH
    except FrontGone:
        return 0
    return 0


def main() -> None:
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
