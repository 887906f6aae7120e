"""A step on a CUDA device: fused pass, captured decode steps, sampling that waits for nobody."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine_runs import cpu_core, job, run
from fused_steps import Course, Part, Pass, pools
from gpt_oss_server.engine.attention.tiled import TiledBackend
from gpt_oss_server.engine.forward import TransformersForward
from gpt_oss_server.engine.graphs import CudaRecorder, DecodeGraphs, Room
from gpt_oss_server.engine.nucleus import SortedNucleus
from gpt_oss_server.engine.sampler import Sampler
from gpt_oss_server.engine.staging import fetch
from gpt_oss_server.types import Job
from tiny_models import VOCAB, build, generated, saved

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LAYERS = 4
WIDER = {"hidden_size": 128, "intermediate_size": 96, "head_dim": 64, "num_hidden_layers": LAYERS}
CUDA = torch.device("cuda:0")


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Whatever makes the host wait for the device fails."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def fused(model: Any) -> Pass:
    from gpt_oss_server.engine.attention.triton import TritonBackend
    from gpt_oss_server.engine.experts.replace import use_kernels
    from gpt_oss_server.engine.fused.gpt_oss import FusedGptOss

    use_kernels(model)
    return Pass(FusedGptOss(model, 64), TritonBackend(), pools(model))


def captured(ours: Pass) -> DecodeGraphs:
    room = Room(4, 10, 2, 4)
    return DecodeGraphs(
        ours.forward, ours.layers, ours.backend, room, CudaRecorder(CUDA), lambda _: None
    )


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2), (torch.float16, 5e-3)]
)
def test_logits_are_transformers(dtype: torch.dtype, tolerance: float) -> None:
    """By ‖out - ref‖ / ‖ref‖, over prefill, mixed and decode steps."""
    model = build("gpt_oss", **WIDER).to(CUDA, dtype)
    ours = fused(copy.deepcopy(model))
    theirs = Pass(TransformersForward(model), TiledBackend(4), pools(model))
    course = Course(VOCAB, groups=2)
    for parts in (
        [Part(0, 5, sampled=False), Part(1, 9)],
        [Part(0, 3), Part(1, 1), Part(2, 3)],
        [Part(1, 1), Part(2, 1), Part(0, 1)],
    ):
        layout = course.step(parts)
        (logits, finite), (expected, _) = ours.run(layout), theirs.run(layout)
        assert finite.all()
        error = (logits.double() - expected.double()).norm() / expected.double().norm()
        assert error < tolerance


def test_captured_steps_are_the_pass_as_it_comes(no_waiting: None) -> None:
    """Replays of all sizes, in any order, while nothing waits for the device."""
    torch.cuda.set_sync_debug_mode("default")
    model = build("gpt_oss", **WIDER).to(CUDA)
    ours = fused(model)
    recorded = Pass(ours.forward, ours.backend, pools(model))
    course = Course(VOCAB, groups=2)
    first = course.step([Part(0, 5), Part(1, 7), Part(2, 2), Part(3, 11)])
    ours.run(first)
    recorded.run(first)
    graphs = captured(recorded)
    sequences = [(0, 1, 2), (2,), (1, 0), (3, 2, 0, 1), (3,), (2, 1, 0)]
    for rows in sequences:
        layout = course.step([Part(row, 1) for row in rows])
        expected, _ = ours.run(layout)
        torch.cuda.set_sync_debug_mode("error")
        with torch.inference_mode():
            replayed = graphs.run(layout)
            flags = fetch([torch.isfinite(replayed.written)])
        torch.cuda.set_sync_debug_mode("default")
        torch.testing.assert_close(
            replayed.logits[: len(rows)], expected, atol=1e-4, rtol=1e-4, msg=str(rows)
        )
        assert flags.wait()[0].all()
    for mine, other in zip(ours.layers, recorded.layers, strict=True):
        torch.testing.assert_close(mine.keys, other.keys, atol=1e-4, rtol=1e-4)


def test_a_decode_step_is_few_launches() -> None:
    """No more than 14 a layer and 20 beside; and one to the host once it is captured."""
    model = build("gpt_oss", **WIDER).to(CUDA, torch.bfloat16)
    ours = fused(model)
    course = Course(VOCAB, groups=2)
    ours.run(course.step([Part(0, 5), Part(1, 7)]))
    graphs = captured(ours)
    ours.run(course.step([Part(0, 1), Part(1, 1)]))
    layouts = [course.step([Part(0, 1), Part(1, 1)]) for _ in range(2)]
    counts = []
    for work in (ours.run, graphs.run):
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            with torch.inference_mode():
                work(layouts.pop())
            torch.cuda.synchronize()
        names = [event.name for event in profile.events()]
        counts.append(sum("Launch" in name for name in names))
    assert 0 < counts[0] <= 14 * LAYERS + 20
    assert counts[1] <= 4


PARAMS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.7, "top_k": 20},
    {"temperature": 1.0, "top_p": 0.8, "min_p": 0.001},
    {"temperature": 1.3, "top_p": 0.99999},
    {"temperature": 1.0, "top_k": 900, "top_p": 0.9, "logprobs": 3},
    {"temperature": 0.0, "presence_penalty": 1.0, "frequency_penalty": 0.5},
    {"temperature": 1.0, "logit_bias": {7: 2.0}, "repetition_penalty": 1.3},
    {"temperature": 1.0, "stop_token_ids": (3, 4), "min_tokens": 5},
]


@pytest.mark.parametrize("rows", [None, [7, 5, 3, 1, 0, 2, 4, 6]])
def test_draws_wait_for_nobody(no_waiting: None, rows: list[int] | None) -> None:
    """Every kind of request at once, while waiting is an error; tokens as a CPU draws them."""
    from gpt_oss_server.engine.nucleus import make_nucleus
    from gpt_oss_server.engine.sequence import Sequence

    def sequences() -> list[Sequence]:
        jobs = [job([5, 9, 2], **{"seed": n, **params}) for n, params in enumerate(PARAMS)]
        return [
            Sequence.create(
                n, one, arrival=n, max_tokens=9, groups=1, block_size=4, stop_ids=frozenset({3})
            )
            for n, one in enumerate(jobs)
        ]

    generator = torch.Generator().manual_seed(0)
    host = torch.randn(len(PARAMS), 5000, generator=generator) * 2
    picked = None if rows is None else np.array(rows)
    cpu, gpu = torch.device("cpu"), host.pin_memory().to(CUDA, non_blocking=True)
    sampler = Sampler(5000, CUDA, nucleus=make_nucleus(CUDA))
    told = Sampler(5000, cpu, nucleus=SortedNucleus())
    one, other = sequences(), sequences()
    for _ in range(3):
        drawn = sampler.draw(gpu, one, picked)
        found = sampler.finish(drawn, one)
        expected = told.finish(told.draw(host, other, picked), other)
        assert found.tokens == expected.tokens
        for token, *both in zip(found.tokens, one, other, strict=True):
            for seq in both:
                seq.append(token)


def some_jobs(count: int) -> dict[int, Job]:
    rng = random.Random(0)
    return {
        key: job(
            [rng.randrange(2, VOCAB - 5) for _ in range(rng.choice((1, 9, 30)))],
            max_tokens=rng.choice((8, 40)),
        )
        for key in range(count)
    }


@pytest.mark.parametrize(
    "settings", [{}, {"eager": True}, {"lookahead": False}, {"max_batch_tokens": 12}], ids=str
)
def test_greedy_output_is_transformers(settings: dict[str, Any], tmp_path: Path) -> None:
    """Token for token in float32: captured or not, ahead or not, whatever the chunks."""
    model = build("gpt_oss")
    folder = saved(model, tmp_path)
    jobs = some_jobs(12)
    on_gpu = model.to(CUDA)
    expected = {
        key: generated(on_gpu, one.prompt, one.sampling.max_tokens) for key, one in jobs.items()
    }
    usual = {"device": "cuda", "dtype": "float32", "experts": "triton", "max_batch_tokens": 48}
    core = cpu_core(folder, **{**usual, **settings})
    assert (core._runner._graphs is None) == bool(settings.get("eager"))
    assert core._runner._model.name == "fused"
    results = run(core, jobs, arrivals=random.Random(1))
    assert {key: result.tokens for key, result in results.items()} == expected
