"""OpenAI's own Python client against this server.

    python examples/openai_client.py                      # http://127.0.0.1:8000
    OPENAI_BASE_URL=http://host:9000/v1 OPENAI_API_KEY=… MODEL=20b python examples/openai_client.py

Needs `pip install openai` and a running server.
"""

import os

import openai


def main() -> None:
    client = openai.OpenAI(
        base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
    )
    model = os.environ.get("MODEL") or client.models.list().data[0].id

    answer = client.chat.completions.create(
        model=model,
        messages=[
            {"role": "system", "content": "Answer in one short sentence."},
            {"role": "user", "content": "Which GPU mode should I use?"},
        ],
        max_tokens=64,
        temperature=0,
        reasoning_effort="low",
    )
    message = answer.choices[0].message
    print("model:    ", answer.model)
    print("reasoning:", (message.model_extra or {}).get("reasoning_content"))
    print("content:  ", message.content)
    print("finished: ", answer.choices[0].finish_reason)
    print("usage:    ", answer.usage.to_dict() if answer.usage else None)

    try:
        client.chat.completions.create(model=model, messages=[], max_tokens=1)
    except openai.BadRequestError as error:
        print("an error: ", error.status_code, error.param)


if __name__ == "__main__":
    main()
