"""Prefill over two tensor ranks against one, on a CPU, each rank with one thread.

    python benchmarks/tensor.py --out benchmarks/results
    python benchmarks/tensor.py --dry-run      # a tiny shape: tries the script only

Steps of `--tokens` prompt tokens of one sequence, on shapes whose matrix products dominate, run by
the parts that the server runs: one rank in a process of its own, and two in two that sum over gloo.
All are loaded before the first measurement and take turns; the figure is the median over turns.
Logits of both are compared. No HTTP, no scheduling.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = 16
TIMEOUT_S = 120.0
GROUPED = {
    "vocab_size": 8192,
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
# Wide: products grow with the square of the width, what ranks sum (2 MiB each time) only with it.
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {
        **GROUPED,
        "model_type": "llama",
        "num_hidden_layers": 3,
        "intermediate_size": 8192,
    },
    "gpt_oss": {
        **GROUPED,
        "model_type": "gpt_oss",
        "num_hidden_layers": 2,
        "intermediate_size": 2048,
        "num_local_experts": 8,
        "num_experts_per_tok": 4,
        "sliding_window": 128,
    },
}
TINY = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}


def rank(pipe: Connection, index: int, world: int, port: int, folder: str, tokens: int) -> None:
    """One rank's process: load, then a step for each message."""
    import torch

    from gpt_oss_server.engine.attention.interface import ATTENTION_NAME, StepContext
    from gpt_oss_server.engine.attention.tiled import TiledBackend
    from gpt_oss_server.engine.layout import allocate_layers, register_attention
    from gpt_oss_server.engine.ranks.comms import Comms
    from gpt_oss_server.engine.ranks.loading import load_part
    from gpt_oss_server.engine.ranks.place import Place
    from gpt_oss_server.engine.spec import EngineSpec
    from gpt_oss_server.engine.step import HostLayout, StepLayout, to_device
    from gpt_oss_server.memory.kv import plan_pools

    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    place = Place(index, tp=world)
    comms = Comms.open(place, cpu, port, TIMEOUT_S) if world > 1 else Comms.alone(cpu)
    spec = EngineSpec(
        folder=folder, device="cpu", load_format="random", gpu_mode="tensor", gpus=world
    )
    part = load_part(spec, place, comms, lambda _: None)
    register_attention()
    part.loaded.model.set_attn_implementation(ATTENTION_NAME)
    blocks = -(-tokens // BLOCK)
    plan = plan_pools(part.shape, 1 << 30, BLOCK, 1, tokens, 4)
    layers = allocate_layers(plan, part.shape, BLOCK, torch.float32, cpu)
    backend = TiledBackend(BLOCK)
    tables = tuple(np.arange(blocks, dtype=np.int32)[None] for _ in plan.groups)
    ids = np.random.default_rng(0).integers(2, 100, tokens)
    layout = StepLayout(
        ids, np.array([tokens - 1]), HostLayout(np.array([0, tokens]), np.array([tokens]), tables)
    )
    pipe.send(part.loaded.weights_bytes)
    while pipe.recv():
        began = time.perf_counter()
        with torch.inference_mode():
            step = to_device(layout, BLOCK, cpu)
            context = StepContext(layers, step, backend.plan(step), torch.zeros(tokens))
            logits = part.forward(step, context, None)
        taken = time.perf_counter() - began
        pipe.send((taken, None if logits is None else logits[0].tolist()))


class Group:
    """The processes of one world."""

    def __init__(self, world: int, folder: str, tokens: int) -> None:
        from gpt_oss_server.engine.ranks.comms import open_store

        context = multiprocessing.get_context("spawn")
        self._store = open_store(TIMEOUT_S)
        self._pipes, self._processes = [], []
        for index in range(world):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=rank,
                args=(theirs, index, world, self._store.port, folder, tokens),
                daemon=True,
            )
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)
        self.weights_bytes = [pipe.recv() for pipe in self._pipes]

    def step(self) -> tuple[float, list[float]]:
        """Seconds until the slowest rank was done, and the first one's logits."""
        for pipe in self._pipes:
            pipe.send(True)
        answers = [pipe.recv() for pipe in self._pipes]
        return max(answer[0] for answer in answers), answers[0][1]

    def close(self) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.send(False)
            process.join()


def measure(name: str, config: dict[str, Any], tokens: int, turns: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        groups = {world: Group(world, folder, tokens) for world in (1, 2)}
        times: dict[int, list[float]] = {world: [] for world in groups}
        logits = {}
        for turn in range(-1, turns):
            for world in (1, 2) if turn % 2 else (2, 1):
                taken, logits[world] = groups[world].step()
                if turn >= 0:
                    times[world].append(taken)
        for group in groups.values():
            group.close()
    rates = {world: tokens / statistics.median(taken) for world, taken in times.items()}
    far = max(abs(a - b) for a, b in zip(logits[1], logits[2], strict=True))
    return {
        "shape": name,
        "tokens": tokens,
        "one_tokens_s": rates[1],
        "two_tokens_s": rates[2],
        "ratio": rates[2] / rates[1],
        "weights_share": groups[2].weights_bytes[0] / groups[1].weights_bytes[0],
        "largest_logit_difference": far,
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| shape | tokens a step | one rank tok/s | two ranks tok/s | ratio | weights per rank |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['shape']} | {row['tokens']} | {row['one_tokens_s']:.0f} | "
        f"{row['two_tokens_s']:.0f} | {row['ratio']:.2f} | {row['weights_share']:.3f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--out", type=Path, help="folder for a dated .json and .md")
    asked = parser.parse_args()
    # Before any child imports torch: one thread each, whatever the machine has.
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    small = TINY if asked.dry_run else {}
    rows = [
        measure(name, {**config, **small}, asked.tokens, 2 if asked.dry_run else asked.turns)
        for name, config in SHAPES.items()
    ]
    text = table(rows)
    print(text)
    if asked.out and not asked.dry_run:
        now = datetime.now(UTC)
        stem = asked.out / f"{now:%Y-%m-%d}-tensor"
        machine = {"cpus": os.cpu_count(), "threads_per_rank": 1}
        stem.with_suffix(".json").write_text(
            json.dumps({"at": f"{now:%Y-%m-%d}", "machine": machine, "rows": rows}, indent=1)
        )
        stem.with_suffix(".md").write_text(
            "# Prefill over two tensor ranks against one\n\nfloat32 on a CPU, one thread per rank, "
            f"gloo; medians of {asked.turns} turns, {os.cpu_count()} cores.\n\n{text}\n"
        )


if __name__ == "__main__":
    main()
