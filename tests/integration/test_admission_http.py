"""Admission over real HTTP: who waits, who is turned away with 429, and what is left behind."""

from __future__ import annotations

import asyncio
import json
import random
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from desk_server import DeskServer, completion, desk_server
from live_server import TIMEOUT_S

from gpt_oss_server.engine.fake import Script

COMPLETIONS = "/v1/completions"


def post(live: DeskServer, pool: ThreadPoolExecutor, *size: int, **headers: str) -> Future[Any]:
    """A completion of this size, on its way."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return pool.submit(live.http.post, COMPLETIONS, json=completion(*size), headers=names)


def assert_at_rest(live: DeskServer) -> dict[str, Any]:
    """Nothing runs, waits or is held; returns admission's counts."""
    live.until_admission(running=0, waiting=0)
    admission = live.stats()["admission"]
    assert set(admission["blocks_used"].values()) == {0}
    assert live.engine.active == 0
    counts = admission["counts"]
    started = counts["accepted"] + counts["shrunk"] + counts["started_from_queue"]
    assert started == counts["released"] + counts["cancelled_running"]
    return dict(counts)


def test_openai_s_client_is_told_to_come_back() -> None:
    """Full and no place to wait: RateLimitError with `Retry-After`, in OpenAI's envelope."""
    with desk_server(admission={"max_queue_length": 0}) as live, ThreadPoolExecutor() as pool:
        live.steer(live.engine.close_gate)
        running = post(live, pool, 900, 5)
        live.until_admission(running=1)
        with pytest.raises(openai.RateLimitError) as caught:
            live.openai().completions.create(**completion(500))
        assert caught.value.status_code == 429
        assert caught.value.response.headers["retry-after"] == "5"
        assert caught.value.type == "rate_limit_error"
        assert caught.value.code == "overloaded"
        live.steer(live.engine.open_gate)
        assert running.result().status_code == 200
        assert assert_at_rest(live)["rejected"] == 1


def test_waiting_too_long_is_429_too() -> None:
    """At its deadline a request leaves the queue; it never reaches the engine."""
    with desk_server(admission={"max_wait_s": 0.05}) as live, ThreadPoolExecutor() as pool:
        live.steer(live.engine.close_gate)
        running = post(live, pool, 900, 5)
        live.until_admission(running=1)
        late = live.http.post(COMPLETIONS, json=completion(500))
        assert late.status_code == 429
        assert int(late.headers["retry-after"]) >= 1
        assert "without a place (deadline)" in late.json()["error"]["message"]
        live.steer(live.engine.open_gate)
        assert running.result().status_code == 200
        assert assert_at_rest(live)["expired"] == 1
        assert len(live.engine.jobs) == 1


def test_the_client_s_own_retries_get_through() -> None:
    """OpenAI's client waits as long as it is told and then is served."""
    admission = {"max_queue_length": 0, "retry_fallback_s": 1}
    with desk_server(admission=admission) as live, ThreadPoolExecutor() as pool:
        live.steer(live.engine.close_gate)
        running = post(live, pool, 900, 5)
        live.until_admission(running=1)
        client = live.openai().with_options(max_retries=5)
        retried = pool.submit(client.completions.create, **completion(500))
        while live.stats()["admission"]["counts"]["rejected"] == 0:
            pass
        live.steer(live.engine.open_gate)
        assert running.result().status_code == 200
        assert retried.result().choices[0].finish_reason == "length"
        assert_at_rest(live)


def test_priority_goes_first() -> None:
    """Of two that wait, the later one with the higher priority starts first."""
    with desk_server() as live, ThreadPoolExecutor() as pool:
        live.steer(live.engine.close_gate)
        answers = [post(live, pool, 900, 5)]
        live.until_admission(running=1)
        answers.append(post(live, pool, 901, 5, x_priority="1"))
        live.until_admission(waiting=1)
        answers.append(post(live, pool, 902, 5, x_priority="6"))
        live.until_admission(waiting=2)
        live.steer(live.engine.open_gate)
        assert [answer.result().status_code for answer in answers] == [200, 200, 200]
        assert [len(job.prompt) for job in live.engine.jobs] == [900, 902, 901]
        assert_at_rest(live)


def test_a_client_that_leaves_while_it_waits() -> None:
    """It is taken out of the queue, at once, and never reaches the engine."""
    body = json.dumps(completion(500)).encode()
    request = (
        f"POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode() + body
    with desk_server() as live, ThreadPoolExecutor() as pool:
        live.steer(live.engine.close_gate)
        running = post(live, pool, 900, 5)
        live.until_admission(running=1)
        with live.connect() as client:
            client.sendall(request)
            live.until_admission(waiting=1)
        live.until_admission(waiting=0)
        live.steer(live.engine.open_gate)
        assert running.result().status_code == 200
        counts = assert_at_rest(live)
        assert (counts["cancelled_waiting"], len(live.engine.jobs)) == (1, 1)


def test_who_waits_sees_nothing_of_a_crash() -> None:
    """What ran ends in 503; what waited is answered once the engine is back; nothing is held."""
    with desk_server() as live, ThreadPoolExecutor() as pool:
        live.steer(live.engine.close_gate)
        running = post(live, pool, 900, 5)
        live.until_admission(running=1)
        waiting = post(live, pool, 500, 5)
        live.until_admission(waiting=1)
        live.steer(live.engine.crash)
        assert running.result().status_code == 503
        live.until_admission(running=0, waiting=1)
        assert live.http.post(COMPLETIONS, json=completion(500)).status_code == 503
        live.steer(live.engine.recover)
        live.steer(live.engine.open_gate)
        assert waiting.result().status_code == 200
        assert_at_rest(live)
        assert live.stats()["gpu_routing"]["executed"] == {"single_gpu": 1, "multi_gpu": 0}


def test_who_waits_for_a_crashed_engine_in_vain() -> None:
    """503 with Retry-After when its time is up, and not before the engine had that time."""
    with desk_server(admission={"max_wait_s": 0.5}) as live, ThreadPoolExecutor() as pool:
        live.steer(live.engine.close_gate)
        running = post(live, pool, 900, 5)
        live.until_admission(running=1)
        waiting = post(live, pool, 500, 5)
        live.until_admission(waiting=1)
        live.steer(live.engine.crash)
        answer = waiting.result()
        assert running.result().status_code == answer.status_code == 503
        assert answer.json()["error"]["code"] == "not_ready"
        assert "being restarted" in answer.json()["error"]["message"]
        assert int(answer.headers["retry-after"]) >= 1
        assert assert_at_rest(live)["expired"] == 1


async def _storm(url: str, seed: int) -> dict[int, int]:
    """300 requests in waves of 40 at once, a third of them abandoned; statuses by number."""
    rng = random.Random(seed)
    seen: dict[int, int] = {}
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S) as http:
        places = asyncio.Semaphore(40)

        async def one() -> None:
            size = rng.choice((1, 50, 400, 900, 2000)), rng.randint(1, 50)
            stream, patience_s = rng.random() < 0.5, rng.random() * 0.05
            leaves = rng.random() < 0.33
            async with places:
                body = completion(*size, stream=stream)
                work = asyncio.ensure_future(http.post(COMPLETIONS, json=body))
                done, _ = await asyncio.wait((work,), timeout=patience_s if leaves else None)
                if not done:
                    work.cancel()
                    await asyncio.gather(work, return_exceptions=True)
                    return
                status = work.result().status_code
                seen[status] = seen.get(status, 0) + 1

        await asyncio.gather(*(one() for _ in range(300)))
    return seen


@pytest.mark.parametrize("mode", ["optimistic", "worst_case"])
def test_a_storm_over_http(mode: str) -> None:
    """Requests of all sizes, a third abandoned at random moments: 200, 400 or 429 and nothing
    else, and in the end nothing is held and the figures add up."""
    admission = {"mode": mode, "max_queue_length": 10, "max_wait_s": 2.0}
    with desk_server(admission=admission, script=lambda _: Script((20,))) as live:
        seen = asyncio.run(_storm(live.url, seed=5))
        assert set(seen) == {200, 400, 429}
        counts = assert_at_rest(live)
        stats = live.stats()["gpu_routing"]
        assert counts["offered"] == stats["total_requests"]
        assert seen[200] <= stats["executed"]["single_gpu"] <= counts["released"]
        assert live.memory()["kv"]["reserved_bytes"] == 0
        assert live.memory()["sessions"]["active"] == 0
