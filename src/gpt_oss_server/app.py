"""The composition root: the only place that builds the parts of a server and joins them.

Knows: which part needs which, and in what order they come up. Does not know: how any part works.

A start, in order: GPUs counted against the mode, port taken, HTTP up (not ready, saying why),
model files found or fetched, engine started while the tokenizer loads, ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path

import msgspec
import uvloop

from gpt_oss_server import __version__
from gpt_oss_server.api.app import build_app
from gpt_oss_server.api.auth import KeyRing
from gpt_oss_server.api.services import Limits, ServedModel, Services
from gpt_oss_server.api.stats import Statistics
from gpt_oss_server.config import Settings
from gpt_oss_server.engine.phases import summary
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.errors import ConfigError, StartupError
from gpt_oss_server.events import Event
from gpt_oss_server.gpus import count_gpus
from gpt_oss_server.heap import settle_heap
from gpt_oss_server.http_protocol import ConnectionLimits
from gpt_oss_server.hub import ModelName, ResolvedModel, check_local, identify, resolve_model
from gpt_oss_server.lifecycle import App, HttpServer, StopSignals, drain, in_daemon_thread
from gpt_oss_server.listener import listen, url_of
from gpt_oss_server.model_defaults import (
    generation_config,
    recommended_output_tokens,
    recommended_sampling,
)
from gpt_oss_server.nccl import NcclSettings, nccl_environment
from gpt_oss_server.open_files import connection_bound, raise_open_file_limit
from gpt_oss_server.parts import Instruments, build_advisor, build_desk, check_desk_settings
from gpt_oss_server.paths import check_appendable
from gpt_oss_server.pending import PendingChatFormat, PendingEngine
from gpt_oss_server.ports import ChatFormat, Engine, GpuProbe
from gpt_oss_server.responses_parts import build_store, check_responses_settings
from gpt_oss_server.telemetry.logs import LogWriter
from gpt_oss_server.telemetry.tracing import check_tracing_settings
from gpt_oss_server.telemetry_parts import Telemetry, log_to

log = logging.getLogger(__name__)

_TEXT_THREADS = 2
_BULK_THREADS = 1


def _resolve_model(settings: Settings) -> ResolvedModel:
    return resolve_model(settings.model, weights=settings.load_format != "random")


def _count_gpus() -> int:
    return count_gpus(os.environ)


def _open_chat_format(folder: Path) -> ChatFormat:
    from gpt_oss_server.harmony.formats import open_chat_format

    return open_chat_format(folder, today=date.today)


def _make_engine(spec: EngineSpec, emit: Callable[[Event], None]) -> Engine:
    from gpt_oss_server.engine.client import EngineClient

    return EngineClient(spec, on_progress=partial(log.info, "engine: %s"), emit=emit)


@dataclass(frozen=True)
class Parts:
    """The makers of what reaches outside this process; a test gives its own. `probe` is asked for
    the GPUs instead of the one that fits the engine's device."""

    resolve_model: Callable[[Settings], ResolvedModel] = _resolve_model
    open_chat_format: Callable[[Path], ChatFormat] = _open_chat_format
    make_engine: Callable[[EngineSpec, Callable[[Event], None]], Engine] = _make_engine
    count_gpus: Callable[[], int] = _count_gpus
    probe: GpuProbe | None = None


def serve(settings: Settings, parts: Parts | None = None) -> int:
    """Run the server until a signal; returns the exit status of the process.

    Raises:
        StartupError: one line that says why it cannot start and what to do.
    """
    parts = parts or Parts()
    check_appendable("log_file", settings.log_file)
    check_appendable("decision_log", settings.decision_log)
    check_desk_settings(settings)
    check_tracing_settings(settings)
    check_responses_settings(settings)
    with log_to(settings) as logs:
        logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.getLogger().level))
        status, prepared = _run(settings, parts, logs)
    if not prepared:
        # A download was cut short. Its threads would hold the process until their files are
        # complete; what they have written so far is resumed next time.
        sys.stdout.flush()
        os._exit(status)
    return status


def _run(settings: Settings, parts: Parts, logs: LogWriter) -> tuple[int, bool]:
    """The exit status, and whether the model's files were complete when it ended."""
    _check_gpus(settings, parts.count_gpus)
    identity = identify(settings.model)
    check_local(settings.model, weights=settings.load_format != "random")
    with contextlib.closing(
        listen(settings.host, settings.port, stall_timeout_s=settings.stall_timeout_s)
    ) as listener:
        telemetry = Telemetry(settings, identity, logs)
        server = _Server(settings, parts, identity, listener, telemetry)
        with contextlib.closing(telemetry):
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                status = runner.run(server.run())
            return status, server.prepared


class _Server:
    """One run of the server: what has been built so far, and the way up and down."""

    def __init__(
        self,
        settings: Settings,
        parts: Parts,
        identity: ModelName,
        listener: socket.socket,
        telemetry: Telemetry,
    ) -> None:
        self._settings = settings
        self._parts = parts
        self._identity = identity
        self._listener = listener
        self._telemetry = telemetry
        self._created = int(time.time())
        self._engine: Engine | None = None
        self._instruments: Instruments | None = None
        self._gpus = parts.count_gpus()
        self._spread = spread_of(settings, self._gpus)
        self._nccl: NcclSettings | None = None
        self._text_pool = ThreadPoolExecutor(_TEXT_THREADS, thread_name_prefix="text")
        self._bulk_pool = ThreadPoolExecutor(_BULK_THREADS, thread_name_prefix="bulk")
        self._responses = build_store(settings, os.environ)
        self._draining = False
        self.prepared = True

    async def run(self) -> int:
        """Up, serve, down. Returns the exit status; raises StartupError if it never got up."""
        signals = StopSignals()
        signals.install()
        http = HttpServer(
            self._waiting_app("preparing the model files"),
            self._listener,
            connection_limits(self._settings),
        )
        serving = asyncio.create_task(http.run_until_stopped())
        coming_up = asyncio.create_task(self._come_up(http))
        stop = asyncio.create_task(signals.requested.wait())
        grace_s = 0.0
        try:
            self._announce()
            await asyncio.wait((coming_up, stop, serving), return_when=asyncio.FIRST_COMPLETED)
            if coming_up.done():
                coming_up.result()
                grace_s = self._settings.shutdown_grace_s
                await asyncio.wait((stop, serving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._draining = True
            coming_up.cancel()
            await asyncio.gather(coming_up, return_exceptions=True)
            await drain(http, serving, self._engine, signals, grace_s)
            stop.cancel()
            self._text_pool.shutdown(wait=False, cancel_futures=True)
            self._bulk_pool.shutdown(wait=False, cancel_futures=True)
            if self._instruments is not None:
                self._instruments.close()
            if self._responses is not None:
                self._responses.close()
        if not serving.cancelled():
            serving.result()
        return signals.exit_status

    async def _come_up(self, http: HttpServer) -> None:
        """From an address that answers "not ready" to a server that is."""
        began_s = time.monotonic()
        self.prepared = False
        model = await in_daemon_thread(partial(self._parts.resolve_model, self._settings))
        self.prepared = True
        # Before the worker exists, and so before any communicator does.
        ranks = 1 if self._settings.device == "cpu" else self._spread
        self._nccl = nccl_environment(ranks, self._settings.gpu_mode, os.environ)
        self._nccl.apply(os.environ)
        self._engine = engine = self._parts.make_engine(
            engine_spec(self._settings, model, self._spread), self._telemetry.journal.emit
        )
        # The fake engine of tests has no process.
        self._instruments = instruments = Instruments(
            self._settings, lambda: getattr(engine, "pids", ()), self._parts.probe
        )
        parts = (
            asyncio.create_task(engine.start()),
            asyncio.create_task(self._open_app(http, model, engine, instruments)),
        )
        try:
            await asyncio.gather(*parts)
        finally:
            for part in parts:
                part.cancel()
        info = engine.info()
        instruments.begin(info)
        settle_heap()
        _say(
            f"ready in {time.monotonic() - began_s:.1f} s: {model.short_name} on {info.device} in "
            f"{info.dtype}, context {info.max_model_len} tokens, KV cache for "
            f"{info.kv_token_capacity} tokens"
        )
        if info.startup:
            _say(f"engine: {summary(info.startup)}")

    async def _open_app(
        self, http: HttpServer, model: ResolvedModel, engine: Engine, instruments: Instruments
    ) -> None:
        chat_format = await in_daemon_thread(partial(self._parts.open_chat_format, model.folder))
        journal = self._telemetry.journal
        desk = build_desk(self._settings, engine, instruments, self._gpus, journal)
        services = self._services(engine, chat_format)
        recommended = generation_config(model.folder)
        advisor = build_advisor(self._settings, model.folder, engine, desk)
        statistics = Statistics(desk, engine, self._nccl, instruments.probe_view, advisor)
        observing = self._telemetry.endpoints(engine, desk, instruments, statistics, self._nccl)
        http.app = build_app(
            replace(
                services,
                desk=desk,
                limits=replace(
                    services.limits,
                    default_max_tokens=self._settings.default_max_tokens
                    or recommended_output_tokens(recommended),
                ),
                sampling_defaults=recommended_sampling(recommended)
                if self._settings.sampling_defaults == "model"
                else services.sampling_defaults,
                extra_endpoints=(*statistics.endpoints(), *observing),
            )
        )

    def _waiting_app(self, reason: str) -> App:
        engine = PendingEngine(reason)
        services = self._services(engine, PendingChatFormat(reason))
        observing = self._telemetry.endpoints(engine)
        return build_app(replace(services, extra_endpoints=observing))

    def _services(self, engine: Engine, chat_format: ChatFormat) -> Services:
        settings = self._settings
        admin_keys = (settings.admin_key,) if settings.admin_key else ()
        return Services(
            engine=engine,
            chat_format=chat_format,
            model=ServedModel(
                self._identity.names(settings.served_model_name), created=self._created
            ),
            text_pool=self._text_pool,
            bulk_pool=self._bulk_pool,
            version=__version__,
            limits=Limits(
                max_body_bytes=settings.max_body,
                body_timeout_s=settings.body_timeout_s,
                default_max_tokens=settings.default_max_tokens,
            ),
            api_keys=KeyRing(settings.api_key),
            key_priorities=key_priorities(settings),
            admin_keys=KeyRing(admin_keys),
            draining=lambda: self._draining,
            journal=self._telemetry.journal,
            responses=self._responses,
        )

    def _announce(self) -> None:
        address = url_of(self._listener)
        reachable = url_of(self._listener, reachable=True)
        _say(f"gpt-oss-server {__version__}: {self._identity.short_name} on {address}")
        _say(f"loading; {reachable}/health says when it is ready")


def spread_of(settings: Settings, machine_gpus: int) -> int:
    """Over how many GPUs (or processes on a CPU) the model is spread."""
    if settings.gpu_mode == "single":
        return 1
    return max(1, settings.gpus or machine_gpus)


def engine_spec(settings: Settings, model: ResolvedModel, gpus: int = 1) -> EngineSpec:
    """What the worker must know, out of all settings."""
    return EngineSpec(
        folder=str(model.folder),
        device=settings.device,
        dtype=settings.dtype,
        load_format=settings.load_format,
        weights_seed=settings.weights_seed,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_batch_tokens=settings.max_batch_tokens,
        block_size=settings.block_size,
        kv_cache_bytes=settings.kv_cache_memory,
        memory_budget_bytes=settings.memory_budget,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        prefix_caching=settings.prefix_caching,
        prefill_order=settings.prefill_order,
        prefill_oldest_share=settings.prefill_oldest_share,
        attention_backend=settings.attention_backend,
        experts=settings.experts,
        eager=settings.eager,
        threads=settings.threads,
        hang_after_s=settings.engine_timeout_s,
        show_progress=sys.stderr.isatty(),
        gpu_mode=settings.gpu_mode,
        gpus=gpus,
        max_memory=memory_limits(settings.max_memory),
        device_map=read_device_map(settings.device_map),
        offload=settings.offload,
        micro_batches=settings.micro_batches,
        rank_timeout_s=settings.rank_timeout_s,
    )


def memory_limits(text: str | None) -> dict[str, str] | None:
    """`0=20GiB,cpu=64GiB` by device."""
    if text is None:
        return None
    pairs = (pair.partition("=") for pair in text.split(","))
    return {device: size for device, _, size in pairs}


def read_device_map(file: str | None) -> dict[str, str] | None:
    """Modules and their devices. Raises ConfigError for a file that has something else."""
    if file is None:
        return None
    try:
        found = msgspec.json.decode(Path(file).read_bytes(), type=dict[str, str | int])
    except OSError as error:
        raise ConfigError(f"device_map: {file} cannot be read: {error.strerror}") from None
    except msgspec.DecodeError:
        raise ConfigError(
            f"device_map: {file} must be a JSON object of modules and devices"
        ) from None
    return {module: str(device) for module, device in found.items()}


def key_priorities(settings: Settings) -> tuple[int, ...]:
    """One per API key, or none at all."""
    return tuple(int(digit) for digit in (settings.key_priorities or "").split(",") if digit)


def connection_limits(settings: Settings) -> ConnectionLimits:
    """What clients may take before they have asked for anything."""
    most = connection_bound(raise_open_file_limit())
    return ConnectionLimits(
        header_timeout_s=settings.header_timeout_s,
        keep_alive_s=settings.keep_alive_s,
        connections=min(settings.max_connections or most, most),
    )


def _say(line: str) -> None:
    """For whoever started the server; it goes on if nobody reads it any more."""
    try:
        print(line, flush=True)
    except OSError:
        # Else the interpreter would fail once more at its end, and end with a status of its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _check_gpus(settings: Settings, count: Callable[[], int]) -> None:
    """Refuse a mode that this machine cannot run."""
    if settings.gpu_mode == "single" or settings.device == "cpu":
        return
    present = count()
    # One is enough where what it has no room for may go elsewhere.
    spare = settings.gpu_mode == "auto" and settings.offload != "none"
    wanted = max(1 if spare else 2, settings.gpus or 1)
    if present < wanted:
        raise StartupError(
            f"gpu-mode {settings.gpu_mode} needs at least {wanted} GPUs; this machine has "
            f"{present}: use --gpu-mode single"
        )
