"""Our engine without a server: a process that steps `EngineCore` for one command after another.

    python -m engine_bench.inprocess FOLDER

Knows: the engine's core. Does not know: HTTP. Reads one JSON command a line, writes one JSON
answer a line: `run` plays prompts (token ids) in a closed loop like the load generator does;
`leaks` plays random requests with cancels and compares predicted with real KV blocks after
every step.
"""

from __future__ import annotations

import json
import random
import sys
import time
from typing import Any

import torch

from engine_bench import vocabulary
from gpt_oss_server.engine.core import EngineCore
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.types import Job, SamplingParams


class Driver:
    """Feeds a core and keeps what it says."""

    def __init__(self, core: EngineCore) -> None:
        self._core = core
        self._next_key = 0

    def submit(self, prompt: list[int], max_tokens: int) -> int:
        key = self._next_key
        self._next_key += 1
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        self._core.submit(key, Job(id=str(key), prompt=prompt, sampling=sampling))
        return key

    def run(self, prompts: list[list[int]], max_tokens: int, concurrency: int) -> dict[str, Any]:
        """Wall time and, per request, the times of its tokens in seconds since the start."""
        zero_s, cpu_zero_s = time.perf_counter(), time.process_time()
        waiting = list(reversed(prompts))
        live: dict[int, dict[str, Any]] = {}
        records: list[dict[str, Any]] = []
        while waiting or live:
            while waiting and len(live) < concurrency:
                started_s = time.perf_counter() - zero_s
                key = self.submit(waiting.pop(), max_tokens)
                live[key] = {"start_s": started_s, "end_s": None, "events_s": [], "ids": []}
                records.append(live[key])
            events = self._core.step()
            now_s = time.perf_counter() - zero_s
            if events.failures:
                raise RuntimeError(str(events.failures[0][1]))
            for key, delta in events.deltas:
                record = live[key]
                record["events_s"].append(now_s)
                record["ids"].extend(delta.token_ids)
                if delta.finish is not None:
                    live.pop(key)["end_s"] = now_s
        return {
            "wall_s": time.perf_counter() - zero_s,
            "cpu_s": time.process_time() - cpu_zero_s,
            "records": records,
        }

    def leaks(self, requests: int, seed: int) -> dict[str, Any]:
        """Random lengths, a fifth of the requests cancelled at a random step. Prompts share no
        prefix, so prediction must be met exactly after every step."""
        rng = random.Random(seed)
        live: dict[int, int] = {}
        mismatches = steps = cancelled = 0
        peak = dict.fromkeys(self._core.stats().blocks_total, 0)
        left = requests
        while left or live:
            while left and len(live) < 64:
                prompt = vocabulary.ids_of(vocabulary.draw(rng, rng.randint(1, 200)))
                patience = rng.randint(0, 6) if rng.random() < 0.2 else 1 << 30
                live[self.submit(prompt, rng.randint(1, 12))] = patience
                left -= 1
            for key, delta in self._core.step().deltas:
                if delta.finish is not None:
                    live.pop(key, None)
            for key in [key for key, patience in live.items() if patience <= 0]:
                self._core.cancel(key)
                del live[key]
                cancelled += 1
            for key in live:
                live[key] -= 1
            steps += 1
            in_use = self._core.stats().blocks_in_use
            mismatches += in_use != self._core.predicted_blocks()
            peak = {name: max(peak[name], n) for name, n in in_use.items()}
        return {
            "requests": requests,
            "cancelled": cancelled,
            "steps": steps,
            "mismatches": mismatches,
            "peak_blocks": peak,
        }

    def blocks(self) -> dict[str, Any]:
        return {
            "in_use": self._core.stats().blocks_in_use,
            "predicted": self._core.predicted_blocks(),
        }


def main() -> None:
    torch.set_num_threads(1)
    core = EngineCore(EngineSpec(folder=sys.argv[1], device="cpu", threads=1))
    driver = Driver(core)
    print(json.dumps({"ready": True, "dtype": core.info().dtype}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        name = command.pop("do")
        result = {"run": driver.run, "leaks": driver.leaks}[name](**command)
        print(json.dumps(result | {"blocks": driver.blocks()}), flush=True)


if __name__ == "__main__":
    main()
