"""Trials on several processes.

Knows: worker processes, each with all traffics, and a pipe to each. Does not know: what is tried,
or why. Workers are started anew (not forked) and end with the parent, or when it says so.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from types import TracebackType

from gpt_oss_server.errors import StartupError
from gpt_oss_server.simulate.plan.trials import Player, Trial, Verdict

_GONE = (
    "a simulating process ended by itself, for lack of memory perhaps: try fewer (--jobs 1) or a "
    "smaller --budget-s"
)


class ProcessRunner:
    """`trials.Runner` over `processes` workers. A context manager; leaving it ends them, whatever
    they are at."""

    def __init__(self, player: Player, processes: int) -> None:
        self.slots = processes
        context = multiprocessing.get_context("spawn")
        self._workers = []
        self._idle: list[Connection] = []
        self._busy: dict[Connection, Trial] = {}
        self._waiting: deque[Trial] = deque()
        resource_tracker.ensure_running()  # it lets interrupts through again once it runs
        for _ in range(processes):
            ours, theirs = context.Pipe()
            worker = context.Process(target=_work, args=(theirs, player), daemon=True)
            with _uninterrupted():
                worker.start()
            theirs.close()
            self._workers.append(worker)
            self._idle.append(ours)

    def __enter__(self) -> ProcessRunner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pipe in (*self._idle, *self._busy):
            pipe.close()
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            worker.join()

    def submit(self, trial: Trial) -> None:
        self._waiting.append(trial)
        self._feed()

    def take(self) -> tuple[Trial, Verdict]:
        """Raises what the trial raised, and StartupError where a worker is gone."""
        pipe = wait(list(self._busy))[0]
        assert isinstance(pipe, Connection)  # nothing else is waited for
        trial = self._busy.pop(pipe)
        try:
            answer = pipe.recv()
        except (EOFError, OSError) as error:
            pipe.close()
            raise StartupError(_GONE) from error
        self._idle.append(pipe)
        self._feed()
        if isinstance(answer, StartupError):
            raise answer
        return trial, answer

    def _feed(self) -> None:
        while self._idle and self._waiting:
            pipe, trial = self._idle.pop(), self._waiting.popleft()
            try:
                pipe.send(trial)
            except OSError as error:
                pipe.close()
                raise StartupError(_GONE) from error
            self._busy[pipe] = trial


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """A process that is started meanwhile hears no interrupt before it can say what it makes of
    one; ours comes afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(pipe: Connection, player: Player) -> None:
    """A worker: plays what comes until the parent is gone. An interrupt is the parent's matter."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            trial: Trial = pipe.recv()
        except EOFError:
            return
        try:
            answer: Verdict | StartupError = player.play(trial)
        except StartupError as error:  # what is wrong with the inputs; a bug ends the worker
            answer = error
        try:
            pipe.send(answer)
        except OSError:  # the parent is gone
            return
