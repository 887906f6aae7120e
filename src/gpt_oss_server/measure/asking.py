"""How one server wants to be asked for an answer of a given length.

Knows: the two endpoints that stream, what servers call "go on past the end of text". Does not
know: how many are asked at once, or why.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from gpt_oss_server.errors import StartupError
from gpt_oss_server.measure.connection import Address, Answer, Connection
from gpt_oss_server.measure.prompts import Prompts

Endpoint = Literal["completions", "chat"]

PATHS: dict[str, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
FEW_WORDS, MANY_WORDS = 40, 400
# The first that a server takes: vLLM and this server know both, others one or none.
_LENGTHENERS: tuple[tuple[str, ...], ...] = (("ignore_eos", "min_tokens"), ("min_tokens",), ())


@dataclass
class Asker:
    """Builds requests. `settle` finds out what the server takes before anything is measured."""

    address: Address
    model: str
    endpoint: Endpoint
    prompts: Prompts
    timeout_s: float = 120.0
    lengthened_by: tuple[str, ...] = _LENGTHENERS[0]
    notes: list[str] = field(default_factory=list)

    def body(self, prompt: str, output_tokens: int) -> dict[str, Any]:
        """A streamed request for so many tokens, exactly if the server can."""
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": output_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.endpoint == "chat":
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        values: dict[str, Any] = {"ignore_eos": True, "min_tokens": output_tokens}
        return body | {name: values[name] for name in self.lengthened_by}

    async def ask(self, connection: Connection, prompt: str, output_tokens: int) -> Answer:
        body = self.body(prompt, output_tokens)
        return await connection.stream(PATHS[self.endpoint], body, self.timeout_s)

    async def settle(self, connection: Connection) -> None:
        """Learn which fields are taken and how many tokens a word is. Raises StartupError where
        the server does not answer as it should."""
        few = await self._first(connection)
        many = await self.ask(connection, self.prompts.words(MANY_WORDS), 1)
        if not many.complete:
            raise StartupError(f"the server does not answer: {failure_of(many)}")
        if not few.prompt_tokens or not many.prompt_tokens:
            raise StartupError("the server does not tell how many tokens a prompt has (usage)")
        self.prompts.learn((FEW_WORDS, few.prompt_tokens), (MANY_WORDS, many.prompt_tokens))

    async def _first(self, connection: Connection) -> Answer:
        answer = Answer()
        for names in _LENGTHENERS:
            self.lengthened_by = names
            answer = await self.ask(connection, self.prompts.words(FEW_WORDS), 4)
            if answer.status not in (400, 422):
                break
        if not answer.complete:
            raise StartupError(f"the server does not answer: {failure_of(answer)}")
        if not self.lengthened_by:
            self.notes.append(
                "answers end where the model ends them: lengths are what came, not the grid's"
            )
        return answer


def failure_of(answer: Answer) -> str:
    """Why an answer is none, on one line."""
    if answer.status not in (0, 200):
        return f"status {answer.status}, {answer.error or 'no reason given'}"
    early = "the stream ended before its usage came"
    return answer.error or (early if answer.tokens else "an answer without tokens")
