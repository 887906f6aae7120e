"""The engine on a CUDA device: the attention table, and greedy equality in float32."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from attention_cases import Case, dense_answer, lay_out
from engine_runs import cpu_core, job, run
from gpt_oss_server.engine.attention import tiled
from gpt_oss_server.engine.attention.tiled import TiledBackend
from tiny_models import VOCAB, build, generated, saved

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

MIXED = ((0, 5), (9, 1), (3, 4), (16, 1), (0, 1), (7, 9), (120, 1), (90, 70))
CASES = {
    "mixed": Case(seqs=MIXED),
    "sinks": Case(seqs=MIXED, sinks=True),
    "window": Case(seqs=MIXED, window=5, sinks=True),
    "softcap": Case(seqs=MIXED, softcap=2.0, window=11),
    "wider keys": Case(seqs=MIXED, k_dim=12, v_dim=8),
    "multi-query": Case(seqs=MIXED, heads=6, kv_heads=1),
    "bfloat16": Case(seqs=MIXED, dtype=torch.bfloat16, sinks=True, window=40),
    "float16": Case(seqs=MIXED, dtype=torch.float16, sinks=True),
}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}
FAMILIES = ("gpt_oss", "llama", "qwen3", "mistral", "gemma2", "gpt2", "deepseek_v3")


@pytest.mark.parametrize("small", [False, True], ids=["as served", "in many parts"])
@pytest.mark.parametrize("name", CASES)
def test_attention_equals_the_dense_answer(
    name: str, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiled backend on CUDA, whole and cut into many parts."""
    if small:
        for constant, tokens in (
            ("PREFILL_TILE", 4),
            ("PREFILL_PARTITION_TOKENS", 8),
            ("DECODE_PARTITION_TOKENS", 12),
            ("WAVE_TOKENS", 24),
        ):
            monkeypatch.setattr(tiled, constant, tokens)
    problem = lay_out(CASES[name], "cuda")
    with torch.inference_mode():
        got = (
            TiledBackend(4)
            .plan(problem.step)
            .attend(
                problem.layer,
                problem.query,
                scale=problem.scale,
                sinks=problem.sinks,
                softcap=problem.case.softcap,
            )
        )
    tolerance = TOLERANCE[problem.case.dtype]
    torch.testing.assert_close(
        got.double().cpu(), dense_answer(problem), atol=tolerance, rtol=tolerance
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_output_is_transformers(name: str, tmp_path: Path) -> None:
    """Token for token in float32, with chunks, prefix hits and preemption."""
    model = build(name)
    folder = saved(model, tmp_path)
    rng = random.Random(0)
    system = [rng.randrange(2, VOCAB - 5) for _ in range(40)]
    jobs = {}
    for key in range(12):
        own = [rng.randrange(2, VOCAB - 5) for _ in range(rng.choice((1, 9, 30)))]
        jobs[key] = job(system + own if key % 3 == 0 else own, max_tokens=40)
    on_gpu = model.cuda()
    expected = {}
    for key, one in jobs.items():
        expected[key] = generated(on_gpu, one.prompt, 40)
    assert len({token for tokens in expected.values() for token in tokens}) > 20
    probe = cpu_core(folder, block_size=4, device="cuda", dtype="float32").info()
    block_bytes = sum(group.block_bytes for group in probe.kv_groups)
    for settings in ({}, {"block_size": 4, "kv_cache_bytes": block_bytes * 40}):
        core = cpu_core(
            folder, **{"device": "cuda", "dtype": "float32", "max_batch_tokens": 24, **settings}
        )
        assert core.info().device == "cuda:0"
        results = run(core, jobs, arrivals=None if settings else random.Random(1))
        assert {key: result.tokens for key, result in results.items()} == expected
        assert core.stats().prefix_hit_tokens > 0
        assert (core.stats().preemptions > 0) == bool(settings)


def test_sampling_is_the_same_on_every_device(tmp_path: Path) -> None:
    """Seeded jobs with every kind of filter and penalty draw on CUDA what they draw on a CPU."""
    folder = saved(build("llama"), tmp_path)
    params: list[dict[str, Any]] = [
        {},
        {"top_k": 20, "temperature": 0.7},
        {"top_p": 0.8, "min_p": 0.02},
        {"presence_penalty": 1.0, "frequency_penalty": 0.5, "logit_bias": {7: 2.0}},
        {"repetition_penalty": 1.3, "logprobs": 2},
    ]
    jobs = {
        key: job([5, 9, 2, key], **{"max_tokens": 20, "temperature": 1.0, "seed": key, **extra})
        for key, extra in enumerate(params)
    }
    outputs = [
        {
            key: result.tokens
            for key, result in run(cpu_core(folder, device=device, dtype="float32"), jobs).items()
        }
        for device in ("cpu", "cuda")
    ]
    assert outputs[0] == outputs[1]
