"""The ASGI application: finds the endpoint, checks access, and turns every error into an answer.

Knows: which path is whose, and that nothing leaves without the envelope. Does not know: what any
endpoint does, or how to run a server.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable, Iterable

from gpt_oss_server.api.auth import require_admin, require_api_key
from gpt_oss_server.api.chat import chat_completions
from gpt_oss_server.api.completions import completions
from gpt_oss_server.api.exchange import ClientGone, Exchange, Header, Receive, Scope, Send
from gpt_oss_server.api.openapi import openapi
from gpt_oss_server.api.page_files import ChatPage
from gpt_oss_server.api.responses import create_response
from gpt_oss_server.api.responses_count import count_input_tokens
from gpt_oss_server.api.responses_stored import cancel_response, delete_response, read_response
from gpt_oss_server.api.services import UNDECIDED, Access, Endpoint, Services
from gpt_oss_server.api.status import get_model, health, list_models, live, version
from gpt_oss_server.api.tokens import detokenize, tokenize
from gpt_oss_server.api.visit import Visit
from gpt_oss_server.errors import Internal, MethodNotAllowed, NotFound, NotReady, ServerError
from gpt_oss_server.events import OK

_log = logging.getLogger(__name__)

Application = Callable[[Scope, Receive, Send], Awaitable[None]]

ENDPOINTS = (
    Endpoint("POST", "/v1/chat/completions", chat_completions, takes_work=True, operation="chat"),
    Endpoint("POST", "/v1/completions", completions, takes_work=True, operation="text_completion"),
    Endpoint("POST", "/v1/responses", create_response, takes_work=True, operation="responses"),
    Endpoint("POST", "/v1/responses/input_tokens", count_input_tokens, takes_work=True),
    Endpoint("GET", "/v1/responses/{id}", read_response),
    Endpoint("DELETE", "/v1/responses/{id}", delete_response),
    Endpoint("POST", "/v1/responses/{id}", cancel_response),
    Endpoint("GET", "/v1/models", list_models),
    Endpoint("GET", "/v1/models/{id}", get_model),
    Endpoint("POST", "/tokenize", tokenize, takes_work=True),
    Endpoint("POST", "/detokenize", detokenize, takes_work=True),
    Endpoint("GET", "/health", health, Access.OPEN),
    Endpoint("GET", "/live", live, Access.OPEN),
    Endpoint("GET", "/version", version, Access.OPEN),
    Endpoint("GET", "/openapi.json", openapi, Access.OPEN),
)


def build_app(services: Services) -> Application:
    """The ASGI application over these services. Reads the chat page and starts nothing: the
    engine's life belongs to whoever built it."""
    paths = _Paths((*ENDPOINTS, *ChatPage.load().endpoints(), *services.extra_endpoints))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            await _serve(Exchange(scope, receive, send, UNDECIDED), paths, services)
        else:
            await send({"type": "websocket.close", "code": 1003})

    return app


async def _serve(exchange: Exchange, paths: _Paths, services: Services) -> None:
    """Answer, and tell the journal how it ended, whatever happens."""
    visit = Visit(exchange, services.journal)
    try:
        endpoint = paths.find(exchange)
        visit.found(endpoint)
        _check_access(endpoint, exchange, services)
        if endpoint.takes_work and services.draining():
            raise NotReady("The server is shutting down.", retry_after_s=5.0)
        await endpoint.handle(exchange, services)
        visit.outcome = OK
    except ClientGone:
        pass
    except asyncio.CancelledError:
        # Only the end of the server cancels a request; it ends here, and is told like any other.
        error = NotReady("The server is shutting down.", retry_after_s=5.0)
        visit.failed(error)
        await exchange.fail(error)
    except _WrongVerb as wrong:
        visit.failed(wrong)
        await exchange.fail(wrong, (wrong.allow,))
    except ServerError as refusal:
        visit.failed(refusal)
        await exchange.fail(refusal)
    except Exception as bug:  # noqa: BLE001 - the one place where a bug becomes an answer
        _log_bug(bug, exchange)
        internal = Internal(f"An internal error occurred (request id {exchange.request_id}).")
        visit.failed(internal)
        await exchange.fail(internal)
    finally:
        visit.end()


def _check_access(endpoint: Endpoint, exchange: Exchange, services: Services) -> None:
    authorization = exchange.header(b"authorization")
    if endpoint.access is Access.API:
        require_api_key(services.api_keys, authorization)
    elif endpoint.access is Access.ADMIN:
        require_admin(services.admin_keys, authorization, exchange.client_host)


def _log_bug(bug: Exception, exchange: Exchange) -> None:
    # Not the message: a library's exception may quote the text it choked on.
    frames = traceback.extract_tb(bug.__traceback__)
    where = " > ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames)
    _log.error(
        "internal error: %s at %s (request_id=%s, path=%s)",
        type(bug).__name__,
        where,
        exchange.request_id,
        exchange.path,
    )


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


class _WrongVerb(MethodNotAllowed):
    """A verb that a known path does not have; `allow` is the header that says which it has."""

    def __init__(self, allowed: str) -> None:
        super().__init__(f"This method is not allowed here; allowed: {allowed}.")
        self.allow: Header = (b"allow", allowed.encode())


class _Paths:
    """Path → verb → endpoint: exact paths first, then those that end in `{name}`."""

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        self._exact: dict[str, dict[str, Endpoint]] = {}
        self._open: dict[str, dict[str, Endpoint]] = {}
        for endpoint in endpoints:
            prefix, brace, _ = endpoint.path.partition("{")
            table = self._open if brace else self._exact
            table.setdefault(prefix, {})[endpoint.method] = endpoint

    def find(self, exchange: Exchange) -> Endpoint:
        """The endpoint of the request; sets `exchange.rest`. Raises NotFound or _WrongVerb."""
        verbs = self._exact.get(exchange.path) or self._find_open(exchange)
        if verbs is None:
            raise NotFound(
                f"Unknown request URL: {exchange.method} {exchange.path[:200]}.", code="unknown_url"
            )
        endpoint = verbs.get("GET" if exchange.method == "HEAD" else exchange.method)
        if endpoint is None:
            raise _WrongVerb(", ".join(sorted(verbs)))
        return endpoint

    def _find_open(self, exchange: Exchange) -> dict[str, Endpoint] | None:
        for prefix, verbs in self._open.items():
            if exchange.path.startswith(prefix) and len(exchange.path) > len(prefix):
                exchange.rest = exchange.path[len(prefix) :]
                return verbs
        return None
