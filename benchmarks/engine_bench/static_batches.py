"""`model.generate` of transformers in static batches, one command after another.

    python -m engine_bench.static_batches FOLDER

Knows: transformers. Does not know: our engine. Same commands as `inprocess`: `run` cuts the
prompts into batches of `concurrency` and generates one batch at a time.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM


def run(model: Any, prompts: list[list[int]], max_tokens: int, concurrency: int) -> dict[str, Any]:
    zero_s, cpu_zero_s = time.perf_counter(), time.process_time()
    records = []
    for first in range(0, len(prompts), concurrency):
        batch = torch.tensor(prompts[first : first + concurrency])
        started_s = time.perf_counter() - zero_s
        with torch.inference_mode():
            output = model.generate(
                batch,
                attention_mask=torch.ones_like(batch),
                max_new_tokens=max_tokens,
                min_new_tokens=max_tokens,
                do_sample=False,
            )
        ended_s = time.perf_counter() - zero_s
        for row in output[:, batch.shape[1] :].tolist():
            records.append({"start_s": started_s, "end_s": ended_s, "events_s": [], "ids": row})
    return {
        "wall_s": time.perf_counter() - zero_s,
        "cpu_s": time.process_time() - cpu_zero_s,
        "records": records,
    }


def main() -> None:
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
    print(json.dumps({"ready": True, "dtype": "float32"}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        command.pop("do")
        print(json.dumps(run(model, **command)), flush=True)


if __name__ == "__main__":
    main()
