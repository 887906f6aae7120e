"""Everything the HTTP surface is given, in one frozen object; nothing is looked up elsewhere.

Knows: the names of the things an endpoint may use. Does not know: how any of them is built (the
composition root does that) or which endpoint uses which.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Literal, Protocol

from gpt_oss_server.api.auth import KeyRing
from gpt_oss_server.api.sampling import OPENAI_DEFAULTS, SamplingDefaults
from gpt_oss_server.dispatch.desk import Call, Lease, OpenDesk
from gpt_oss_server.errors import NotFound, NotReady
from gpt_oss_server.events import Operation
from gpt_oss_server.facts import NO_TRIGGER_REASON, Route
from gpt_oss_server.ports import ChatFormat, Engine
from gpt_oss_server.responses_store.thread import ResponseStore
from gpt_oss_server.trail import Journal
from gpt_oss_server.types import EngineInfo

if TYPE_CHECKING:
    from gpt_oss_server.api.exchange import Exchange


@dataclass(frozen=True)
class RouteLabel:
    """Where a request runs and why; becomes `X-Route` and `X-Route-Reason`. What its KV cache was
    predicted to take at most becomes `X-KV-Predicted-Bytes`; None where nobody predicted it."""

    route: Route
    reason: str
    predicted_kv_bytes: int | None = None


UNDECIDED = RouteLabel("single_gpu", NO_TRIGGER_REASON)
"""The label of a response for which no decision was taken (errors, `/health`)."""


class FrontDesk(Protocol):
    """What every generation passes: it decides where the request runs, waits until it may, and
    holds what it takes for as long as the block runs."""

    def admit(self, call: Call) -> AbstractAsyncContextManager[Lease]:
        """Raises NotReady, Overloaded or ContextTooLong."""
        ...


@dataclass(frozen=True)
class Limits:
    """Bounds that protect the front process.

    `max_choices` counts the sequences of one request: `n`, times the prompts of a completion.
    A body larger than `parse_inline_bytes` is parsed in a pool, off the event loop, and all work
    on one larger than `bulk_bytes` is done in the pool for bulk. A body must be complete
    `body_timeout_s` after its headers.
    `default_max_tokens` bounds a chat answer that the client left open (None: the context does).
    """

    max_body_bytes: int = 8 * 2**20
    body_timeout_s: float = 60.0
    max_choices: int = 128
    parse_inline_bytes: int = 64 * 2**10
    bulk_bytes: int = 256 * 2**10
    default_max_tokens: int | None = None


@dataclass(frozen=True)
class ServedModel:
    """The one model behind this server. Clients may use any of `ids`; answers carry the first.

    `created` is a Unix time in seconds.
    """

    ids: tuple[str, ...]
    created: int = 0
    owned_by: str = "gpt-oss-server"

    @property
    def id(self) -> str:
        return self.ids[0]

    def resolve(self, name: str) -> str:
        """The id to answer with. Raises NotFound (`model_not_found`) for a model not served."""
        if name not in self.ids:
            raise NotFound(
                f"The model `{name[:200]}` does not exist or is not served here. "
                f"Served: {', '.join(self.ids)}.",
                param="model",
                code="model_not_found",
            )
        return self.id


class Access(Enum):
    """Who may call an endpoint."""

    OPEN = "open"
    API = "api"
    ADMIN = "admin"


@dataclass(frozen=True)
class Endpoint:
    """One path and verb. `path` may end in `{name}`, which takes the rest of the path.

    `takes_work` marks endpoints that are refused with 503 while the server drains; `operation`
    those that generate, each of whose requests ends in one record.
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str
    handle: Callable[[Exchange, Services], Awaitable[None]]
    access: Access = Access.API
    takes_work: bool = False
    operation: Operation | None = None


def _never_draining() -> bool:
    return False


def _draw_seed() -> int:
    return secrets.randbits(63)


@dataclass(frozen=True, kw_only=True)
class Services:
    """What the endpoints work with.

    Args:
        engine: turns ids into ids; may be not ready yet, or for a while.
        chat_format: the model's text side; thread-safe.
        model: the names it is served under.
        text_pool: bounded pool in which rendering and tokenising run.
        bulk_pool: another one, for large bodies, so that nobody else waits for theirs; without
            one they share the text pool.
        sampling_defaults: of parameters that a request leaves open.
        key_priorities: one per key of `api_keys`, or none: its requests' priority and the highest
            that they may ask for.
        draining: True once shutdown has begun; new work is then refused with 503.
        clock: Unix time in seconds, for `created`.
        draw_seed: a seed in [0, 2^63) for a request that brings none.
        journal: is told of every request.
        responses: where responses are kept; None: nowhere.
        extra_endpoints: endpoints of other rooms (statistics, metrics, administration).
    """

    engine: Engine
    chat_format: ChatFormat
    model: ServedModel
    text_pool: Executor
    bulk_pool: Executor | None = None
    version: str = "0"
    system_fingerprint: str = "fp_gpt_oss_server"
    limits: Limits = field(default_factory=Limits)
    sampling_defaults: SamplingDefaults = OPENAI_DEFAULTS
    api_keys: KeyRing = field(default_factory=KeyRing)
    admin_keys: KeyRing = field(default_factory=KeyRing)
    key_priorities: tuple[int, ...] = ()
    desk: FrontDesk = field(default_factory=OpenDesk)
    draining: Callable[[], bool] = _never_draining
    clock: Callable[[], float] = time.time
    draw_seed: Callable[[], int] = _draw_seed
    journal: Journal = field(default_factory=Journal)
    responses: ResponseStore | None = None
    extra_endpoints: tuple[Endpoint, ...] = ()

    def pool_for(self, body_bytes: int) -> Executor:
        """Where a request whose body has this size is parsed and rendered."""
        if self.bulk_pool is not None and body_bytes > self.limits.bulk_bytes:
            return self.bulk_pool
        return self.text_pool

    def ready_engine_info(self) -> EngineInfo:
        """What the engine is. Raises NotReady, with the engine's own reason, if it is not up."""
        state = self.engine.state()
        if not state.ready:
            raise NotReady(f"The model is not ready: {state.reason}", retry_after_s=5.0)
        return self.engine.info()
