"""A request that is too large for one GPU's taste, and what the server says of it.

    python examples/large_request.py                    # http://127.0.0.1:8000
    python examples/large_request.py 20000              # about that many prompt tokens

Sends a long prompt, looks at the KV cache while it runs, and prints the response's headers and
what `/stats` and `/memory_stats` then tell. The server's own output has the warning beside it.
`OPENAI_BASE_URL`, `OPENAI_API_KEY` and `MODEL` as in openai_client.py. Needs nothing but Python.
"""

import json
import os
import sys
import threading
import urllib.error
import urllib.request
from typing import Any

BASE = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1").removesuffix("/v1")
KEY = os.environ.get("OPENAI_API_KEY", "none")
MIB = 2**20
# A proxy that the environment names is not for a server on this machine.
OPEN = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


def ask(path: str, body: dict[str, Any] | None = None) -> tuple[Any, Any]:
    """Headers and JSON of an answer; ends the program with one line where there is none."""
    request = urllib.request.Request(
        BASE + path,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"},
    )
    try:
        with OPEN(request) as response:
            return response.headers, json.load(response)
    except urllib.error.HTTPError as error:
        sys.exit(f"{path}: {error.code} {error.read().decode(errors='replace')}")
    except urllib.error.URLError as error:
        sys.exit(f"{BASE} does not answer ({error.reason}): start the server first, `make run`")


def most_in_use(done: threading.Event) -> dict[str, int]:
    """The KV figures of the moment at which most was in use, seen until `done`."""
    most: dict[str, int] = {"in_use_bytes": 0, "predicted_bytes": 0}
    while not done.wait(0.05):
        kv = ask("/memory_stats")[1]["kv"]
        most = max(most, kv, key=lambda seen: seen["in_use_bytes"])
    return most


def main() -> None:
    wanted_tokens = int(sys.argv[1]) if len(sys.argv) > 1 else 9000
    model = os.environ.get("MODEL") or ask("/v1/models")[1]["data"][0]["id"]
    words = 1000
    _, counted = ask("/tokenize", {"model": model, "prompt": "word " * words})
    prompt = "word " * (wanted_tokens * words // len(counted["tokens"]))

    answers: list[tuple[Any, Any]] = []
    done = threading.Event()

    def send() -> None:
        try:
            body = {"model": model, "prompt": prompt, "max_tokens": 16}
            answers.append(ask("/v1/completions", body))
        except SystemExit as refused:
            print(refused, file=sys.stderr)
        finally:
            done.set()

    threading.Thread(target=send).start()
    seen = most_in_use(done)
    if not answers:
        sys.exit(1)
    ((headers, answer),) = answers
    print(f"prompt tokens:  {answer['usage']['prompt_tokens']}")
    for name in ("X-Route", "X-Route-Reason"):
        print(f"{name + ':':<15} {headers[name]}")
    routing = ask("/stats")[1]["gpu_routing"]
    print("\n/stats, gpu_routing")
    for name in ("total_requests", "route4_gpu_requests", "route4_triggers", "executed"):
        print(f"  {name}: {json.dumps(routing[name])}")
    print(f"  unmet_recommendations: {routing['unmet_recommendations']}")
    memory = ask("/memory_stats")[1]
    kv, pressure = memory["kv"], memory["pressure"]
    print("\n/memory_stats")
    print(
        f"  while it ran:  {seen['in_use_bytes'] / MIB:.2f} MiB of KV in use, "
        f"{seen['predicted_bytes'] / MIB:.2f} MiB predicted"
    )
    print(
        f"  now:           {kv['in_use_bytes']} bytes in use, {kv['reserved_bytes']} reserved; "
        f"at most {kv['peak_reserved_bytes'] / MIB:.2f} MiB were reserved"
    )
    value = "unknown" if pressure["value"] is None else f"{pressure['value']:.3f}"
    print(f"  pressure:      {value} on {pressure['gpu_id']}")


if __name__ == "__main__":
    main()
