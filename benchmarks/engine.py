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

RESULTS = Path(__file__).resolve().parent / "results"
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


def measure(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Everything, in order; returns the result as JSON-ready data."""
    scale = scale_of(args)
    peer_python = None
    if not args.no_peer and systems.peer_is_usable(args.peer_python):
        peer_python = args.peer_python
    described = machine.describe(peer_python)
    model = work / "bench-35m"
    say("making the model")
    parameters = make_model(model)
    with contextlib.ExitStack() as stack:
        ours = systems.our_server(model, work / "ours.log")
        core = LineSystem("ours, in-process", "inprocess", model, work / "inprocess.log")
        static = LineSystem("generate, static", "static_batches", model, work / "static.log")
        peers = []
        if peer_python is not None:
            peers.append(systems.peer_server(peer_python, model, work / "peer.log", args.peer_arg))
        servers: list[HttpSystem] = [ours, *peers]
        everyone: list[HttpSystem | LineSystem] = [*servers, static, core]
        for system in everyone:
            stack.callback(system.stop)
            say(f"{system.name} is up after {system.start():.1f} s")
        sections.warm_up(everyone, say)
        rounds = sections.throughput(everyone, scale, say)
        result = {
            "command": command_line(args),
            "machine": described,
            "parameters": parameters,
            "scale": dataclasses.asdict(scale),
            "rounds": scale.rounds,
            "peer_absent": None if peers else peer_absence(args),
            "peer_args": args.peer_arg,
            "throughput": {
                c: {name: figures.summary(played) for name, played in by_name.items()}
                for c, by_name in rounds.items()
            },
            "agreement": agreement(model, rounds, static.name),
            "client_cpu_share": max(
                figures.client_share(played) or 0.0
                for by_name in rounds.values()
                for played in by_name.values()
            ),
            "boundary": sections.boundary(ours, core, scale, say),
            "prefix": sections.prefix(servers, scale, say),
            "mixed": sections.mixed(servers, scale, say),
        }
        if peers:
            pairs = {c: (r[ours.name], r[peers[0].name]) for c, r in rounds.items()}
            result["rate_ratios"] = {c: figures.rate_ratio(*p) for c, p in pairs.items()}
            result["ttft_ratio_32"] = figures.first_token_ratio(*pairs["32"])
        say(f"{scale.leak_requests} random requests against the block arithmetic")
        result["kv"] = core.ask({"do": "leaks", "requests": scale.leak_requests, "seed": 0})
    described["load_average_after"] = round(os.getloadavg()[0], 1)
    return result


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
    parts += [f"--rounds {args.rounds}"] if args.rounds is not None else []
    parts += [f"--leak-requests {args.leak_requests}"] if args.leak_requests is not None else []
    return " ".join(parts)


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    try:
        with tempfile.TemporaryDirectory(prefix="engine-bench-") as work:
            result = measure(args, Path(work))
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
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
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
