"""From the wire to a typed request, and the pool in which the rest of its text work runs.

Knows: what is parsed in place and what in which pool, and that nobody parses for a client that has
left. Does not know: any particular request.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar

from gpt_oss_server.api.exchange import Exchange
from gpt_oss_server.api.parsing import RequestT, parse
from gpt_oss_server.api.services import Services

T = TypeVar("T")


async def read_request(
    exchange: Exchange, services: Services, model: type[RequestT]
) -> tuple[RequestT, Executor]:
    """The request, and the pool for what is to be done with its text.

    Raises what reading the body raises, and BadRequest naming the first parameter at fault.
    """
    limits = services.limits
    body = await exchange.read_json_body(limits.max_body_bytes, timeout_s=limits.body_timeout_s)
    pool = services.pool_for(len(body))
    if len(body) <= limits.parse_inline_bytes:
        return parse(model, body), pool
    return await exchange.while_connected(in_pool(pool, partial(parse, model, body))), pool


async def in_pool(pool: Executor, work: Callable[[], T]) -> T:
    """Run `work` in a pool, so that the event loop never waits for it. Work that has not begun
    when the caller is cancelled never does."""
    context = contextvars.copy_context()  # for the ids that log lines carry
    return await asyncio.get_running_loop().run_in_executor(pool, context.run, work)
