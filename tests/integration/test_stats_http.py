"""Headers, `/stats` and `/memory_stats` over real HTTP tell one consistent story."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from desk_server import MB, completion, desk_server

from gpt_oss_server.admission import SessionConfig
from gpt_oss_server.engine.fake import Script
from gpt_oss_server.errors import EngineFailed
from gpt_oss_server.routing import RoutingConfig

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
ROUTING = RoutingConfig(
    large_input_tokens=100, large_kv_mb=6, pressure_input_tokens=50, pressure_kv_mb=5
)
# (prompt, output bound): one of each kind at a pressure of 0.9; 16 tokens are a mebibyte of KV.
KINDS = {
    "none": (10, 2),
    "large_input": (150, 2),
    "large_kv": (20, 100),
    "memory_pressure": (60, 2),
}


def adds_up(section: dict[str, Any]) -> bool:
    return bool(
        section["total_requests"] == section["single_gpu_requests"] + section["route4_gpu_requests"]
        and section["route4_gpu_requests"] == sum(section["route4_triggers"].values())
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_a_large_request_is_told_where_it_ran_and_why(path: str, stream: bool) -> None:
    """Both endpoints, streamed or not: the header has the decision's reason."""
    body = completion(150, stream=stream)
    if path == CHAT:
        body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
    with desk_server(routing=ROUTING) as live:
        answer = live.http.post(path, json=body)
        tokens = live.records[0].facts.input_tokens
        assert answer.status_code == 200
        assert answer.headers["x-route"] == "single_gpu"
        assert answer.headers["x-route-reason"] == (
            f"large_input: {tokens} > 100 tokens; large_kv: "
            f"{(tokens + 16) // 16} > 6 MB; no multi-GPU replica"
        )
        small = live.http.post(
            path,
            json=body | {"prompt": "x"}
            if path != CHAT
            else {**body, "messages": [{"role": "user", "content": "x"}]},
        )
        assert small.headers["x-route-reason"] == "default: no multi-GPU trigger"


def test_one_request_seen_from_everywhere() -> None:
    """While it runs and after: header, decision record, `/stats` and `/memory_stats` agree."""
    with desk_server(routing=ROUTING) as live:
        live.steer(live.engine.close_gate)
        live.steer(lambda: live.engine.let_pass(1))
        with live.http.stream("POST", COMPLETIONS, json=completion(150, 10, stream=True)) as got:
            assert got.headers["x-route"] == "single_gpu"
            (record,) = live.records
            predicted = record.decision.predicted_kv_bytes
            assert predicted == 10 * MB  # 150 + 10 - 1 rows
            stats, memory = live.stats(), live.memory()
            assert memory["kv"]["reserved_bytes"] == predicted
            assert memory["kv"]["groups"][0]["blocks_reserved"] == 10
            assert memory["admission"]["running"] == 1
            live.steer(live.engine.open_gate)
            got.read()
        live.until_admission(running=0)
        stats, memory = live.stats(), live.memory()
        assert stats["gpu_routing"]["route4_triggers"]["large_input"] == 1
        assert stats["gpu_routing"]["executed"] == {"single_gpu": 1, "multi_gpu": 0}
        assert stats["gpu_routing"]["unmet_recommendations"] == 1
        assert stats["latency_p95_e2e_s"] > 0
        assert memory["kv"]["reserved_bytes"] == 0
        assert memory["kv"]["peak_reserved_bytes"] == predicted
        assert memory["pressure"] == {"value": 0.0, "gpu_id": "cpu", "note": None}


def test_samples_of_one_prompt_share_its_tokens() -> None:
    """`n` samples: the prompt counts once, the KV of each; so does a prompt of a list."""
    with desk_server() as live:
        live.http.post(COMPLETIONS, json=completion(30, 2, n=3))
        live.http.post(COMPLETIONS, json={**completion(0, 2, n=2), "prompt": ["x" * 30, "y" * 50]})
        facts = [record.facts for record in live.records]
        assert [f.input_tokens for f in facts] == [30, 80]
        assert [f.max_output_tokens for f in facts] == [6, 8]
        assert [f.predicted_kv_bytes for f in facts] == [3 * 2 * MB, 2 * 2 * MB + 2 * 4 * MB]


def test_a_bound_left_open_may_shrink_and_an_explicit_one_may_not() -> None:
    """The engine gets the lowered bound of the one, and refuses to run the other."""
    with desk_server(script=lambda _: Script((20,))) as live:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "x" * 100}]}
        answer = live.http.post(CHAT, json=body).json()
        used = answer["usage"]
        assert answer["choices"][0]["finish_reason"] == "length"
        assert used["total_tokens"] == 1024
        refused = live.http.post(CHAT, json={**body, "max_completion_tokens": 1000})
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "context_length_exceeded"
        assert "64 blocks" in refused.json()["error"]["message"]


def test_who_asks() -> None:
    """Priority, session and client reach the decision; nonsense is a 400 that names the header."""
    with desk_server(sessions=SessionConfig(max_sessions=2)) as live:
        headers = {"x-priority": "8", "x-session-id": "conv-1"}
        assert live.http.post(COMPLETIONS, json=completion(5), headers=headers).status_code == 200
        facts = live.records[0].facts
        assert (facts.priority, facts.session_id, facts.client_id) == (
            8,
            "id:conv-1",
            "127.0.0.1",
        )
        for name, value in (("X-Priority", "ten"), ("X-Session-Id", "a b")):
            refused = live.http.post(COMPLETIONS, json=completion(5), headers={name: value})
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == name
        assert len(live.records) == 1
        assert live.memory()["sessions"]["tracked"] == 1
        assert [job.session for job in live.engine.jobs] == ["id:conv-1"]


def test_turns_of_a_conversation_are_one_session() -> None:
    """Without a name, the beginning that every turn repeats makes the session."""
    turns: list[dict[str, str]] = []
    with desk_server() as live:
        for question in ("hello", "and then?"):
            turns.append({"role": "user", "content": question})
            answer = live.http.post(CHAT, json={"model": "tiny", "messages": turns}).json()
            turns.append(
                {"role": "assistant", "content": answer["choices"][0]["message"]["content"]}
            )
        live.until_admission(running=0)
        sessions = live.memory()["sessions"]
        assert (sessions["tracked"], sessions["reused"], sessions["active"]) == (1, 1, 0)
        assert sessions["kv_bytes"] > 0


@pytest.mark.parametrize(("tokens", "executed"), [(0, 0), (1, 1)])
def test_a_request_that_fails_counts_as_decided(tokens: int, executed: int) -> None:
    """In `executed` if it got as far as a token; with no latency; nothing of it stays held."""
    broken = Script((20,), fail_after=tokens, error=EngineFailed("broken"))
    with desk_server(script=lambda _: broken) as live:
        assert live.http.post(COMPLETIONS, json=completion(5, 9)).status_code == 503
        stats = live.stats()
        assert stats["gpu_routing"]["total_requests"] == 1
        assert stats["gpu_routing"]["executed"]["single_gpu"] == executed
        assert stats["latency_p95_e2e_s"] is None
        assert stats["admission"]["blocks_used"] == {"full": 0, "slots": 0}


def test_memory_stats_while_no_engine_is_up() -> None:
    """503 with the engine's reason; `/stats` answers on."""
    with desk_server() as live:
        live.steer(live.engine.crash)
        refused = live.http.get("/memory_stats")
        assert refused.status_code == 503
        assert "the worker died" in refused.json()["error"]["message"]
        assert live.stats()["engine"]["ready"] is False


CLIENTS = 64
SAMPLERS = 8
SAMPLES = 1000


class Wire:
    """One keep-alive connection, as cheap as can be beside a server in the same process."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> Wire:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Status and body of the answer."""
        head = f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        lines = (await self._reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        headers = dict(line.split(b": ", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1]), await self._reader.readexactly(
            int(headers[b"content-length"])
        )

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


async def _load_and_sample(port: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """64 clients in a closed loop, each kind in turn, while `/stats` is read 1,000 times; returns
    the sections in the order in which they came, and how many requests of each kind were
    answered."""
    sections: list[dict[str, Any]] = []
    answered = dict.fromkeys(KINDS, 0)
    bodies = {kind: json.dumps(completion(*size)).encode() for kind, size in KINDS.items()}

    async def client(number: int) -> None:
        wire = await Wire.open(port)
        turn = number
        while len(sections) < SAMPLES:
            kind = list(KINDS)[turn % len(KINDS)]
            status, _ = await wire.ask("POST", COMPLETIONS, bodies[kind])
            assert status == 200
            answered[kind] += 1
            turn += 1
        await wire.close()

    async def sampler() -> None:
        wire = await Wire.open(port)
        while len(sections) < SAMPLES:
            _, body = await wire.ask("GET", "/stats")
            sections.append(json.loads(body)["gpu_routing"])
        await wire.close()

    clients = [client(number) for number in range(CLIENTS)]
    await asyncio.gather(*clients, *(sampler() for _ in range(SAMPLERS)))
    return sections, answered


def test_the_figures_add_up_at_every_moment() -> None:
    """Total = single + route4 and route4 = the sum of its triggers, in each of 1,000 samples
    under 64 concurrent clients, and in the end no request is missing."""
    admission = {"max_queue_length": CLIENTS}
    whole = Script((20,), tokens_per_delta=1000)
    with desk_server(
        routing=ROUTING, pressure=0.9, admission=admission, script=lambda _: whole
    ) as live:
        sections, answered = asyncio.run(_load_and_sample(live.port))
        last = live.stats()["gpu_routing"]
    assert len(sections) >= SAMPLES
    assert [n for n, section in enumerate(sections) if not adds_up(section)] == []
    assert len({section["total_requests"] for section in sections}) > 50
    assert adds_up(last)
    assert last["single_gpu_requests"] == answered.pop("none")
    assert last["route4_triggers"] == answered
    assert min(answered.values()) > 0
    assert last["executed"]["single_gpu"] == last["total_requests"]
