"""A model over several ranks says, token for token in float32, what it says on one; and each rank
holds, byte for byte, what was predicted."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from engine_runs import cpu_core, job, run
from gpt_oss_server.memory.architecture import shape_from_config
from gpt_oss_server.memory.weights import weights_of
from gpt_oss_server.types import Job
from rank_engine import run_over_ranks, spec_for
from rank_processes import stages, tensor_ranks
from tiny_models import VOCAB, build, saved

pytestmark = pytest.mark.usefixtures("one_thread")

# A vocabulary that no number of ranks divides; biases and a tied head somewhere.
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt_oss": {"vocab_size": VOCAB + 3},
    "llama": {"attention_bias": True, "mlp_bias": True},
    "qwen3_moe": {},
    "gemma3_text": {"vocab_size": VOCAB + 1},
}
MODES = [("tensor", 2), ("tensor", 4), ("pipeline", 2), ("pipeline", 4)]
TIED = {"model_type": "llama", "tie_word_embeddings": True, "vocab_size": VOCAB + 1}


@dataclass
class Yardstick:
    """A model on disk, what one process says to some jobs, and what it holds."""

    folder: str
    jobs: dict[int, Job]
    expected: dict[int, list[int]]

    @property
    def config(self) -> dict[str, Any]:
        raw = (Path(self.folder) / "config.json").read_bytes()
        return {**msgspec.json.decode(raw), "dtype": "float32"}


def some_jobs(count: int) -> dict[int, Job]:
    """Prompts of 1 to 90 tokens, some behind one system prompt; 1 to 16 outputs."""
    rng = random.Random(0)

    def text(length: int) -> list[int]:
        return [rng.randrange(2, VOCAB - 5) for _ in range(length)]

    system = text(33)
    return {
        key: job(
            (system if key % 3 == 0 else []) + text(rng.choice((1, 3, 17, 57))),
            max_tokens=rng.choice((1, 8, 16)),
        )
        for key in range(count)
    }


def yardstick_of(folder: Path, jobs: dict[int, Job], **config: Any) -> Yardstick:
    """Build a model, save it, run the jobs on one rank."""
    path = saved(build(config.pop("name"), **config), folder)
    results = run(cpu_core(path), jobs)
    return Yardstick(path, jobs, {key: result.tokens for key, result in results.items()})


def over_ranks(yardstick: Yardstick, mode: str, gpus: int, **more: Any) -> list[Mapping[str, Any]]:
    """Run the jobs and compare; returns what each rank holds."""
    spec = spec_for(yardstick.folder, gpu_mode=mode, gpus=gpus)
    start = tensor_ranks if mode == "tensor" else stages
    answers = start(gpus, run_over_ranks, spec, yardstick.jobs, *more.values())
    tokens = [answer[0] for answer in answers if answer[0] is not None]
    assert tokens == [yardstick.expected]
    return [answer[1] for answer in answers]


def check_prediction(yardstick: Yardstick, mode: str, held: list[Mapping[str, Any]]) -> None:
    """Weights (rotary tables and such, which are no weights, apart) and cache geometry of every
    rank are those that the config predicts."""
    tp, pp = (len(held), 1) if mode == "tensor" else (1, len(held))
    weights, shape = weights_of(yardstick.config), shape_from_config(yardstick.config)
    sizes = weights.rank_bytes(tp, pp)
    measured = [rank["weights_bytes"] - rank["buffer_bytes"] for rank in held]
    assert measured == list(sizes if pp > 1 else sizes * tp)
    runs = weights.stages(pp) * tp
    assert [rank["layers"] for rank in held] == list(runs)
    assert [rank["shape"] for rank in held] == [shape.part(run).sharded(tp) for run in runs]
    assert [rank["warnings"] for rank in held] == [()] * len(held)


def check_reading(name: str, held: list[Mapping[str, Any]]) -> None:
    """Only a mixture whose checkpoint has its experts one by one is read whole."""
    in_part = "reading this rank's part of the weights"
    assert [in_part in rank["progress"] for rank in held] == [name != "qwen3_moe"] * len(held)


@pytest.fixture(scope="module", params=FAMILIES)
def yardstick(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, one_thread: None
) -> Yardstick:
    name = cast("str", request.param)
    folder = Path(tmp_path_factory.mktemp(name))
    return yardstick_of(folder, some_jobs(8), name=name, **FAMILIES[name])


def test_the_yardstick_is_varied(yardstick: Yardstick) -> None:
    """The expected output is no constant: equality would otherwise prove little."""
    distinct = {token for tokens in yardstick.expected.values() for token in tokens}
    assert len(distinct) >= 20


@pytest.mark.parametrize(("mode", "gpus"), MODES)
def test_ranks_say_the_same_and_hold_their_part(yardstick: Yardstick, mode: str, gpus: int) -> None:
    """Prompts of all lengths, chunked and batched, over tensor ranks (with four, key heads are on
    two each) and over stages."""
    held = over_ranks(yardstick, mode, gpus)
    check_prediction(yardstick, mode, held)
    check_reading(yardstick.config["model_type"], held)


@pytest.mark.parametrize(("mode", "gpus"), [("tensor", 2), ("pipeline", 2)])
def test_a_tied_head_stays_tied(tmp_path: Path, mode: str, gpus: int) -> None:
    """One tensor for embedding and head: on each tensor rank once, on first and last stage."""
    yardstick = yardstick_of(tmp_path, some_jobs(4), name="llama", **TIED)
    held = over_ranks(yardstick, mode, gpus)
    check_prediction(yardstick, mode, held)
    check_reading("llama", held)


def test_experts_whole_or_in_slices(tmp_path: Path) -> None:
    """Ranks that have some of the experts say what ranks with a slice of each do."""
    yardstick = yardstick_of(tmp_path, some_jobs(4), name="gpt_oss")
    sliced = over_ranks(yardstick, "tensor", 2)
    whole = over_ranks(yardstick, "tensor", 2, experts="count")
    # The output biases of four experts in four layers: on both ranks, or half on each.
    spared = 4 * 4 * 64 * 4 // 2
    assert [rank["weights_bytes"] for rank in whole] == [
        rank["weights_bytes"] - spared for rank in sliced
    ]


@pytest.mark.parametrize(("mode", "gpus"), [("tensor", 2), ("pipeline", 2)])
def test_random_weights_are_those_of_one_rank(tmp_path: Path, mode: str, gpus: int) -> None:
    """The same seed gives the same model, however it is spread."""
    saved(build("gpt_oss"), tmp_path)
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    settings = {"load_format": "random", "weights_seed": 7}
    jobs = some_jobs(3)
    results = run(cpu_core(str(tmp_path), **settings), jobs)
    start = tensor_ranks if mode == "tensor" else stages
    spec = spec_for(str(tmp_path), gpu_mode=mode, gpus=gpus, **settings)
    answers = start(gpus, run_over_ranks, spec, jobs)
    assert {key: result.tokens for key, result in results.items()} in [a[0] for a in answers]


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "gpus"), MODES)
@pytest.mark.parametrize("name", FAMILIES)
def test_fifty_requests(tmp_path: Path, name: str, mode: str, gpus: int) -> None:
    """The same with fifty mixed requests."""
    yardstick = yardstick_of(tmp_path, some_jobs(50), name=name, **FAMILIES[name])
    over_ranks(yardstick, mode, gpus)
