"""A LangChain agent with two tools, against this server, unmodified.

    python examples/langchain_agent.py "What is the weather in Paris? Then add 3 and 4."

`OPENAI_BASE_URL`, `OPENAI_API_KEY` and `MODEL` as in openai_client.py.
Needs `pip install langchain langchain-openai` and a running server.
"""

import os
import sys

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

QUESTION = "What is the weather in Paris? Then add 3 and 4."


@tool
def get_weather(city: str) -> str:
    """Get the weather for a city."""
    print(f"  get_weather({city!r})")
    return "sunny, 18 degrees"


@tool
def add(a: float, b: float) -> str:
    """Add two numbers."""
    print(f"  add({a:g}, {b:g})")
    return f"{a + b:g}"


def main(question: str) -> None:
    model = ChatOpenAI(
        model=os.environ.get("MODEL", "tiny"),
        base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
    )
    agent = create_agent(
        model, tools=[get_weather, add], system_prompt="Use the tools that you are given."
    )
    state = agent.invoke({"messages": [{"role": "user", "content": question}]})
    print(state["messages"][-1].content)


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or QUESTION)
