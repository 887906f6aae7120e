"""A pipeline with micro-batches against the same without: are all stages busy?

    python benchmarks/pipeline.py                     # about three minutes
    python benchmarks/pipeline.py --quick             # a smoke run; writes nothing
    python benchmarks/pipeline.py --stages 4          # needs four cores

Spreads a gpt-oss shape (random weights, a thread for each rank) over stages on this machine's CPU,
once with a step in flight per stage and once with a single one, and plays the same batch of
requests to both in turns. With one step in flight each stage waits while the others compute; what
micro-batches win is that time, less what smaller steps cost: in a model of few large matrices, half
the tokens take nearly as long as all. The shape is one whose work grows with the tokens of a
step: as many experts as gpt-oss-120b has, small ones, and a context of some hundred tokens. One
process with one thread is measured beside them.

Results are written, dated, to `benchmarks/results/`. Exits 2 when a full run misses its target.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine_bench import machine
from gpt_oss_server.engine.client import EngineClient
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.types import Job, SamplingParams
from promises import RESULTS, Promise, exit_status, keep, table

TARGET = 1.6
AGREEMENT = 0.98
ALONE, SERIAL, MICRO = "one process", "pipeline, one step in flight", "pipeline, micro-batches"
SHAPE: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "num_hidden_layers": 6,
    "hidden_size": 512,
    "intermediate_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "sliding_window": 128,
    "vocab_size": 4096,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "dtype": "float32",
}


@dataclass(frozen=True)
class Load:
    """What is played: `batch` clients, each with `requests` one after the other. Tokens."""

    batch: int = 16
    requests: int = 2
    prompt: int = 1024
    output: int = 64
    rounds: int = 3


QUICK = Load(batch=4, requests=1, prompt=32, output=8, rounds=1)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Micro-batches against none.")
    parser.add_argument("--quick", action="store_true", help="a smoke run; writes no results")
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--batch", type=int, default=Load.batch)
    parser.add_argument("--rounds", type=int, default=Load.rounds)
    parser.add_argument("--out", type=Path, help="folder for the results (default: results/)")
    return parser.parse_args(argv)


def specs(folder: str, stages: int) -> dict[str, EngineSpec]:
    def spec(**changes: Any) -> EngineSpec:
        return EngineSpec(
            folder=folder,
            device="cpu",
            load_format="random",
            threads=1,
            kv_cache_bytes=1 << 28,
            prefix_caching=False,
            **changes,
        )

    spread: dict[str, Any] = {"gpu_mode": "pipeline", "gpus": stages}
    return {
        ALONE: spec(),
        SERIAL: spec(**spread, micro_batches=1),
        MICRO: spec(**spread),
    }


async def play(client: EngineClient, load: Load, seed: int) -> tuple[float, list[list[int]]]:
    """Output tokens per second of all clients, from the first request to the last token; and
    what each request was answered."""
    sampling = SamplingParams(max_tokens=load.output, temperature=0.0, ignore_eos=True)

    async def one(number: int) -> list[list[int]]:
        rng = random.Random(f"{seed} {number}")
        said: list[list[int]] = []
        for _ in range(load.requests):
            prompt = [rng.randrange(3, SHAPE["vocab_size"]) for _ in range(load.prompt)]
            job = Job(id="bench", prompt=prompt, sampling=sampling)
            answer = [token async for d in client.generate(job) for token in d.token_ids]
            said.append(answer)
        return said

    began_s = time.monotonic()
    said = [
        answer
        for answers in await asyncio.gather(*map(one, range(load.batch)))
        for answer in answers
    ]
    return sum(map(len, said)) / (time.monotonic() - began_s), said


async def measure(stages: int, load: Load) -> tuple[dict[str, list[float]], float]:
    """Output tokens per second by system and round, and the share of the pipelines' answers that
    are those of one process."""
    with tempfile.TemporaryDirectory(prefix="pipeline-bench-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(SHAPE))
        async with contextlib.AsyncExitStack() as stack:
            clients = {}
            for name, spec in specs(folder, stages).items():
                clients[name] = EngineClient(spec)
                await clients[name].start()
                stack.push_async_callback(clients[name].close)
                layers = [rank.layers for rank in clients[name].info().ranks]
                say(f"{name} is up, layers {layers}")
                await play(clients[name], QUICK, 0)
            rates: dict[str, list[float]] = {name: [] for name in clients}
            same: list[bool] = []
            for number in range(load.rounds):
                answers = []
                for name, client in clients.items():
                    rate, said = await play(client, load, number)
                    rates[name].append(rate)
                    answers.append(said)
                    say(f"round {number + 1}: {name} {rate:.1f} tok/s")
                same += [
                    a == b for said in answers[1:] for a, b in zip(said, answers[0], strict=True)
                ]
    return rates, sum(same) / len(same)


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    load = QUICK if args.quick else Load(batch=args.batch, rounds=args.rounds)
    about = machine.describe(None)
    rates, agreement = asyncio.run(measure(args.stages, load))
    gains = [m / s for m, s in zip(rates[MICRO], rates[SERIAL], strict=True)]
    gain = statistics.median(gains)
    speed = Promise(
        f"output tok/s of {args.stages} stages with micro-batches against without, batch "
        f"{load.batch}",
        f"{gain:.2f}× ({min(gains):.2f} to {max(gains):.2f} in {load.rounds} rounds)",
        f"≥ {TARGET}×",
        gain >= TARGET,
        timing=True,
    )
    equal = Promise(
        "same answers", f"{agreement:.1%}", f"≥ {AGREEMENT:.0%}", agreement >= AGREEMENT
    )
    promises = [speed, equal]
    lines = [
        "# Pipeline with micro-batches",
        "",
        f"`python benchmarks/pipeline.py --stages {args.stages} --batch {load.batch} "
        f"--rounds {load.rounds}` on {about['date']}: {about['cpu']}, {about['cores']} cores, "
        f"torch {about['ours']['torch']}. {load.batch} clients with {load.requests} requests of "
        f"{load.prompt} prompt and {load.output} output tokens each, one after the other; one "
        "thread for each rank, systems in turns.",
        "",
        "| system | output tok/s, median | least | most |",
        "|---|---|---|---|",
        *(
            f"| {name} | {statistics.median(r):.1f} | {min(r):.1f} | {max(r):.1f} |"
            for name, r in rates.items()
        ),
        "",
        f"{agreement:.1%} of the pipelines' answers are those of one process, token for token. "
        "(Random weights route some token to one of two experts that are equal up to rounding, "
        "which depends on the batch, in one process too.)",
        "",
        *table(promises),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if not args.quick:
        result = {
            "machine": about,
            "load": asdict(load),
            "shape": SHAPE,
            "rates": rates,
            "agreement": agreement,
        }
        keep(args.out or RESULTS, about["date"], "pipeline", text, result)
    return exit_status(promises, quick=args.quick)


if __name__ == "__main__":
    raise SystemExit(main())
