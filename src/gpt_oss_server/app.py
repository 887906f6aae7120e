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
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.errors import StartupError
from gpt_oss_server.events import Event
from gpt_oss_server.gpus import count_gpus
from gpt_oss_server.hub import ModelName, ResolvedModel, identify, resolve_model
from gpt_oss_server.lifecycle import App, HttpServer, StopSignals, drain, in_daemon_thread
from gpt_oss_server.listener import listen, url_of
from gpt_oss_server.nccl import NcclSettings, nccl_environment
from gpt_oss_server.parts import Instruments, build_desk, check_desk_settings
from gpt_oss_server.pending import PendingChatFormat, PendingEngine
from gpt_oss_server.ports import ChatFormat, Engine
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
    """The makers of what reaches outside this process; a test gives its own."""

    resolve_model: Callable[[Settings], ResolvedModel] = _resolve_model
    open_chat_format: Callable[[Path], ChatFormat] = _open_chat_format
    make_engine: Callable[[EngineSpec, Callable[[Event], None]], Engine] = _make_engine
    count_gpus: Callable[[], int] = _count_gpus


def serve(settings: Settings, parts: Parts | None = None) -> int:
    """Run the server until a signal; returns the exit status of the process.

    Raises:
        StartupError: one line that says why it cannot start and what to do.
    """
    parts = parts or Parts()
    check_desk_settings(settings)
    check_tracing_settings(settings)
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
    with contextlib.closing(listen(settings.host, settings.port)) as listener:
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
        self._nccl: NcclSettings | None = None
        self._text_pool = ThreadPoolExecutor(_TEXT_THREADS, thread_name_prefix="text")
        self._bulk_pool = ThreadPoolExecutor(_BULK_THREADS, thread_name_prefix="bulk")
        self._draining = False
        self.prepared = True

    async def run(self) -> int:
        """Up, serve, down. Returns the exit status; raises StartupError if it never got up."""
        signals = StopSignals()
        signals.install()
        http = HttpServer(self._waiting_app("preparing the model files"), self._listener)
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
        self._nccl = nccl_environment(self._gpus, self._settings.gpu_mode, os.environ)
        self._nccl.apply(os.environ)
        self._engine = engine = self._parts.make_engine(
            engine_spec(self._settings, model), self._telemetry.journal.emit
        )
        # The fake engine of tests has no process.
        self._instruments = instruments = Instruments(
            self._settings, lambda: getattr(engine, "worker_pid", None)
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
        print(
            f"ready in {time.monotonic() - began_s:.1f} s: {model.short_name} on {info.device} in "
            f"{info.dtype}, context {info.max_model_len} tokens, KV cache for "
            f"{info.kv_token_capacity} tokens",
            flush=True,
        )

    async def _open_app(
        self, http: HttpServer, model: ResolvedModel, engine: Engine, instruments: Instruments
    ) -> None:
        chat_format = await in_daemon_thread(partial(self._parts.open_chat_format, model.folder))
        journal = self._telemetry.journal
        desk = build_desk(self._settings, engine, instruments, self._gpus, journal)
        services = self._services(engine, chat_format)
        statistics = Statistics(desk, engine, self._nccl)
        observing = self._telemetry.endpoints(engine, desk, instruments, statistics, self._nccl)
        http.app = build_app(
            replace(
                services,
                desk=desk,
                limits=replace(
                    services.limits,
                    default_max_tokens=self._settings.default_max_tokens
                    or default_output_tokens(model.folder),
                ),
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
                max_body_bytes=settings.max_body, default_max_tokens=settings.default_max_tokens
            ),
            api_keys=KeyRing(settings.api_key),
            admin_keys=KeyRing(admin_keys),
            draining=lambda: self._draining,
            journal=self._telemetry.journal,
        )

    def _announce(self) -> None:
        address = url_of(self._listener)
        reachable = url_of(self._listener, reachable=True)
        print(f"gpt-oss-server {__version__}: {self._identity.short_name} on {address}", flush=True)
        print(f"loading; {reachable}/health says when it is ready", flush=True)


def engine_spec(settings: Settings, model: ResolvedModel) -> EngineSpec:
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
        threads=settings.threads,
        hang_after_s=settings.engine_timeout_s,
        show_progress=sys.stderr.isatty(),
    )


def default_output_tokens(folder: Path) -> int | None:
    """The output bound that the model's own generation config gives to requests without one."""
    try:
        config = msgspec.json.decode((folder / "generation_config.json").read_bytes())
    except (OSError, msgspec.DecodeError):
        return None
    bound = config.get("max_new_tokens") if isinstance(config, dict) else None
    return bound if isinstance(bound, int) and bound > 0 else None


def _check_gpus(settings: Settings, count: Callable[[], int]) -> None:
    """Refuse a mode that this machine, or this version, cannot run."""
    if settings.gpu_mode == "single":
        return
    present = count()
    wanted = max(2, settings.gpus or 2)
    if present < wanted:
        raise StartupError(
            f"gpu-mode {settings.gpu_mode} needs at least {wanted} GPUs; this machine has "
            f"{present}: use --gpu-mode single"
        )
    raise StartupError(
        f"gpu-mode {settings.gpu_mode} is not available in this version: use --gpu-mode single"
    )
