"""The front's end of the engine: starts the worker process, keeps it alive, speaks with it.

Knows: processes, sockets, restarts with backoff. Does not know: torch, text, HTTP. Implements
the `Engine` port; every job that a dying worker leaves behind ends in `EngineFailed`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable

import msgspec

from gpt_oss_server.engine import wire
from gpt_oss_server.engine.delta_stream import DeltaStream
from gpt_oss_server.engine.process_group import end_group
from gpt_oss_server.engine.ranks.faults import ending
from gpt_oss_server.engine.ranks.liveness import LOADING_STILL_S, STILL_S
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.errors import EngineFailed, NotReady, StartupError
from gpt_oss_server.events import Event, WorkerRestarted
from gpt_oss_server.types import EngineInfo, EngineState, EngineStats, Job, TokenDelta

WORKER = "gpt_oss_server.engine.worker"
BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0
# A worker that lived this long did not die of what killed the one before.
STABLE_AFTER_S = 60.0
HANG_CHECK_S = 1.0
STOP_GRACE_S = 5.0
# A forward pass frees and asks again for the same megabytes in every layer. glibc by default
# returns them to the kernel each time and pays for the page faults: at 512 rows an activation
# then takes nine times as long. The worker keeps what it freed; its peak is the same.
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(512 << 20),
}


class _WorkerProtocol(asyncio.Protocol):
    """Parses frames as they arrive and hands each message on, without a task switch."""

    def __init__(
        self,
        on_message: Callable[[wire.ToFront], None],
        on_lost: Callable[[_WorkerProtocol], None],
    ) -> None:
        self._on_message = on_message
        self._on_lost = on_lost
        self._frames = wire.FrameBuffer()
        self._decoder = msgspec.msgpack.Decoder(wire.ToFront)

    def data_received(self, data: bytes) -> None:
        for payload in self._frames.feed(data):
            self._on_message(self._decoder.decode(payload))

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost(self)


class _EndedEarly(Exception):
    """The worker's socket closed before it said that it has started, or why it cannot."""


class EngineClient:
    """A supervised worker. `start` waits for the first one and raises what keeps it from
    starting; later deaths are healed by restarting with exponential backoff, for as long as it
    takes, and until then the state says what is wrong. One that has work and says nothing for
    `spec.hang_after_s` is taken for dead and killed; one that leads several ranks after
    `spec.rank_timeout_s`."""

    def __init__(
        self,
        spec: EngineSpec,
        *,
        on_progress: Callable[[str], None] = lambda _: None,
        emit: Callable[[Event], None] = lambda _: None,
    ) -> None:
        self._spec = spec
        self._on_progress = on_progress
        self._emit = emit
        self._state = EngineState(ready=False, reason="not started")
        self._info: EngineInfo | None = None
        self._stats = EngineStats()
        self._streams: dict[int, DeltaStream] = {}
        self._next_key = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._transport: asyncio.Transport | None = None
        self._connection: _WorkerProtocol | None = None
        self._started: asyncio.Future[EngineInfo] | None = None
        self._lost = asyncio.Event()
        self._last_words = ""
        self._supervisor: asyncio.Task[None] | None = None
        self._was_ready = False
        self._closing = False
        self._trouble = ""
        self._busy_s = 0.0
        self._heard_s = 0.0
        self._alive_s = 0.0

    async def start(self) -> None:
        """Start the worker and wait until it is ready. Raises StartupError."""
        try:
            await self._launch()
        except OSError as error:  # no process, no socket: this machine is out of something
            raise StartupError(
                f"the engine's process cannot be started: {_words(error)}"
            ) from error
        self._supervisor = asyncio.create_task(self._supervise(), name="engine-supervisor")

    def info(self) -> EngineInfo:
        if self._info is None:
            raise NotReady(f"the engine is not ready: {self._state.reason}", retry_after_s=1.0)
        return self._info

    def state(self) -> EngineState:
        return self._state

    def stats(self) -> EngineStats:
        return self._stats

    @property
    def worker_pid(self) -> int | None:
        """The live worker's process id (for operators and for tests that kill it)."""
        return self._process.pid if self._process is not None else None

    @property
    def pids(self) -> tuple[int, ...]:
        """The live worker's process and, where it leads several ranks, theirs, once it is
        ready."""
        if self._process is None:
            return ()
        ranks = self._info.ranks if self._info is not None and self._was_ready else ()
        others = {rank.pid for rank in ranks if rank.pid is not None} - {self._process.pid}
        return (self._process.pid, *sorted(others))

    async def generate(self, job: Job) -> AsyncGenerator[TokenDelta, None]:
        """See the `Engine` port."""
        transport = self._transport
        if not self._state.ready or transport is None:
            raise NotReady(f"the engine is not ready: {self._state.reason}", retry_after_s=1.0)
        key, self._next_key = self._next_key, self._next_key + 1
        if not self._streams:
            self._busy_s = time.monotonic()
        stream = self._streams[key] = DeltaStream()
        try:
            transport.write(wire.frame(wire.Submit(key, job)))
            while not stream.ended:
                yield await stream.get()
        finally:
            del self._streams[key]
            if not stream.ended and transport is self._transport:
                transport.write(wire.frame(wire.Cancel(key)))

    def forget(self, session: str, keep_tokens: int = 0) -> None:
        """See the `Engine` port."""
        if self._transport is not None and self._state.ready:
            self._transport.write(wire.frame(wire.Forget(session, keep_tokens)))

    async def close(self) -> None:
        """End the worker and wait for it; live jobs end in EngineFailed."""
        self._closing = True
        self._state = EngineState(False, "shutting down", self._state.restarts)
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
        await self._end_process(at_once=not self._was_ready)
        self._fail_streams("the server is shutting down")

    async def _launch(self) -> None:
        """One worker from fork to ready. Raises StartupError if it does not get there, and
        whatever the operating system refuses."""
        self._started = asyncio.get_running_loop().create_future()
        self._lost.clear()
        self._last_words = ""
        self._was_ready = False
        self._not_ready("loading the model")
        try:
            await self._connect()
            self._info = await self._until_started(self._started)
        except BaseException as error:
            self._started.cancel()
            await self._end_process(at_once=not isinstance(error, _EndedEarly))
            if isinstance(error, _EndedEarly):
                how = ending(None if self._process is None else self._process.returncode)
                raise StartupError(f"the engine worker {how}, while it was loading") from None
            raise
        self._was_ready = True
        self._trouble = ""
        self._state = EngineState(True, "ready", self._state.restarts)

    async def _until_started(self, started: asyncio.Future[EngineInfo]) -> EngineInfo:
        """What the worker says when it is ready. Raises StartupError, also for one that is
        stopped, where that can be told from one that loads."""
        checked_s = time.monotonic()
        while not (await asyncio.wait((started,), timeout=HANG_CHECK_S))[0]:
            checked_s, before_s = time.monotonic(), checked_s
            silence = self._silence() if _in_time(checked_s, before_s) else ""
            if silence and not started.done():
                raise StartupError(f"the engine cannot start: {silence}")
        return started.result()

    async def _connect(self) -> None:
        """Start the process and send it its specification."""
        self._heard_s = self._alive_s = time.monotonic()
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = self._spawn(theirs)
            self._connection = connection = _WorkerProtocol(self._take, self._connection_lost)
            transport, _ = await asyncio.get_running_loop().create_connection(
                lambda: connection, sock=ours
            )
        except BaseException:
            ours.close()
            raise
        self._transport = transport
        transport.write(wire.frame(wire.Start(self._spec)))

    def _spawn(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        # One OpenMP thread by default: torch.set_num_threads in the worker has the last word,
        # but libraries that size their pools at import must not take every core.
        environment = {
            "OMP_NUM_THREADS": str(self._spec.threads or 1),
            **KEEP_FREED_MEMORY,
            **os.environ,
        }
        return subprocess.Popen(
            [sys.executable, "-m", WORKER, str(theirs.fileno()), str(os.getpid())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=environment,
            # A signal to the front's group must not reach the worker before it can ignore it.
            start_new_session=True,
        )

    async def _supervise(self) -> None:
        """Wait for a death, say so, bring a new worker up; for ever."""
        backoff_s = BACKOFF_FIRST_S
        while True:
            ready_s = time.monotonic()
            await self._until_lost()
            if time.monotonic() - ready_s >= STABLE_AFTER_S:
                backoff_s = BACKOFF_FIRST_S
            try:
                await self._end_process()
            except Exception as error:  # noqa: BLE001 - it lost its channel and will end by itself
                self._last_words = self._last_words or _words(error)
            backoff_s = await self._restart(self._death_reason(), backoff_s)

    async def _restart(self, trouble: str, backoff_s: float) -> float:
        """Try until there is a worker again; the next backoff.

        A start needs files, processes, threads and memory. Whatever is short of them now, and
        however that shows, may have passed at the next try: no exception ends the trying.
        """
        while True:
            self._trouble = trouble
            restarts = self._state.restarts + 1
            self._state = EngineState(False, f"{trouble}; restarting", restarts)
            self._tell(f"{trouble}; restarting in {backoff_s:g} s")
            self._tell_event(WorkerRestarted(trouble, restarts))
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)
            try:
                await self._launch()
            except Exception as error:  # noqa: BLE001 - see above
                trouble = f"restart failed: {_words(error)}"
            else:
                self._tell("the engine is ready again")
                return backoff_s

    def _tell(self, text: str) -> None:
        with contextlib.suppress(Exception):  # a listener's fault must not keep the engine down
            self._on_progress(text)

    def _tell_event(self, event: Event) -> None:
        with contextlib.suppress(Exception):  # likewise
            self._emit(event)

    def _not_ready(self, reason: str) -> None:
        """Say why, and keep saying what went wrong before."""
        if self._trouble:
            reason = f"{reason}, after: {self._trouble}"
        self._state = EngineState(False, reason, self._state.restarts)

    async def _until_lost(self) -> None:
        """Return when the worker is gone, or has hung and been killed."""
        checked_s = time.monotonic()
        while not self._lost.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._lost.wait(), HANG_CHECK_S)
            checked_s, before_s = time.monotonic(), checked_s
            if self._lost.is_set() or not _in_time(checked_s, before_s):
                continue
            if silence := self._silence():
                self._last_words = silence
                if self._process is not None:
                    self._process.kill()
                if self._transport is not None:
                    # One that is stuck in the kernel keeps its end open: nobody waits for that.
                    self._transport.abort()
                await self._lost.wait()

    def _silence(self) -> str:
        """How long the worker has said nothing, where that is too long. One that leads several
        ranks speaks all the time; whatever it is that has stopped it, its ranks wait for it."""
        now_s = time.monotonic()
        busy = self._was_ready and bool(self._streams)
        silent_s = now_s - max(self._heard_s, self._busy_s)
        if busy and silent_s >= self._spec.hang_after_s:
            return f"it had work and said nothing for {silent_s:.0f} s"
        still_s = now_s - max(self._heard_s, self._alive_s)
        limit_s = self._spec.rank_timeout_s
        if not busy:
            limit_s = max(limit_s, STILL_S if self._was_ready else LOADING_STILL_S)
        if self._spec.world > 1 and still_s >= limit_s:
            return f"the leading rank does not respond for {still_s:.0f} s"
        return ""

    def _take(self, message: wire.ToFront) -> None:
        if isinstance(message, wire.Alive):
            self._alive_s = time.monotonic()
            return
        self._heard_s = time.monotonic()
        if isinstance(message, wire.StepResult):
            self._deliver(message)
        elif isinstance(message, wire.Started):
            if self._started is not None and not self._started.done():
                self._started.set_result(message.info)
        elif isinstance(message, wire.StartFailed):
            if self._started is not None and not self._started.done():
                error = StartupError(message.message)
                error.exit_status = message.exit_status
                self._started.set_exception(error)
        elif isinstance(message, wire.Progress):
            self._not_ready(message.text)
            self._tell(message.text)
        elif isinstance(message, wire.Notice):
            self._tell(message.text)
        elif not self._last_words:  # the first are the cause
            self._last_words = message.message
            # It ends now; how long that takes is nobody's wait.
            if not self._closing:
                self._not_ready(self._death_reason())
            self._fail_streams("the engine worker ended while this request ran")
            if message.places:
                self._tell(f"{self._death_reason()}: {message.places}")

    def _deliver(self, result: wire.StepResult) -> None:
        if result.stats is not None:
            self._stats = result.stats
        for key, delta in result.deltas:
            stream = self._streams.get(key)
            if stream is not None:  # else: cancelled while this was on its way
                stream.put(delta)
        for failed in result.failures:
            stream = self._streams.get(failed.key)
            if stream is not None:
                stream.put(wire.error_of(failed))

    def _connection_lost(self, connection: _WorkerProtocol) -> None:
        if connection is not self._connection:  # of a worker that has a successor already
            return
        self._transport = None
        self._connection = None
        self._stats = EngineStats()
        if not self._closing:
            self._not_ready(self._death_reason() if self._last_words else "the engine worker ended")
        if self._started is not None and not self._started.done():
            self._started.set_exception(_EndedEarly())
        self._fail_streams("the engine worker ended while this request ran")
        self._lost.set()

    def _fail_streams(self, reason: str) -> None:
        for stream in self._streams.values():
            stream.put(EngineFailed(reason, retry_after_s=1.0))

    def _death_reason(self) -> str:
        if self._last_words:
            return f"the engine worker failed ({self._last_words})"
        code = self._process.returncode if self._process is not None else None
        return f"the engine worker ended (exit status {code})"

    async def _end_process(self, *, at_once: bool = False) -> None:
        """Close the channel, which ends a healthy worker; kill one that does not listen, or all
        the same."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None
        process = self._process
        if process is None or process.returncode is not None:
            return
        if at_once:
            process.kill()
        try:
            await asyncio.to_thread(process.wait, STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)
        if self._spec.world > 1:
            # What the ranks held is wanted by those that come next.
            await end_group(process.pid, STOP_GRACE_S)


def _in_time(now_s: float, before_s: float) -> bool:
    """Whether a check came about when it was due. This process may have been stopped: then what
    others said meanwhile is still to be read."""
    return now_s - before_s < 3 * HANG_CHECK_S


def _words(error: BaseException) -> str:
    """One line for an operator: a StartupError's own, else what kind of error it was too."""
    first = (str(error).strip() or "no message").splitlines()[0][:300]
    return first if isinstance(error, StartupError) else f"{type(error).__name__}: {first}"
