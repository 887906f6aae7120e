"""Decode and prefill rates of a gpt-oss-20b-shaped model on one GPU, beside the memory's floor.

    python benchmarks/gpu_step.py              # random bf16 weights; needs about 60 GiB
    python benchmarks/gpu_step.py --dry-run    # a tiny shape on the CPU: tries the script only

Drives `EngineCore` in this process: no HTTP, no tokenizer. The floor of a decode step is the
time to read, at the measured copy bandwidth, every byte that the step must read: attention,
router and output weights once, the experts that the batch touches, and the KV cache. Without a
CUDA device it says so and exits 0.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import GptOssConfig

from gpt_oss_server.engine.core import EngineCore
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.types import Job, SamplingParams

COPY_BYTES = 2 << 30


@dataclass(frozen=True)
class Case:
    """What is measured, on what shape."""

    config: GptOssConfig
    device: str
    dtype: str
    batches: tuple[int, ...]
    prompt_tokens: int
    prefill_tokens: int
    steps: int
    repeats: int


def full_case() -> Case:
    # The shape of openai/gpt-oss-20b, from its published config.json.
    config = GptOssConfig(num_hidden_layers=24, num_local_experts=32, num_experts_per_tok=4)
    return Case(config, "cuda", "bfloat16", (1, 8, 64), 128, 8192, 128, 5)


def dry_case() -> Case:
    config = GptOssConfig(
        num_hidden_layers=2,
        hidden_size=64,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        vocab_size=512,
        eos_token_id=None,
        pad_token_id=None,
    )
    return Case(config, "cpu", "float32", (1, 4), 16, 512, 4, 2)


class Bench:
    """One engine, one prompt generator."""

    def __init__(self, case: Case, core: EngineCore) -> None:
        self._case = case
        self._core = core
        self._rng = random.Random(0)
        self._key = 0

    def submit(self, tokens: int, output: int) -> None:
        # Ids below 500 are in every vocabulary; distinct prompts share no prefix.
        prompt = self._rng.choices(range(500), k=tokens)
        sampling = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)
        self._key += 1
        self._core.submit(self._key, Job(id=str(self._key), prompt=prompt, sampling=sampling))

    def decode_step_s(self, batch: int) -> float:
        """Median seconds of a step in which `batch` sequences decode one token each. A step ends
        when its tokens are on the host, so no further synchronisation is needed."""
        for _ in range(batch):
            self.submit(self._case.prompt_tokens, 3 * self._case.steps)
        while len(self._core.step().deltas) < batch:
            pass
        for _ in range(self._case.steps // 4):  # captured graphs, autotuning, clocks
            self._core.step()
        times_s = []
        for _ in range(self._case.steps):
            began_s = time.perf_counter()
            self._core.step()
            times_s.append(time.perf_counter() - began_s)
        self.drain()
        return statistics.median(times_s)

    def prefill_s(self) -> float:
        """Median seconds from a prompt's submission to its first token, after one unmeasured."""
        times_s = []
        for _ in range(1 + self._case.repeats):
            self.submit(self._case.prefill_tokens, 1)
            began_s = time.perf_counter()
            self.drain()
            times_s.append(time.perf_counter() - began_s)
        return statistics.median(times_s[1:])

    def drain(self) -> None:
        while self._core.has_work:
            failures = self._core.step().failures
            if failures:
                raise RuntimeError(str(failures[0][1]))


def copy_bandwidth(device: str, dry: bool) -> float:
    """Bytes read and written per second by a large copy on the device."""
    source = torch.empty((COPY_BYTES >> 6) if dry else COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def once() -> float:
        began_s = time.perf_counter()
        target.copy_(source)
        if source.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - began_s

    for _ in range(3):
        once()
    return 2 * source.numel() / statistics.median(once() for _ in range(10))


def decode_bytes(config: GptOssConfig, batch: int, context: int, itemsize: int) -> float:
    """Bytes that one decode step must read. Experts touched per layer: E(1-(1-k/E)^B), for
    routing that is uniform and independent."""
    c = config
    q, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    attention = c.hidden_size * (2 * q + 2 * kv) + 2 * q + 2 * kv
    router = (c.hidden_size + 1) * c.num_local_experts
    expert = 3 * c.hidden_size * c.intermediate_size + 2 * c.intermediate_size + c.hidden_size
    share = c.num_experts_per_tok / c.num_local_experts
    touched = c.num_local_experts * (1 - (1 - share) ** batch)
    layers = c.num_hidden_layers
    weights = layers * (attention + router + touched * expert) + c.vocab_size * c.hidden_size
    rows = sum(
        min(context, c.sliding_window) if kind == "sliding_attention" else context
        for kind in c.layer_types
    )
    return itemsize * (weights + batch * rows * 2 * kv)


def measure(case: Case, dry: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        case.config.architectures = ["GptOssForCausalLM"]
        case.config.save_pretrained(folder)
        spec = EngineSpec(
            folder=folder,
            device=case.device,
            dtype=case.dtype,
            load_format="random",
            max_num_seqs=max(case.batches),
        )
        core = EngineCore(spec, lambda text: print(text, file=sys.stderr))
    bandwidth = copy_bandwidth(case.device, dry)
    bench = Bench(case, core)
    itemsize = 2 if case.dtype == "bfloat16" else 4
    rows = []
    for batch in case.batches:
        step_s = bench.decode_step_s(batch)
        context = case.prompt_tokens + case.steps
        floor_s = decode_bytes(case.config, batch, context, itemsize) / bandwidth
        rows.append(
            {
                "batch": batch,
                "step_ms": round(step_s * 1000, 3),
                "tokens_per_s": round(batch / step_s, 1),
                "floor_ms": round(floor_s * 1000, 3),
                "times_floor": round(step_s / floor_s, 2),
            }
        )
    prefill_s = bench.prefill_s()
    info = core.info()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": torch.cuda.get_device_name() if case.device == "cuda" else "CPU (dry run)",
        "shape": "tiny" if dry else "gpt-oss-20b",
        "torch": torch.__version__,
        "attention_backend": info.attention_backend,
        "weights_gib": round(info.weights_bytes / 2**30, 2),
        "copy_bandwidth_gb_s": round(bandwidth / 1e9, 1),
        "decode": rows,
        "prefill_tokens": case.prefill_tokens,
        "prefill_tokens_per_s": round(case.prefill_tokens / prefill_s, 1),
    }


def markdown(result: dict[str, Any]) -> str:
    lines = [
        f"# GPU step benchmark, {result['date']}",
        "",
        f"{result['device']}; torch {result['torch']}; attention backend "
        f"{result['attention_backend']}; {result['shape']} shape, random weights, "
        f"{result['weights_gib']} GiB; measured copy bandwidth "
        f"{result['copy_bandwidth_gb_s']} GB/s (read + write).",
        "",
        "| batch | step ms | tok/s | floor ms | × floor |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['batch']} | {r['step_ms']} | {r['tokens_per_s']:,} | {r['floor_ms']} "
        f"| {r['times_floor']} |"
        for r in result["decode"]
    ]
    lines += [
        "",
        f"Prefill of {result['prefill_tokens']:,} tokens: "
        f"{result['prefill_tokens_per_s']:,} tokens/s.",
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="gpt-oss-20b-shaped steps on one GPU.")
    parser.add_argument("--dry-run", action="store_true", help="a tiny shape on the CPU")
    parser.add_argument("--out", type=Path, help="folder to write dated .md and .json into")
    args = parser.parse_args(argv)
    if not args.dry_run and not torch.cuda.is_available():
        print("no CUDA device: not run")
        return 0
    if args.dry_run:
        torch.set_num_threads(1)
    result = measure(dry_case() if args.dry_run else full_case(), args.dry_run)
    text = markdown(result)
    print(text)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        name = f"{result['date'][:10]}-gpu-step"
        (args.out / f"{name}.md").write_text(text)
        (args.out / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
