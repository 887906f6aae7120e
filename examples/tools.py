"""An agent with two tools: the model calls, this program answers, until the model does.

    python examples/tools.py "What is 17 times 4, and what time is it in UTC?"

`OPENAI_BASE_URL`, `OPENAI_API_KEY` and `MODEL` as in openai_client.py.
Needs `pip install openai` and a running server.
"""

import datetime
import json
import os
import sys

import openai

MAX_TURNS = 6
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "multiply",
            "description": "Multiplies two numbers.",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
                "required": ["a", "b"],
                "additionalProperties": False,
            },
            "strict": True,
        },
    },
    {
        "type": "function",
        "function": {
            "name": "current_time",
            "description": "The time now.",
            "parameters": {
                "type": "object",
                "properties": {"zone": {"type": "string", "enum": ["UTC", "local"]}},
                "required": ["zone"],
                "additionalProperties": False,
            },
            "strict": True,
        },
    },
]


def multiply(a: float, b: float) -> str:
    return f"{a * b:g}"


def current_time(zone: str) -> str:
    now = datetime.datetime.now(datetime.UTC if zone == "UTC" else None)
    return now.isoformat(timespec="minutes")


FUNCTIONS = {"multiply": multiply, "current_time": current_time}


def result_of(name: str, arguments: str) -> str:
    """What the function says. A model can get a name or an argument wrong: tell it so."""
    try:
        return FUNCTIONS[name](**json.loads(arguments))
    except (KeyError, TypeError, ValueError) as error:
        return f"error: {error!r}"


def is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def main() -> None:
    client = openai.OpenAI(
        base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
    )
    model = os.environ.get("MODEL") or client.models.list().data[0].id
    question = sys.argv[1] if len(sys.argv) > 1 else "What is 17 times 4?"
    messages = [{"role": "user", "content": question}]

    for _ in range(MAX_TURNS):
        answer = client.chat.completions.create(
            model=model, messages=messages, tools=TOOLS, max_tokens=256
        )
        message = answer.choices[0].message
        calls = message.tool_calls or []
        if not calls or not all(is_json(call.function.arguments) for call in calls):
            print(f"answer: {message.content}")
            break
        # The whole message goes back: the model sees its own reasoning until it has answered.
        messages.append(message.to_dict())
        for call in calls:
            result = result_of(call.function.name, call.function.arguments)
            print(f"{call.function.name}{json.loads(call.function.arguments)} = {result}")
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})

    # A call can be asked for: the server then makes the model call, and with `strict` its
    # arguments are as the schema says, whatever the model.
    forced = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        tools=TOOLS,
        tool_choice={"type": "function", "function": {"name": "current_time"}},
        max_tokens=256,
    )
    [call] = forced.choices[0].message.tool_calls or []
    print(f"forced: {call.function.name}{json.loads(call.function.arguments)}")


if __name__ == "__main__":
    main()
