"""The load generator: a process of its own that plays one plan against one HTTP server.

    python -m engine_bench.load < plan.json > result.json

Knows: HTTP/1.1, server-sent events, clocks. Does not know: which system it speaks to. One
keep-alive connection per simulated client, callbacks instead of a task per event, so that it
stays light beside a server that it shares two cores with; it reports its own CPU time.

A plan: {host, port, model, mode: closed | mixed, items: [{prompt, max_tokens}], concurrency,
deadline_s, and for mixed: duration_s, period_s, long: [{prompt, max_tokens}]}. A result:
{wall_s, cpu_s, records: [Record]}.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import httptools
import msgspec
import uvloop

DONE = b"[DONE]"


class Item(msgspec.Struct, frozen=True):
    prompt: str
    max_tokens: int


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    host: str
    port: int
    model: str
    mode: str
    items: list[Item]
    concurrency: int
    deadline_s: float
    duration_s: float = 0.0
    period_s: float = 1.0
    long: list[Item] = []


class Record(msgspec.Struct, kw_only=True):
    """One request, times in seconds since the plan began. `events_s` has one entry per event
    that carried text; `end_s` is None where the plan ended before the answer did."""

    kind: str
    start_s: float
    events_s: list[float] = []
    end_s: float | None = None
    tokens: int = 0
    text: str = ""
    error: str | None = None


class Result(msgspec.Struct, frozen=True, kw_only=True):
    wall_s: float
    cpu_s: float
    records: list[Record]


class _Choice(msgspec.Struct):
    text: str = ""


class _Usage(msgspec.Struct):
    completion_tokens: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


class Connection(asyncio.Protocol):
    """One keep-alive connection; one request at a time."""

    def __init__(self, zero_s: float) -> None:
        self._zero_s = zero_s
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._done: asyncio.Future[None] | None = None
        self._record: Record | None = None
        self._buffer = b""
        self._now_s = 0.0
        self.usable = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self.usable = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        if self._record is not None:
            self._finish("connection lost")

    def data_received(self, data: bytes) -> None:
        self._now_s = time.perf_counter() - self._zero_s
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        if self._record is None:
            return
        if self._parser.get_status_code() != 200:
            self._record.error = f"status {self._parser.get_status_code()}: {body[:200]!r}"
            return
        *events, self._buffer = (self._buffer + body).split(b"\n\n")
        for event in events:
            self._take(event)

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.usable = False
        self._finish(None)

    def _take(self, event: bytes) -> None:
        record = self._record
        payload = event.removeprefix(b"data:").strip()
        if record is None or not payload or payload == DONE:
            return
        chunk = _decode(payload)
        if chunk.error is not None:
            record.error = str(chunk.error)[:200]
        if chunk.choices and chunk.choices[0].text:
            record.events_s.append(self._now_s)
            record.text += chunk.choices[0].text
        if chunk.usage is not None:
            record.tokens = chunk.usage.completion_tokens

    def _finish(self, error: str | None) -> None:
        record, self._record = self._record, None
        if record is None:
            return
        record.error = record.error or error
        record.end_s = time.perf_counter() - self._zero_s
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def abort(self) -> None:
        """Leave as a client that walks away; the record keeps `end_s` None."""
        self._record = None
        if self._transport is not None:
            self._transport.abort()

    async def run(self, request: bytes, record: Record) -> None:
        """Send a request and wait for the end of its answer."""
        self._parser = httptools.HttpResponseParser(self)
        self._buffer = b""
        self._record = record
        self._done = asyncio.get_running_loop().create_future()
        record.start_s = time.perf_counter() - self._zero_s
        if self._transport is None:
            raise RuntimeError("not connected")
        self._transport.write(request)
        await self._done


class Player:
    """Plays one plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._zero_s = time.perf_counter()
        self._connections: list[Connection] = []
        self.records: list[Record] = []

    def elapsed_s(self) -> float:
        return time.perf_counter() - self._zero_s

    async def play(self) -> None:
        if self._plan.mode == "closed":
            await self._closed(self._plan.items, self._plan.deadline_s)
        else:
            await self._mixed()

    async def _closed(self, items: list[Item], deadline_s: float) -> None:
        """`concurrency` clients, each sending its next request when its last one is answered."""
        source = iter(items)

        async def client() -> None:
            connection: Connection | None = None
            for item in source:
                if self.elapsed_s() > deadline_s:
                    return
                connection = await self._send("short", item, connection)

        await asyncio.gather(*(client() for _ in range(self._plan.concurrency)))

    async def _mixed(self) -> None:
        """Short chats in a closed loop and a long prompt every `period_s`; what still runs after
        `duration_s` is aborted."""
        tasks = [asyncio.create_task(self._closed(self._plan.items, self._plan.duration_s))]
        for n, item in enumerate(self._plan.long):
            await asyncio.sleep(max(0.0, (n + 0.5) * self._plan.period_s - self.elapsed_s()))
            if self.elapsed_s() > self._plan.duration_s:
                break
            tasks.append(asyncio.create_task(self._send("long", item, None)))
        await asyncio.sleep(max(0.0, self._plan.duration_s - self.elapsed_s()))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in self._connections:
            connection.abort()

    async def _send(self, kind: str, item: Item, connection: Connection | None) -> Connection:
        record = Record(kind=kind, start_s=self.elapsed_s())
        self.records.append(record)
        if connection is None or not connection.usable:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(self._zero_s), self._plan.host, self._plan.port
            )
            self._connections.append(connection)
        await connection.run(self._request(item), record)
        return connection

    def _request(self, item: Item) -> bytes:
        body = msgspec.json.encode(
            {
                "model": self._plan.model,
                "prompt": item.prompt,
                "max_tokens": item.max_tokens,
                "temperature": 0.0,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        )
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {self._plan.host}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


def main() -> None:
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    player = Player(plan)
    cpu_before_s = time.process_time()
    uvloop.run(player.play())
    result = Result(
        wall_s=player.elapsed_s(),
        cpu_s=time.process_time() - cpu_before_s,
        records=player.records,
    )
    sys.stdout.buffer.write(msgspec.json.encode(result))


if __name__ == "__main__":
    main()
