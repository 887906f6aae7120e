"""The engine as it steps on a GPU, in Triton's interpreter: fused, recorded, a step ahead."""

from __future__ import annotations

import random
from typing import Any

import pytest

import kernel_device
from engine_runs import Result, cpu_core, job, kept_by_sampler, run
from gpt_oss_server.engine.core import EngineCore
from gpt_oss_server.types import Job
from scarce_memory import Scarcity
from tiny_models import VOCAB, build, generated, saved

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(kernel_device.DEVICE != "cpu", reason="tests/gpu has this on a GPU"),
]

SMALL = {"num_hidden_layers": 2, "sliding_window": 8, "num_local_experts": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> str:
    return saved(build("gpt_oss", **SMALL), tmp_path_factory.mktemp("fused"))


def jobs() -> dict[int, Job]:
    """Greedy and drawn, filtered, penalised, with log-probabilities, of different lengths."""
    rng = random.Random(2)
    kinds: list[dict[str, Any]] = [
        {"max_tokens": 7},
        {"max_tokens": 5, "temperature": 1.0, "top_p": 0.8, "seed": 3},
        {"max_tokens": 6, "temperature": 0.8, "top_k": 30, "seed": 5, "frequency_penalty": 1.0},
        {"max_tokens": 4, "logprobs": 2},
        {"max_tokens": 1},
    ]
    return {
        key: job([rng.randrange(2, VOCAB - 5) for _ in range(length)], **kinds[key])
        for key, length in enumerate((1, 9, 5, 12, 3))
    }


def engine(folder: str, **settings: Any) -> EngineCore:
    return cpu_core(
        folder,
        attention_backend="triton",
        experts="triton",
        max_model_len=64,
        max_num_seqs=4,
        max_batch_tokens=16,
        kv_cache_bytes=1 << 20,
        **settings,
    )


def said(result: Result) -> tuple[list[int], list[list[int]], str | None]:
    ranked = [
        [token for token, _ in one.top] for delta in result.deltas for one in delta.logprobs or ()
    ]
    return result.tokens, ranked, result.finish


@pytest.mark.parametrize("settings", [{"lookahead": True}, {"eager": True}], ids=str)
def test_requests_are_served_as_by_transformers(folder: str, settings: dict[str, Any]) -> None:
    """Mixed requests say what they say on transformers' modules; the greedy ones, what `generate`
    says. Decode steps are replayed unless told otherwise."""
    core = engine(folder, **settings)
    runner: Any = core._runner
    assert runner._model.name == "fused"
    assert (runner._graphs is None) == ("eager" in settings)
    found = run(core, jobs(), arrivals=random.Random(0))
    assert {key: result.error for key, result in found.items() if result.error} == {}
    plain = run(cpu_core(folder, max_num_seqs=4), jobs(), arrivals=random.Random(0))
    assert {key: said(r) for key, r in found.items()} == {key: said(r) for key, r in plain.items()}
    model = build("gpt_oss", **SMALL)
    greedy = [key for key, one in jobs().items() if one.sampling.temperature == 0.0]
    assert {key: found[key].tokens for key in greedy} == {
        key: generated(model, jobs()[key].prompt, jobs()[key].sampling.max_tokens) for key in greedy
    }
    assert kept_by_sampler(core) == 0


def test_a_want_of_memory_changes_no_token(folder: str) -> None:
    """Steps too large, recorded ones and those launched ahead among them, are computed in parts."""
    plain = run(cpu_core(folder, max_num_seqs=4), jobs(), arrivals=random.Random(0))
    scarcity = Scarcity(tokens=2, rows=3)
    core = scarcity.beset(engine(folder, lookahead=True))
    found = run(core, jobs(), arrivals=random.Random(0))
    assert {key: said(r) for key, r in found.items()} == {key: said(r) for key, r in plain.items()}
    assert core.stats().shortages == scarcity.raised > 1
    assert core.stats().jobs_failed == 0
    assert kept_by_sampler(core) == 0
