"""Our server beside `transformers serve`, `generate` in static batches, and our bare engine.

    python benchmarks/engine.py                      # about a quarter of an hour
    python benchmarks/engine.py --quick              # a smoke run; writes nothing
    python benchmarks/engine.py --peer-python PATH   # an interpreter with transformers[serving]

Makes a gpt-oss-shaped model of 35 M parameters in a temporary folder, plays the same prompts to
every system in turns, prints the tables and writes them, dated, into `benchmarks/results/`.
`benchmarks/README.md` says what is measured and how to read it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine_bench import figures, machine, report, sections, systems
from engine_bench.figures import Round
from engine_bench.systems import BenchError, HttpSystem, LineSystem
from gpt_oss_server.engine.client import KEEP_FREED_MEMORY

RESULTS = Path(__file__).resolve().parent / "results"
SECTIONS = ("closed", "boundary", "prefix", "mixed", "kv")
PEER_CURE = "install the extra `bench` (pip install -e '.[bench]') or give --peer-python PATH"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Our engine against transformers.")
    parser.add_argument("--quick", action="store_true", help="a smoke run; writes no results")
    parser.add_argument(
        "--peer-python",
        default=sys.executable,
        help="interpreter that can run `transformers serve` (default: this one)",
    )
    parser.add_argument("--no-peer", action="store_true", help="leave `transformers serve` out")
    parser.add_argument(
        "--peer-arg", action="append", default=[], help="one more argument for the peer; repeatable"
    )
    parser.add_argument(
        "--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="sections to measure"
    )
    parser.add_argument("--rounds", type=int, help="rounds of the closed loops")
    parser.add_argument("--leak-requests", type=int, help="random requests of the block check")
    parser.add_argument("--out", type=Path, help="folder for the results (default: results/)")
    return parser.parse_args(argv)


def scale_of(args: argparse.Namespace) -> sections.Scale:
    scale = sections.QUICK if args.quick else sections.Scale()
    if args.rounds is not None:
        scale = dataclasses.replace(scale, rounds=args.rounds)
    if args.leak_requests is not None:
        scale = dataclasses.replace(scale, leak_requests=args.leak_requests)
    return scale


def make_model(folder: Path) -> int:
    """Write model and tokenizer, in a process of its own; returns the number of parameters."""
    done = subprocess.run(
        [sys.executable, "-m", "engine_bench.model", str(folder)],
        env=systems.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BenchError("cannot make the model:\n" + done.stderr[-2000:])
    return int(done.stdout.split()[-1])


class Run:
    """One run: the systems that are up and the sections measured so far."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        self._scale = scale_of(args)
        self._wanted = args.only
        self._model = work / "bench-35m"
        usable = not args.no_peer and systems.peer_is_usable(args.peer_python)
        say("making the model")
        self.result: dict[str, Any] = {
            "command": command_line(args),
            "machine": machine.describe(args.peer_python if usable else None),
            "parameters": make_model(self._model),
            "scale": dataclasses.asdict(self._scale),
            "peer_absent": None if usable else peer_absence(args),
            "peer_args": args.peer_arg,
        }
        model = self._model
        self._ours = systems.our_server(model, work / "ours.log")
        self._core = LineSystem(
            "ours, in-process", "inprocess", model, work / "inprocess.log", KEEP_FREED_MEMORY
        )
        self._static = LineSystem("generate, static", "static_batches", model, work / "static.log")
        self._servers: list[HttpSystem] = [self._ours]
        if usable:
            log = work / "peer.log"
            self._servers.append(systems.peer_server(args.peer_python, model, log, args.peer_arg))

    def measure(self) -> None:
        """All sections that are wanted, each into `result` as soon as it is done."""
        sections_in_order = {
            "closed": self._closed,
            "boundary": self._boundary,
            "prefix": self._prefix,
            "mixed": self._mixed,
            "kv": self._kv,
        }
        with contextlib.ExitStack() as stack:
            everyone = [*self._servers, self._static, self._core]
            for system in everyone:
                stack.callback(system.stop)
                say(f"{system.name} is up after {system.start():.1f} s")
            sections.warm_up(everyone, say)
            for name, section in sections_in_order.items():
                if name in self._wanted:
                    section()
        self.result["machine"]["load_average_after"] = round(os.getloadavg()[0], 1)

    def _closed(self) -> None:
        everyone = [*self._servers, self._static, self._core]
        rounds = sections.throughput(everyone, self._scale, say)
        self.result["throughput"] = {
            c: {name: figures.summary(played) for name, played in by_name.items()}
            for c, by_name in rounds.items()
        }
        self.result["agreement"] = agreement(self._model, rounds, self._static.name)
        self.result["client_cpu_share"] = max(
            figures.client_share(played) or 0.0
            for by_name in rounds.values()
            for played in by_name.values()
        )
        for peer in self._servers[1:]:
            pairs = {c: (r[self._ours.name], r[peer.name]) for c, r in rounds.items()}
            self.result["rate_ratios"] = {c: figures.rate_ratio(*p) for c, p in pairs.items()}
            per_cpu = {c: figures.cpu_rate_ratio(*p) for c, p in pairs.items()}
            self.result["rate_ratios_per_cpu_s"] = per_cpu
            self.result["ttft_ratio_32"] = figures.first_token_ratio(*pairs["32"])

    def _boundary(self) -> None:
        self.result["boundary"] = sections.boundary(self._ours, self._core, self._scale, say)

    def _prefix(self) -> None:
        self.result["prefix"] = sections.prefix(self._servers, self._scale, say)

    def _mixed(self) -> None:
        self.result["mixed"] = sections.mixed(self._servers, self._scale, say)

    def _kv(self) -> None:
        say(f"{self._scale.leak_requests} random requests against the block arithmetic")
        command = {"do": "leaks", "requests": self._scale.leak_requests, "seed": 0}
        self.result["kv"] = self._core.ask(command)


def agreement(model: Path, rounds: dict[str, Any], reference: str) -> dict[str, tuple[int, int]]:
    """How many answers of each system are `generate`'s, character for character."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))

    def texts(played: list[Round], decode: bool) -> list[str]:
        outputs = [text for one in played for text in one.outputs]
        return [tokenizer.decode(json.loads(o)) for o in outputs] if decode else outputs

    counted: dict[str, tuple[int, int]] = {}
    for by_name in rounds.values():
        wanted = texts(by_name[reference], True)
        for name, played in by_name.items():
            if name != reference:
                found = texts(played, name == "ours, in-process")
                same = sum(a == b for a, b in zip(found, wanted, strict=True))
                before = counted.get(name, (0, 0))
                counted[name] = (before[0] + same, before[1] + len(wanted))
    return counted


def peer_absence(args: argparse.Namespace) -> str:
    return "left out with --no-peer" if args.no_peer else f"not installed; {PEER_CURE}"


def command_line(args: argparse.Namespace) -> str:
    """The command as it can be printed: without paths of this machine."""
    parts = ["python benchmarks/engine.py"]
    parts += ["--quick"] if args.quick else []
    parts += ["--no-peer"] if args.no_peer else []
    parts += ["--peer-python PATH"] if args.peer_python != sys.executable else []
    parts += [f"--peer-arg={part}" for part in args.peer_arg]
    parts += [f"--only {' '.join(args.only)}"] if tuple(args.only) != SECTIONS else []
    parts += [f"--rounds {args.rounds}"] if args.rounds is not None else []
    parts += [f"--leak-requests {args.leak_requests}"] if args.leak_requests is not None else []
    return " ".join(parts)


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    status = 0
    try:
        with tempfile.TemporaryDirectory(prefix="engine-bench-") as work:
            run = Run(args, Path(work))
            try:
                run.measure()
            except (BenchError, KeyboardInterrupt) as error:
                # What was measured before is worth keeping: it took long.
                print(f"error: {str(error) or 'interrupted'}", file=sys.stderr)
                run.result["incomplete"] = True
                status = 1
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    result = run.result
    if not any(name in result for name in ("throughput", "boundary", "prefix", "mixed", "kv")):
        return 1
    text = report.markdown(result)
    print(text)
    folder = args.out or (None if args.quick else RESULTS)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{result['machine']['date'][:10]}-engine"
        (folder / f"{name}.md").write_text(text)
        (folder / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
        say(f"written: {name}.md and {name}.json")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
