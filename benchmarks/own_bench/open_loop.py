"""Plays a workload against real servers at its own moments, and says what came of each request.

Knows: arrivals, replicas, a ranking policy as the splitter. Does not know: models, figures. The
splitter is the simulator's dispatcher in miniature: the same policy code over the same view, of
which it fills what such policies look at (who is up, how many each has in flight).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gpt_oss_server.measure.asking import Asker
from gpt_oss_server.measure.connection import Address, Answer, Connection
from gpt_oss_server.measure.prompts import Prompts
from gpt_oss_server.routing.policies.view import Ask, PoolFacts, RankingPolicy, ReplicaState
from gpt_oss_server.simulate.workload.requests import Request

TIMEOUT_S = 120.0


class Played(NamedTuple):
    """One request as it went: when it was sent, tokens as the server counted them, seconds from
    its sending; `replica` is where."""

    at_s: float
    input_tokens: int
    output_tokens: int
    ttft_s: float
    e2e_s: float
    replica: int


@dataclass
class Replica:
    """One upstream: its requests in flight and idle connections."""

    id: str
    asker: Asker
    facts: PoolFacts
    in_flight: int = 0

    def __post_init__(self) -> None:
        self.idle: list[Connection] = []

    def state(self) -> ReplicaState:
        return ReplicaState(id=self.id, pool=self.facts, in_flight=self.in_flight)


async def settled(address: Address, model: str, seed: int) -> Asker:
    """An asker that knows the server's tokenizer and fields."""
    prompts = Prompts(random.Random(seed))
    asker = Asker(address, model, "completions", prompts, TIMEOUT_S)
    connection = Connection(address)
    try:
        await asker.settle(connection)
    finally:
        connection.close()
    return asker


async def play(
    requests: Sequence[Request], replicas: Sequence[Replica], rule: RankingPolicy
) -> list[Played]:
    """All requests, each when its time has come, whatever became of those before. Raises
    RuntimeError where one was not answered."""
    began_s = time.perf_counter()
    tasks = []
    for number, request in enumerate(requests):
        prompt = replicas[0].asker.prompts.of(request.input_tokens)
        wait_s = began_s + request.arrival_s - time.perf_counter()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        tasks.append(asyncio.create_task(_one(number, request, prompt, replicas, rule, began_s)))
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for replica in replicas:
            for connection in replica.idle:
                connection.close()
            replica.idle.clear()


async def _one(
    number: int,
    request: Request,
    prompt: str,
    replicas: Sequence[Replica],
    rule: RankingPolicy,
    began_s: float,
) -> Played:
    ask = Ask(number=number, input_tokens=request.input_tokens, expected_output_tokens=1.0)
    best = rule.rank(ask, [replica.state() for replica in replicas])[0]
    place = next(i for i, replica in enumerate(replicas) if replica.id == best.id)
    replica = replicas[place]
    connection = replica.idle.pop() if replica.idle else Connection(replica.asker.address)
    replica.in_flight += 1
    try:
        answer = await replica.asker.ask(connection, prompt, request.output_tokens)
    finally:
        replica.in_flight -= 1
        replica.idle.append(connection)
    return _played(answer, began_s, place)


def _played(answer: Answer, began_s: float, place: int) -> Played:
    if not answer.complete:
        raise RuntimeError(f"a request failed: status {answer.status}, {answer.error}")
    return Played(
        answer.sent_s - began_s,
        answer.prompt_tokens,
        answer.tokens,
        float("nan") if answer.first_s is None else answer.first_s,
        answer.whole_s,
        place,
    )
