"""OpenAI's Responses API: an answer, a streamed one that continues it, and a function.

    python examples/responses.py                          # http://127.0.0.1:8000
    OPENAI_BASE_URL=http://host:9000/v1 OPENAI_API_KEY=… MODEL=20b python examples/responses.py

Needs `pip install openai` and a running server.
"""

import json
import os

import openai

COUNT_GPUS = {
    "type": "function",
    "name": "count_gpus",
    "description": "How many GPUs a machine has.",
    "parameters": {
        "type": "object",
        "properties": {"machine": {"type": "string"}},
        "required": ["machine"],
        "additionalProperties": False,
    },
    "strict": True,
}


def main() -> None:
    client = openai.OpenAI(
        base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
    )
    model = os.environ.get("MODEL") or client.models.list().data[0].id
    bounded = {"model": model, "temperature": 0, "max_output_tokens": 200}

    first = client.responses.create(
        instructions="You answer in one sentence.", input="What does route4 mean?", **bounded
    )
    print("answer:   ", first.output_text)
    print("status:   ", first.status)

    print("streamed:  ", end="")
    with client.responses.stream(
        input="And what is a replica?", previous_response_id=first.id, **bounded
    ) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                print(event.delta, end="", flush=True)
    print()

    asked = client.responses.create(
        input="How many GPUs has the machine node7?",
        tools=[COUNT_GPUS],
        tool_choice="required",
        **bounded,
    )
    outputs = [
        {"type": "function_call_output", "call_id": item.call_id, "output": "8"}
        for item in asked.output
        if item.type == "function_call"
    ]
    for item in asked.output:
        if item.type == "function_call":
            print("call:     ", item.name, json.loads(item.arguments))
    if outputs:
        told = client.responses.create(
            input=outputs, previous_response_id=asked.id, tools=[COUNT_GPUS], **bounded
        )
        print("with it:  ", told.output_text)

    client.responses.delete(first.id)
    try:
        client.responses.retrieve(first.id)
    except openai.NotFoundError as error:
        print("deleted:  ", error.status_code)


if __name__ == "__main__":
    main()
