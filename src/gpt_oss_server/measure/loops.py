"""Closed loops of clients against a server, played politely.

Knows: clients, when to begin and to stop, what came back. Does not know: what is fitted to it.
Nothing is retried: a refusal or an error ends the loop, and the caller says what that means.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from dataclasses import dataclass, field

from gpt_oss_server.errors import StartupError
from gpt_oss_server.measure.asking import Asker, failure_of
from gpt_oss_server.measure.connection import Answer, Connection
from gpt_oss_server.simulate.calibrate.trial import Measured, Pace, Row, Trial

LEAST_REQUESTS = 6
OVERTIME = 3.0
"""A loop that is short of requests goes on for at most so many times its seconds."""


class Refused(StartupError):
    """The server turned a request away (429, or 503) with `concurrency` clients asking."""

    def __init__(self, message: str, concurrency: int) -> None:
        super().__init__(message)
        self.concurrency = concurrency


@dataclass
class _Loop:
    """One loop under way."""

    trial: Trial
    began_s: float
    ends_s: float
    latest_s: float
    shared: str
    rng: random.Random
    rows: list[Row | None] = field(default_factory=list)
    failed: Answer | None = None
    gap_s: float = 0.0

    def goes_on(self) -> bool:
        now_s = time.perf_counter()
        if self.failed is not None or now_s > self.latest_s:
            return False
        wanted = max(LEAST_REQUESTS, 2 * self.trial.concurrency)
        return now_s < self.ends_s or len(self.rows) < wanted

    def pause_s(self) -> float:
        """How long a client thinks before it asks again: about a step, at random. Without it all
        would ask right after a step ended, at the moment that suits the server best or worst."""
        return self.rng.uniform(0.0, 2.0) * self.gap_s


async def play(trial: Trial, asker: Asker, seconds: float) -> Measured:
    """Ask for about `seconds`, and longer where each client has not asked twice by then.

    Raises:
        Refused: the server turned a request away.
        StartupError: it answered with an error, or broke off.
    """
    began_s = time.perf_counter()
    shared = asker.prompts.of(trial.shared_tokens) + " " if trial.shared_tokens else ""
    latest_s = began_s + OVERTIME * seconds
    loop = _Loop(trial, began_s, began_s + seconds, latest_s, shared, asker.prompts.rng)
    connections = [Connection(asker.address) for _ in range(trial.concurrency)]
    try:
        if shared:  # the first one computes what the others find
            await _ask(loop, asker, connections[0])
            loop.rows.clear()
            loop.began_s = time.perf_counter()
        await asyncio.gather(*(_client(loop, asker, one) for one in connections))
    finally:
        for connection in connections:
            connection.close()
    if loop.failed is not None:
        raise _problem(loop.failed, trial)
    rows = tuple(row for row in loop.rows if row is not None)
    if not rows:
        raise StartupError(f"no answer came in {OVERTIME * seconds:.0f} s of {trial.name}")
    if not any(math.isfinite(row.ttft_s) for row in rows):
        raise StartupError(f"stopped at {trial.name}: no answer had any text that could be seen")
    return Measured(trial, (rows,))


async def pace(asker: Asker, seconds: float) -> Pace:
    """Warms the server up for about so long with few clients and short and longer prompts, and
    says how fast it then is for one. Raises as `play`."""
    for _ in range(2):
        await play(Trial(4, 96, 16), asker, seconds / 4)
        short = await play(Trial(1, 32, 16), asker, seconds / 8)
        long = await play(Trial(1, 512, 16), asker, seconds / 8)
    first, later = short.figures(), long.figures()
    more = _mean_input(long) - _mean_input(short)
    prompt_token_s = (later.ttft_s - first.ttft_s) / more if more > 0 else 0.0
    return Pace(max(1e-7, prompt_token_s), max(1e-6, first.tpot_s or 0.0))


def _mean_input(measured: Measured) -> float:
    return sum(row.input_tokens for row in measured.rows) / len(measured.rows)


async def _client(loop: _Loop, asker: Asker, connection: Connection) -> None:
    while loop.goes_on():
        await _ask(loop, asker, connection)
        await asyncio.sleep(loop.pause_s())


async def _ask(loop: _Loop, asker: Asker, connection: Connection) -> None:
    trial, prompts = loop.trial, asker.prompts
    if loop.shared:
        prompt = loop.shared + prompts.of(max(1, trial.input_tokens - trial.shared_tokens))
    else:
        prompt = prompts.of(prompts.near(trial.input_tokens))
    place = len(loop.rows)
    loop.rows.append(None)
    answer = await asker.ask(connection, prompt, prompts.near(trial.output_tokens))
    if not answer.complete or not answer.prompt_tokens:
        loop.failed = loop.failed or answer
        return
    # An answer of tokens that have no text has no first one that anybody sees.
    if answer.first_s is not None and answer.tokens > 1:
        loop.gap_s = (answer.whole_s - answer.first_s) / (answer.tokens - 1)
    loop.rows[place] = Row(
        answer.sent_s - loop.began_s,
        answer.prompt_tokens,
        answer.tokens,
        math.nan if answer.first_s is None else answer.first_s,
        answer.whole_s,
        answer.cached_tokens or 0,
    )


def _problem(answer: Answer, trial: Trial) -> StartupError:
    clients = f"{trial.concurrency} client{'s' if trial.concurrency > 1 else ''}"
    if answer.status in (429, 503):
        after = answer.retry_after_s
        when = "" if after is None else f", retry after {after:.0f} s"
        text = f"the server turned a request of {clients} away (status {answer.status}{when})"
        return Refused(text, trial.concurrency)
    return StartupError(f"stopped at {trial.name}: {failure_of(answer)}")
