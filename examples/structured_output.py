"""Answers of a given structure, with OpenAI's own Python client.

    python examples/structured_output.py                  # http://127.0.0.1:8000
    OPENAI_BASE_URL=http://host:9000/v1 MODEL=20b python examples/structured_output.py

Needs `pip install openai` and a running server.
"""

import json
import os
from typing import Literal

import openai
import pydantic


class Person(pydantic.BaseModel):
    name: str
    age: int
    mood: Literal["good", "bad"]
    friends: list[str]


def main() -> None:
    client = openai.OpenAI(
        base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
    )
    model = os.environ.get("MODEL") or client.models.list().data[0].id
    question = [{"role": "user", "content": "Invent a person."}]

    # An object of a class. A `finish_reason` of "length" raises, as with OpenAI: the answer is
    # complete JSON even then, but the bound decided how it ends.
    try:
        answer = client.chat.completions.parse(
            model=model, messages=question, response_format=Person, max_tokens=400
        )
        print("a person:  ", answer.choices[0].message.parsed)
    except openai.LengthFinishReasonError as error:
        content = error.completion.choices[0].message.content
        print("a person:  ", Person.model_validate_json(content), "(shortened by max_tokens)")

    # A JSON Schema, streamed.
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 40}, "founded": {"type": "integer"}},
        "required": ["city", "founded"],
        "additionalProperties": False,
    }
    with client.chat.completions.create(
        model=model,
        messages=question,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "city", "schema": schema, "strict": True},
        },
        max_tokens=200,
        stream=True,
    ) as chunks:
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    print("a city:    ", json.loads(text))

    # A regular expression and a choice: vLLM's parameters.
    for name, wanted in (
        ("a code:", {"regex": "[A-Z]{3}-[0-9]{4}"}),
        ("a choice:", {"choice": ["yes", "no", "maybe"]}),
    ):
        answer = client.chat.completions.create(
            model=model,
            messages=question,
            max_tokens=100,
            extra_body={"structured_outputs": wanted},
        )
        print(f"{name:<11}", answer.choices[0].message.content)

    # What cannot be honoured is refused by name.
    try:
        client.chat.completions.create(
            model=model, messages=question, extra_body={"structured_outputs": {"regex": "("}}
        )
    except openai.BadRequestError as error:
        print("an error:  ", error.status_code, error.param)


if __name__ == "__main__":
    main()
