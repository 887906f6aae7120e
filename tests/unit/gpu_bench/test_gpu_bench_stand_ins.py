"""What stands in for msgspec says of the project's records what msgspec says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PROGRAM = """
import msgspec
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.types import EngineStats, Job, SamplingParams, TokenDelta, TokenLogprob

spec = EngineSpec(folder="there", eager=True)
moved = msgspec.structs.replace(spec, device="cuda:1")
sampling = SamplingParams(max_tokens=3)
sampling.logit_bias[7] = 1.0
try:
    Job("id", [1], sampling)
    positional = True
except TypeError:
    positional = False
print([
    (spec.device, moved.device, moved.eager, spec.world),
    (SamplingParams(max_tokens=3).logit_bias, sampling == SamplingParams(max_tokens=3)),
    positional,
    TokenDelta((5,), finish="stop") == TokenDelta((5,), None, "stop"),
    hash(TokenLogprob(1, -0.5)) == hash(TokenLogprob(1, -0.5)),
    msgspec.json.decode(b'{"a": [1, null]}'),
    msgspec.structs.asdict(TokenLogprob(1, -0.5)),
])
"""


def said(*path: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={"PYTHONPATH": ":".join([str(ROOT / "src"), *path])},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout


def test_records_are_the_same() -> None:
    """Defaults, copies, keyword-only fields, equality, hashes, JSON."""
    stand_in = ROOT / "benchmarks" / "gpu" / "standins" / "without_msgspec"
    assert said(str(stand_in)) == said()
