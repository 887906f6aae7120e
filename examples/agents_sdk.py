"""OpenAI's Agents SDK with two tools, against this server, unmodified.

    python examples/agents_sdk.py "What is the weather in Paris? Then add 3 and 4."

The SDK speaks the Responses API; `--chat` makes it use chat completions. `OPENAI_BASE_URL`,
`OPENAI_API_KEY` and `MODEL` as in openai_client.py.
Needs `pip install openai-agents` and a running server.
"""

import asyncio
import os
import sys

from agents import (
    Agent,
    Runner,
    function_tool,
    set_default_openai_api,
    set_default_openai_client,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

QUESTION = "What is the weather in Paris? Then add 3 and 4."


@function_tool
def get_weather(city: str) -> str:
    """Get the weather for a city."""
    print(f"  get_weather({city!r})")
    return "sunny, 18 degrees"


@function_tool
def add(a: float, b: float) -> str:
    """Add two numbers."""
    print(f"  add({a:g}, {b:g})")
    return f"{a + b:g}"


async def main(question: str, *, chat: bool) -> None:
    client = AsyncOpenAI(
        base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
    )
    set_default_openai_client(client, use_for_tracing=False)
    set_default_openai_api("chat_completions" if chat else "responses")
    set_tracing_disabled(True)  # or the SDK sends its traces to OpenAI
    agent = Agent(
        name="assistant",
        instructions="Use the tools that you are given.",
        tools=[get_weather, add],
        model=os.environ.get("MODEL", "tiny"),
    )
    result = await Runner.run(agent, question)
    print(result.final_output)


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--chat"]
    asyncio.run(main(" ".join(words) or QUESTION, chat="--chat" in sys.argv))
