"""What guided decoding costs, and whether what it gives is always valid.

    python benchmarks/guided.py                # all parts, about four minutes
    python benchmarks/guided.py --quick        # a smoke run; writes nothing
    python benchmarks/guided.py --only speed

Speed: output tokens per second of a full batch, in turns with none and with half of it guided,
in one process on one thread, as the median of the pairs' ratios: with the model of `engine.py` and
with the built-in shape, whose step is the shortest that masks could hide behind. Validity: random
schemas at temperature 1.5, each under a bound drawn at random, judged by the `jsonschema` package;
an output that is cut off, or a refusal of a bound that has room, counts against it. Weights are
random: a model that knows nothing of JSON.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch

import gpt_oss_server
from gpt_oss_server.engine.core import EngineCore
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.harmony.formats import open_chat_format
from gpt_oss_server.types import Grammar, GuidedSpec, Job, SamplingParams

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from guided_schemas import problem_of, random_schema

RESULTS = Path(__file__).resolve().parent / "results"
BUILT_IN = Path(gpt_oss_server.__file__).parent / "models" / "tiny"
BATCH = 32
OUTPUT_TOKENS = 200
WARM_UP_STEPS = 30
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 30}},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "address": {
            "type": "object",
            "properties": {
                "street": {"type": "string"},
                "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
            },
            "required": ["street", "zip"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "tags", "age", "address"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Pace:
    """One round's output tokens per second, and what ended in it."""

    tokens_per_s: float
    finished: int


class Bench:
    """One model, loaded."""

    def __init__(self, folder: Path) -> None:
        self.core = EngineCore(
            EngineSpec(
                folder=str(folder),
                load_format="random",
                device="cpu",
                max_num_seqs=BATCH,
                kv_cache_bytes=256 << 20,
            )
        )
        self.format = open_chat_format(folder, today=lambda: date(2026, 1, 1))
        self.prompt = self.format.render_chat([{"role": "user", "content": "Who are you?"}])
        self._keys = 0

    def job(self, seed: int, guided: GuidedSpec | None, max_tokens: int) -> Job:
        return Job(
            id=str(seed),
            prompt=self.prompt,
            sampling=SamplingParams(
                max_tokens=max_tokens,
                temperature=1.5,
                seed=seed,
                guided=guided,
                ignore_eos=guided is None,
            ),
        )

    def pace(self, guided_jobs: int, steps: int) -> Pace:
        """A closed loop of `BATCH` jobs for some steps: one that ends is followed by its like."""
        spec = GuidedSpec.whole(Grammar(kind="json_schema", source=json.dumps(PERSON)))
        kinds: dict[int, GuidedSpec | None] = {}

        def add(guided: GuidedSpec | None) -> None:
            self._keys += 1
            kinds[self._keys] = guided
            self.core.submit(self._keys, self.job(self._keys, guided, OUTPUT_TOKENS))

        for n in range(BATCH):
            add(spec if n < guided_jobs else None)
        tokens = finished = 0
        began_s = time.perf_counter()
        for step in range(WARM_UP_STEPS + steps):
            if step == WARM_UP_STEPS:
                tokens, finished, began_s = 0, 0, time.perf_counter()
            for key, delta in self.core.step().deltas:
                tokens += len(delta.token_ids)
                if delta.finish is not None:
                    finished += 1
                    add(kinds.pop(key))
        elapsed_s = time.perf_counter() - began_s
        for key in kinds:
            self.core.cancel(key)
        return Pace(tokens / elapsed_s, finished)

    def validity(self, schemas: int) -> dict[str, object]:
        """Random schemas through the harmony framing, all at once."""
        wanted = {}
        for n in range(schemas):
            rng = random.Random(n)
            schema = random_schema(rng)
            guide = self.format.answer_guide(Grammar(kind="json_schema", source=json.dumps(schema)))
            wanted[n] = schema
            self.core.submit(-1 - n, self.job(n, guide, rng.choice((150, 250, 400))))
        tokens: dict[int, list[int]] = {n: [] for n in wanted}
        endings: collections.Counter[str] = collections.Counter()
        problems: list[str] = []
        while self.core.has_work:
            events = self.core.step()
            for key, delta in events.deltas:
                tokens[-1 - key] += delta.token_ids
                endings[delta.finish or ""] += delta.finish is not None
            for key, error in events.failures:
                problems.append(f"schema {-1 - key}: {error}")
        refused = len(problems)
        for n, schema in wanted.items():
            problem = problem_of(self._content(tokens[n]), schema) if tokens[n] else None
            if problem is not None:
                problems.append(f"schema {n}: {problem}")
        return {
            "schemas": schemas,
            "valid": schemas - len(problems),
            "refused": refused,
            "ended_by_the_model": endings["stop"],
            "ended_by_the_bound": endings["length"],
            "output_tokens": sum(map(len, tokens.values())),
            "problems": problems,
        }

    def _content(self, tokens: list[int]) -> str:
        parser = self.format.chat_parser()
        pieces = [parser.feed(token) for token in tokens] + parser.finish()
        return "".join(piece.text for piece in pieces if piece.kind == "content")


def speed(folder: Path, rounds: int, steps: int) -> dict[str, object]:
    """Rounds in turns, so that a machine that slows down slows both."""
    bench = Bench(folder)
    bench.pace(BATCH // 2, 1)  # the grammar compiles
    pairs = [(bench.pace(0, steps), bench.pace(BATCH // 2, steps)) for _ in range(rounds)]
    ratios = [half.tokens_per_s / none.tokens_per_s for none, half in pairs]
    return {
        "batch": BATCH,
        "steps_per_round": steps,
        "none_guided_tokens_per_s": [round(none.tokens_per_s) for none, _ in pairs],
        "half_guided_tokens_per_s": [round(half.tokens_per_s) for _, half in pairs],
        "ratios": [round(ratio, 3) for ratio in ratios],
        "median_ratio": round(statistics.median(ratios), 3),
    }


def speeds(quick: bool) -> dict[str, object]:
    """Both models; the larger one is made first, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "bench-35m"
        command = [sys.executable, "-m", "engine_bench.model", str(model)]
        subprocess.run(command, cwd=RESULTS.parent, check=True, stdout=subprocess.DEVNULL)
        large = speed(model, *((1, 5) if quick else (5, 40)))
    return {
        "engine.py's model": large,
        "built-in shape": speed(BUILT_IN, *((2, 40) if quick else (9, 250))),
    }


def main(argv: list[str] | None = None) -> int:
    """Exit status 1 where an output was not valid."""
    parser = argparse.ArgumentParser(description="Guided decoding: cost and validity.")
    parser.add_argument("--quick", action="store_true", help="a smoke run; writes no results")
    parser.add_argument("--only", choices=("speed", "validity"), help="one part")
    parser.add_argument("--schemas", type=int, default=200)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    result: dict[str, object] = {
        "command": " ".join(["python", "benchmarks/guided.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, torch {torch.__version__}, one thread",
    }
    invalid = 0
    if args.only != "validity":
        result["speed"] = speeds(args.quick)
    if args.only != "speed":
        validity = Bench(BUILT_IN).validity(10 if args.quick else args.schemas)
        result["validity"] = validity
        invalid = len(validity["problems"])  # type: ignore[arg-type]
    text = json.dumps(result, indent=2)
    print(text)
    if not args.quick:
        RESULTS.mkdir(exist_ok=True)
        name = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}-guided.json"
        (RESULTS / name).write_text(text + "\n")
    return 1 if invalid else 0


if __name__ == "__main__":
    sys.exit(main())
