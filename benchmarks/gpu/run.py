"""Every row of docs/performance.md's table on one GPU, by one command.

    make bench-gpu                                     # about nine minutes on one H100
    make bench-gpu ARGS='--resume'                     # what the command before had no time for
    make bench-gpu ARGS='--sections decode prefill'    # some topics
    make bench-gpu ARGS='--tune'                       # the sweeps of tiles too
    python benchmarks/gpu/run.py --device cpu --shape tiny     # a rehearsal, without a GPU

Needs torch, transformers, triton, safetensors, numpy and psutil, and no network; where msgspec or
llguidance is missing, `standins/` has as much of them as a lone engine needs. Makes random models
of gpt-oss-20b's shape in the work folder (13 GiB of disk) or on the GPU. After every section the
page and the JSON are written anew, so that a run that is cut off loses nothing. With --sections and
--resume what was found before stays in the page. How to read it is in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "src"))

from gpu_bench import report  # noqa: E402
from gpu_bench.catalog import Section, by_host, chosen, expected_s  # noqa: E402
from gpu_bench.hosts import has_cuda, run_host  # noqa: E402
from gpu_bench.records import clear, read_all  # noqa: E402
from gpu_bench.settings import Settings  # noqa: E402
from gpu_bench.shapes import SHAPES  # noqa: E402
from gpu_bench.targets import missing, rows  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
WORK = ROOT / "build" / "bench-gpu"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Our engine on one GPU, against its targets.")
    add = parser.add_argument
    add("--sections", nargs="+", default=[], metavar="NAME", help="topics (decode) or sections")
    add("--tune", action="store_true", help="the sweeps of the kernels' tiles too")
    add("--resume", action="store_true", help="only what has no good result in the work folder")
    add("--minutes", type=float, default=9.0, help="begin nothing that would end later (9)")
    add("--shape", choices=SHAPES, default="20b", help="the model's (20b)")
    add("--layers", type=int, help="another number of layers")
    add("--device", default="cuda", help="cuda, or cpu for a rehearsal")
    add("--attention", default="auto", help="the engine's attention backend (auto)")
    add("--experts", default="auto", help="who computes its experts (auto)")
    add("--max-batch-tokens", type=int, help="the engine's tokens a step")
    add("--eager", action="store_true", help="no captured steps")
    add("--peer-limit", type=float, default=60.0, help="seconds for generate_batch's whole (60)")
    add("--work", type=Path, default=WORK, help="folder for models and records (build/bench-gpu)")
    add("--out", type=Path, help="folder for the result (benchmarks/results on a GPU)")
    add("--list", action="store_true", help="say what would run, and how long it should take")
    return parser.parse_args(argv)


def settings_of(args: argparse.Namespace) -> Settings:
    return Settings(
        folder=str(args.work.resolve()),
        shape=args.shape,
        layers=args.layers,
        device=args.device,
        attention=args.attention,
        experts=args.experts,
        max_batch_tokens=args.max_batch_tokens,
        eager=args.eager,
        peer_limit_s=args.peer_limit,
        deadline_s=time.time() + 60.0 * args.minutes,
    )


def wanted(args: argparse.Namespace, settings: Settings) -> list[Section]:
    """Raises ValueError for a section that does not exist."""
    sections = chosen(args.sections, tune=args.tune)
    if args.resume:
        good = {name for name, one in read_all(settings.records).items() if one.trouble is None}
        sections = [one for one in sections if one.name not in good]
    return sections


def run(args: argparse.Namespace, settings: Settings, sections: Sequence[Section]) -> Path:
    out = args.out or (RESULTS if settings.device.startswith("cuda") else args.work)
    command = " ".join(["python benchmarks/gpu/run.py", *(sys.argv[1:])])
    left: list[str] = []

    def write() -> Path:
        return report.write(settings, read_all(settings.records), out, command, left)

    for host, group in by_host(sections):
        current, skipped = run_host(settings, host, group, lambda: write() and None)
        # A host that cannot capture says nothing of the next one.
        settings = replace(current, eager=args.eager)
        left += [one.name for one in group if one.name in skipped]
    return write()


def main(argv: Sequence[str] | None = None) -> int:
    """0; 1 where a section failed or a target is missed; 2 for impossible arguments."""
    args = parse(argv)
    settings = settings_of(args)
    try:
        sections = wanted(args, settings)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.list:
        for one in sections:
            print(f"{one.name:24} {one.host:20} {one.seconds:6.0f} s")
        print(f"about {expected_s(sections) / 60:.1f} minutes on one H100")
        return 0
    if settings.device.startswith("cuda") and not has_cuda():
        print("no CUDA device: not run")
        return 0
    if not args.sections and not args.resume:
        clear(settings.records)
    page = run(args, settings, sections)
    print(page.read_text())
    print(f"written to {page} and {page.with_suffix('.json').name}", file=sys.stderr)
    records = read_all(settings.records)
    table = rows(settings, records)
    for what in missing(table):
        print(f"not measured: {what}", file=sys.stderr)
    well = all(one.trouble is None for one in records.values())
    return 0 if well and all(row.met is not False for row in table) else 1


if __name__ == "__main__":
    raise SystemExit(main())
