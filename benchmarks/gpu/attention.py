"""The attention kernels on one GPU: right, and how near to what the machine can move and multiply.

    python benchmarks/gpu/attention.py                  # about three minutes on an H100
    python benchmarks/gpu/attention.py --sweep          # other tile sizes too, slower
    TRITON_INTERPRET=1 python benchmarks/gpu/attention.py --tiny   # without a GPU: the script only

Needs torch, numpy and triton, and no network. gpt-oss-20b's attention: 64 query heads, 8 KV heads
of 64, blocks of 16, sinks, bfloat16, random data in shuffled blocks. Each case is first compared
with the reference backend (float32) on fresh inputs; then LAYERS layers with pools of their own,
so that no cache holds what the next run reads, are captured with their plan in one CUDA graph, as
serving does, and replayed: the time is a replay's median by device events, divided by the layers.

Decode is compared with the copy bandwidth of this machine (bytes read and written by a large
copy), by the bytes that attention must move: keys and values that are seen, queries, results.
Prefill is compared with this machine's largest bfloat16 product, by the FLOP that causal attention
must do, and with torch's own attention without blocks where the case is one whole prompt.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from attention_problem import FULL, TINY, Case, Problem, Shape, cases, tiny_cases
from timing import ceilings, seconds

from gpt_oss_server.engine.attention.triton import TritonBackend
from gpt_oss_server.engine.kernels.kv_write import write_kv
from gpt_oss_server.engine.kernels.norm import add_rms_norm
from gpt_oss_server.engine.kernels.paged_tuning import DecodeTuning, PrefillTuning
from gpt_oss_server.engine.kernels.rotary import rotate_and_write

DECODE_TRIALS = (
    DecodeTuning(64, 256, 8, warps=4, stages=3),
    DecodeTuning(64, 128, 8, warps=4, stages=4),
    DecodeTuning(64, 128, 16, warps=4, stages=3),
    DecodeTuning(64, 128, 12, warps=4, stages=3),
    DecodeTuning(64, 128, 8, warps=2, stages=3),
    DecodeTuning(32, 128, 16, warps=2, stages=4),
    DecodeTuning(32, 128, 16, warps=1, stages=4),
    DecodeTuning(128, 128, 8, warps=4, stages=3),
    DecodeTuning(128, 256, 4, warps=8, stages=3),
)
PREFILL_TRIALS = (
    PrefillTuning(128, 64, 512, 4, warps=4, stages=3),
    PrefillTuning(128, 64, 512, 4, warps=8, stages=4),
    PrefillTuning(128, 128, 512, 4, warps=8, stages=3),
    PrefillTuning(64, 64, 512, 8, warps=4, stages=3),
    PrefillTuning(64, 128, 512, 8, warps=4, stages=2),
    PrefillTuning(256, 64, 512, 2, warps=8, stages=3),
)


@dataclass(frozen=True)
class Row:
    """One case's figures. `share` is of the copy bandwidth (decode) or of the product (prefill)."""

    case: str
    tiles: str
    microseconds: float
    gb_s: float
    tflop_s: float
    share: float
    error: float
    torch_microseconds: float | None


def measure(
    problem: Problem, backend: TritonBackend, tiles: str, limits: tuple[float, float]
) -> Row:
    """Raises RuntimeError where the result is wrong."""
    shape, case = problem.shape, problem.case
    error = problem.error(backend)
    took_s = seconds(lambda: problem.attend(backend, shape.layers), shape.device) / shape.layers
    per_byte, per_flop = problem.least_bytes() / took_s, problem.flop() / took_s
    share = per_byte / limits[0] if case.decode else per_flop / limits[1]
    whole_prompt = case.window is None and len(case.seqs) == 1 and case.seqs[0][0] == 0
    plain_us = plain_microseconds(problem) if whole_prompt else None
    return Row(
        case=case.name,
        tiles=tiles,
        microseconds=round(took_s * 1e6, 2),
        gb_s=round(per_byte / 1e9, 1),
        tflop_s=round(per_flop / 1e12, 1),
        share=round(share, 3),
        error=float(f"{error:.2e}"),
        torch_microseconds=plain_us,
    )


def plain_microseconds(problem: Problem) -> float:
    """torch's own causal attention on as many tokens, without blocks or sinks."""
    shape, tokens = problem.shape, len(problem.query)
    query = problem.query.transpose(0, 1).unsqueeze(0)
    key, value = (
        torch.randn(1, shape.kv_heads, tokens, shape.dim, device=shape.device, dtype=shape.dtype)
        for _ in range(2)
    )
    attend = torch.nn.functional.scaled_dot_product_attention
    took_s = seconds(
        lambda: attend(query, key, value, is_causal=True, enable_gqa=True), shape.device
    )
    return round(took_s * 1e6, 2)


def around(shape: Shape, tokens: int, limits: tuple[float, float]) -> list[dict[str, Any]]:
    """The kernels beside attention, on so many tokens: microseconds, and share of the copy."""
    device, dtype = shape.device, shape.dtype

    def numbers(*dims: int) -> torch.Tensor:
        return torch.randn(dims, device=device, dtype=dtype)

    blocks = -(-tokens // shape.block)
    keys, values = (numbers(blocks, shape.block, shape.kv_heads, shape.dim) for _ in range(2))
    sizes = [shape.heads, shape.kv_heads, shape.kv_heads]
    query, key, value = numbers(tokens, sum(sizes), shape.dim).split(sizes, dim=1)
    slots = torch.randperm(blocks * shape.block, device=device)[:tokens]
    written = torch.zeros(tokens, device=device)
    cos, sin = numbers(tokens, shape.dim // 2), numbers(tokens, shape.dim // 2)
    width = 2880 if device.type == "cuda" else 96
    hidden, residual, weight = numbers(tokens, width), numbers(tokens, width), numbers(width)
    row = shape.dim * dtype.itemsize * tokens
    rotation = (keys, values, written)
    works: dict[str, tuple[Callable[[], Any], int]] = {
        "KV write": (
            lambda: write_kv(keys, values, slots, key, value, written),
            4 * row * shape.kv_heads,
        ),
        "rotation and KV write": (
            lambda: rotate_and_write(query, key, value, cos, sin, slots, *rotation),
            2 * row * sum(sizes),
        ),
        "addition and norm": (
            lambda: add_rms_norm(hidden, residual, weight, 1e-5),
            4 * tokens * width * dtype.itemsize,
        ),
    }
    rows = []
    for name, (work, moved) in works.items():
        took_s = seconds(work, device)
        share = moved / took_s / limits[0]
        rows.append(
            {
                "kernel": name,
                "tokens": tokens,
                "microseconds": round(took_s * 1e6, 2),
                "share": round(share, 3),
            }
        )
    return rows


def run(shape: Shape, chosen: list[Case], sweep: bool) -> dict[str, Any]:
    limits = ceilings(shape.device, shape.dtype)
    rows: list[Row] = []
    for seed, case in enumerate(chosen):
        problem = Problem(case, shape, seed)
        backends = [(TritonBackend(), "table")]
        if sweep and case.decode:
            backends += [(TritonBackend(decode=one), str(one)) for one in DECODE_TRIALS]
        elif sweep:
            backends += [(TritonBackend(prefill=one), str(one)) for one in PREFILL_TRIALS]
        for backend, tiles in backends:
            try:
                rows.append(measure(problem, backend, tiles, limits))
            except (RuntimeError, torch.OutOfMemoryError) as error:
                print(f"FAILED {case.name} {tiles}: {error}", file=sys.stderr)
                rows.append(Row(case.name, tiles, 0.0, 0.0, 0.0, 0.0, -1.0, None))
            print(line(rows[-1]), file=sys.stderr)
        del problem
    tokens = (64, 8192) if shape.device.type == "cuda" else (5,)
    import triton

    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": torch.cuda.get_device_name()
        if shape.device.type == "cuda"
        else "CPU, interpreted",
        "torch": torch.__version__,
        "triton": triton.__version__,
        "copy_gb_s": round(limits[0] / 1e9, 1),
        "product_tflop_s": round(limits[1] / 1e12, 1),
        "rows": [asdict(row) for row in rows],
        "around": [one for count in tokens for one in around(shape, count, limits)],
    }


def line(row: Row) -> str:
    plain = "" if row.torch_microseconds is None else f"{row.torch_microseconds}"
    return (
        f"| {row.case} | {row.tiles} | {row.microseconds} | {row.gb_s} | {row.tflop_s} "
        f"| {row.share:.1%} | {row.error:.1e} | {plain} |"
    )


def markdown(result: dict[str, Any]) -> str:
    lines = [
        f"# Attention kernels, {result['date']}",
        "",
        f"{result['device']}; torch {result['torch']}, triton {result['triton']}. Ceilings of the "
        f"same run: copy {result['copy_gb_s']} GB/s, product {result['product_tflop_s']} "
        "TFLOP/s. A layer's time, its plan's share included. Share: of the copy for decode, of the "
        "product for prefill.",
        "",
        "| case | tiles | µs a layer | GB/s | TFLOP/s | share | error | torch, no blocks, µs |",
        "|---|---|---|---|---|---|---|---|",
        *(line(Row(**row)) for row in result["rows"]),
        "",
        "| kernel | tokens | µs | share of the copy |",
        "|---|---|---|---|",
        *(
            f"| {one['kernel']} | {one['tokens']} | {one['microseconds']} | {one['share']:.1%} |"
            for one in result["around"]
        ),
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The attention kernels on one GPU.")
    parser.add_argument("--tiny", action="store_true", help="interpreted, on the CPU")
    parser.add_argument("--sweep", action="store_true", help="other tile sizes too")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--layers", type=int, help="layers a graph has")
    parser.add_argument("--out", type=Path, help="folder to write dated .md and .json into")
    args = parser.parse_args(argv)
    if not args.tiny and not torch.cuda.is_available():
        print("no CUDA device: not run")
        return 0
    shape = TINY if args.tiny else FULL
    if args.layers is not None:
        shape = replace(shape, layers=args.layers)
    chosen = [one for one in (tiny_cases() if args.tiny else cases()) if args.only in one.name]
    with torch.inference_mode():
        result = run(shape, chosen, args.sweep)
    text = markdown(result)
    print(text)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        name = f"{result['date'][:10]}-gpu-attention"
        (args.out / f"{name}.md").write_text(text)
        (args.out / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    return 1 if any(row["error"] < 0 for row in result["rows"]) else 0


if __name__ == "__main__":
    raise SystemExit(main())
