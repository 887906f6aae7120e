"""A streamed chat, token by token, with the time to the first token and the usage at the end.

    python examples/streaming.py "What is a KV lease?"

`OPENAI_BASE_URL`, `OPENAI_API_KEY` and `MODEL` as in openai_client.py.
Needs `pip install openai` and a running server.
"""

import os
import sys
import time

import openai


def main() -> None:
    client = openai.OpenAI(
        base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
    )
    model = os.environ.get("MODEL") or client.models.list().data[0].id
    question = sys.argv[1] if len(sys.argv) > 1 else "Count to 10."

    started = time.perf_counter()
    first_token_s = None
    # Leaving the `with` block early closes the connection, and the server stops generating.
    with client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_tokens=128,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        for chunk in stream:
            if chunk.usage is not None:
                print(f"\n\n{chunk.usage.completion_tokens} tokens", end="")
            for choice in chunk.choices:
                delta = choice.delta
                text = (delta.model_extra or {}).get("reasoning_content") or delta.content or ""
                if text and first_token_s is None:
                    first_token_s = time.perf_counter() - started
                print(text, end="", flush=True)
    print(f" in {time.perf_counter() - started:.2f} s", end="")
    print(f", the first after {first_token_s:.3f} s" if first_token_s is not None else "")


if __name__ == "__main__":
    main()
