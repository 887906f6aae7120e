"""The two ways to write a response: as it comes, or whole. Both end with a step of their own.

Knows: in what order events and the end of a response go out, and that what is to be kept is kept
before the client is told that it is. Does not know: how an item looks, how a response is kept.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import msgspec

from gpt_oss_server.api import responses_wire as wire
from gpt_oss_server.api.exchange import Exchange
from gpt_oss_server.api.responses_events import EventWriter, ItemShapes
from gpt_oss_server.api.responses_object import ResponseObject
from gpt_oss_server.api.responses_output import Change, ResponseOutput
from gpt_oss_server.api.streams import ChoiceStreams
from gpt_oss_server.errors import EngineFailed, ServerError
from gpt_oss_server.types import Job

Keep = Callable[[wire.Response], Awaitable[bool]]
"""Keeps a response that is meant to be kept; whether it is. Raises where that was insisted on."""


@dataclass
class ResponseAnswer:
    """One response on its way to the client.

    `stream` and `collect` run while the request holds its place in the engine and send all but the
    end; `conclude` sends that, when the place has been given back: no disk holds up the engine.
    """

    head: ResponseObject
    output: ResponseOutput
    shapes: ItemShapes
    clock: Callable[[], float]
    input_tokens: int = 0
    streaming: bool = False

    def __post_init__(self) -> None:
        self._events = EventWriter(self.shapes)

    def of_jobs(self, jobs: list[Job]) -> ResponseAnswer:
        """The same, now that it is known what was admitted."""
        self.input_tokens = len(jobs[0].prompt)
        return self

    async def stream(self, exchange: Exchange, streams: ChoiceStreams) -> None:
        """Send events. The 200 head goes out with the first of them, so that a failure before
        the first token still gets a status of its own."""
        exchange.trail.follow([self.output])
        exchange.failure_event = self._failure_event
        begun = self.head.begun()
        opening = self._events.of_response("created", begun)
        opening += self._events.of_response("in_progress", begun)
        async for changes in self._changes(streams):
            await exchange.send_events(opening + self._events.of_changes(changes))
            opening = b""
        self.streaming = True
        if opening:
            await exchange.send_events(opening)

    async def collect(self, exchange: Exchange, streams: ChoiceStreams) -> None:
        """Wait for the end."""
        exchange.trail.follow([self.output])
        async for _ in self._changes(streams):
            pass

    async def conclude(self, exchange: Exchange, keep: Keep) -> None:
        """Have the response kept, and send its end, or all of it."""
        response = self.head.ended(
            self.output,
            [self.shapes.whole(item) for item in self.output.items],
            input_tokens=self.input_tokens,
            completed_at=int(self.clock()),
        )
        if response.store and not await keep(response):
            response = msgspec.structs.replace(response, store=False)
        if self.streaming:
            await exchange.end_events(self._events.of_response(response.status, response))
        else:
            await exchange.reply(response)

    async def _changes(self, streams: ChoiceStreams) -> AsyncIterator[list[Change]]:
        """What changes, all that waits at once; never nothing. Ends when the output does."""
        while self.output.finish is None:
            batch = await streams.next_batch()
            if not batch:
                raise EngineFailed("The engine ended a generation without saying why.")
            changes: list[Change] = []
            for index, delta in batch:
                changes += self.output.feed(delta)
                if self.output.finish is not None and delta.finish is None:
                    await streams.stop(index)
            if changes:
                yield changes

    def _failure_event(self, error: ServerError) -> bytes:
        """The end of a stream that failed: `response.failed`, as OpenAI's API has it."""
        self.output.cut()
        items = [self.shapes.whole(item) for item in self.output.items]
        return self._events.of_response("failed", self.head.failed(error, items))
