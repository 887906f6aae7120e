"""Per-request behaviour of the engine core: limits, stops, seeds, cancels, refusals, failures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine_runs import Result, alone, check_held_blocks, cpu_core, job, kept_by_sampler, run, step
from gpt_oss_server.engine.core import EngineCore
from gpt_oss_server.errors import BadRequest, ContextTooLong, EngineFailed, Overloaded, StartupError
from gpt_oss_server.types import SamplingParams
from tiny_models import VOCAB, build, saved

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = [17, 4, 99, 23, 5, 61, 8]
POISON = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(build("gpt_oss"), Path(tmp_path_factory.mktemp("gpt_oss")))


@pytest.fixture(scope="module")
def shared(folder: str, one_thread: None) -> EngineCore:
    return cpu_core(folder)


@pytest.fixture
def core(shared: EngineCore) -> Iterator[EngineCore]:
    """An idle engine; whatever a test does, nothing may be left in it."""
    yield shared
    assert not shared.has_work
    assert not any(shared.stats().blocks_in_use.values())
    assert shared.stats().blocks_predicted == dict.fromkeys(shared.stats().blocks_in_use, 0)
    assert kept_by_sampler(shared) == 0


def poisoned(tmp_path: Path) -> EngineCore:
    """An engine whose model has NaN for one token's embedding."""
    model = build("gpt_oss")
    with torch.no_grad():
        model.get_input_embeddings().weight[POISON] = float("nan")
    return cpu_core(saved(model, tmp_path))


def free_run(core: EngineCore, **sampling: Any) -> list[int]:
    return alone(core, job(PROMPT, ignore_eos=True, **{"max_tokens": 20, **sampling})).tokens


@pytest.mark.parametrize("max_tokens", [1, 2, 16, 17])
def test_max_tokens_is_exact(core: EngineCore, max_tokens: int) -> None:
    """Exactly so many tokens come, one a delta; only the last says `length`."""
    result = alone(core, job(PROMPT, max_tokens=max_tokens, ignore_eos=True))
    assert [len(delta.token_ids) for delta in result.deltas] == [1] * max_tokens
    assert [delta.finish for delta in result.deltas] == [None] * (max_tokens - 1) + ["length"]
    assert result.tokens == free_run(core)[:max_tokens]


def test_a_stop_id_ends_the_output_and_is_delivered(core: EngineCore) -> None:
    """The first stop id that comes is the last token, and the reason is `stop`."""
    free = free_run(core)
    stops = (free[9], free[6])
    first = min(free.index(stop) for stop in stops)
    result = alone(core, job(PROMPT, max_tokens=20, stop_token_ids=stops, ignore_eos=True))
    assert result.tokens == free[: first + 1]
    assert result.finish == "stop"


def test_stop_beats_length_on_the_last_token(core: EngineCore) -> None:
    """A stop id at the very bound ends in `stop`."""
    free = free_run(core)
    place = next(i for i in range(2, 20) if free[i] not in free[:i])
    result = alone(core, job(PROMPT, max_tokens=place + 1, stop_token_ids=(free[place],)))
    assert (result.tokens, result.finish) == (free[: place + 1], "stop")


def test_eos_ends_unless_ignored(core: EngineCore) -> None:
    """The model's end token stops a job; with `ignore_eos` it is a token like others."""
    [eos] = core.info().eos_token_ids
    towards = {"logit_bias": {eos: 1000.0}}
    stopped = alone(core, job(PROMPT, max_tokens=5, **towards))
    assert (stopped.tokens, stopped.finish) == ([eos], "stop")
    ignored = alone(core, job(PROMPT, max_tokens=5, ignore_eos=True, **towards))
    assert (ignored.tokens, ignored.finish) == ([eos] * 5, "length")


@pytest.mark.parametrize("min_tokens", [1, 4])
def test_min_tokens_hold_back_every_end(core: EngineCore, min_tokens: int) -> None:
    """Neither eos nor a stop id comes before `min_tokens` tokens are out; then at once."""
    [eos] = core.info().eos_token_ids
    result = alone(
        core,
        job(
            PROMPT,
            max_tokens=9,
            min_tokens=min_tokens,
            stop_token_ids=(3,),
            logit_bias={eos: 1000.0, 3: 900.0},
        ),
    )
    assert len(result.tokens) == min_tokens + 1
    assert result.tokens[-1] == eos
    assert not {3, eos} & set(result.tokens[:-1])


def test_logprobs_belong_to_their_tokens(core: EngineCore) -> None:
    """Greedy tokens are the first alternative, with the same log-probability."""
    result = alone(core, job(PROMPT, logprobs=3))
    for delta in result.deltas:
        assert delta.logprobs is not None
        [item] = delta.logprobs
        assert (item.token_id,) == delta.token_ids
        assert item.top[0] == (item.token_id, item.logprob)
        assert len(item.top) == 3
        assert item.logprob < 0.0
    assert free_run(core, max_tokens=8) == result.tokens


def sampled_jobs() -> dict[int, Any]:
    """Jobs that use every sampling parameter there is."""
    params: list[dict[str, Any]] = [
        {},
        {"top_k": 20},
        {"top_p": 0.8},
        {"min_p": 0.02},
        {"presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"repetition_penalty": 1.3, "logit_bias": {7: 2.0}},
        {"logprobs": 2, "temperature": 0.7},
        {"top_k": 30, "top_p": 0.9, "min_tokens": 9, "temperature": 1.5},
    ]
    return {
        key: job(
            [*PROMPT, key], **{"max_tokens": 25, "temperature": 1.0, "seed": 100 + key, **extra}
        )
        for key, extra in enumerate(params)
    }


def test_a_seed_repeats_itself_whatever_the_batch(core: EngineCore, folder: str) -> None:
    """Alone, in a batch, and preempted in a tiny pool: a job's tokens follow its seed alone."""
    jobs = sampled_jobs()
    expected = {key: alone(core, one).tokens for key, one in jobs.items()}
    assert len({token for tokens in expected.values() for token in tokens}) > 60
    together = run(core, jobs)
    assert {key: result.tokens for key, result in together.items()} == expected
    block_bytes = sum(g.block_bytes for g in cpu_core(folder, block_size=4).info().kv_groups)
    tight = cpu_core(folder, block_size=4, kv_cache_bytes=block_bytes * 14)
    results = run(tight, jobs)
    assert tight.stats().preemptions > 0
    assert {key: result.tokens for key, result in results.items()} == expected
    assert kept_by_sampler(tight) == 0


def test_seeds_differ(core: EngineCore) -> None:
    """Another seed gives other tokens."""
    outputs = [
        tuple(alone(core, job(PROMPT, max_tokens=12, temperature=1.0, seed=seed)).tokens)
        for seed in range(5)
    ]
    assert len(set(outputs)) == 5


def test_cancel_frees_everything_at_once(core: EngineCore) -> None:
    """Running or waiting, a cancelled job holds nothing when `cancel` returns, and the others
    go on as if it had never been."""
    expected = free_run(core)
    results = {key: Result() for key in range(12)}
    for key in results:
        prompt = PROMPT if key == 5 else [key + 1] * 50
        core.submit(
            key,
            job(prompt, max_tokens=20, ignore_eos=True, frequency_penalty=0.0 if key == 5 else 0.1),
        )
    for _ in range(6):
        step(core, results)
    assert core.stats().waiting > 0
    for key in results:
        if key != 5:
            core.cancel(key)
            check_held_blocks(core)
    assert (core.stats().running, core.stats().waiting) == (1, 0)
    before = core.stats().jobs_cancelled
    while core.has_work:
        step(core, results)
    assert results[5].tokens == expected
    core.cancel(5)
    core.cancel(12345)
    assert core.stats().jobs_cancelled == before


BAD_JOBS: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("no prompt", {"prompt": []}, BadRequest, "prompt"),
    ("id past the vocabulary", {"prompt": [1, VOCAB]}, BadRequest, "prompt"),
    ("negative id", {"prompt": [1, -1]}, BadRequest, "prompt"),
    ("huge id", {"prompt": [1 << 40]}, BadRequest, "prompt"),
    ("bias id", {"logit_bias": {VOCAB: 1.0}}, BadRequest, "logit_bias"),
    ("stop id", {"stop_token_ids": (-1,)}, BadRequest, "stop_token_ids"),
    ("no output", {"max_tokens": 0}, BadRequest, "max_tokens"),
    ("negative output", {"max_tokens": -5}, BadRequest, "max_tokens"),
    ("prompt fills the context", {"prompt": [1] * 2048}, ContextTooLong, "messages"),
    ("output over the context", {"max_tokens": 2042}, ContextTooLong, "max_tokens"),
]


@pytest.mark.parametrize(
    ("changes", "error", "param"),
    [case[1:] for case in BAD_JOBS],
    ids=[case[0] for case in BAD_JOBS],
)
def test_bad_jobs_are_refused_alone(
    core: EngineCore, changes: dict[str, Any], error: type[Exception], param: str
) -> None:
    """Each is refused with its class and parameter, while a job beside it is unaffected."""
    expected = free_run(core)
    results = {0: Result()}
    core.submit(0, job(PROMPT, max_tokens=20, ignore_eos=True))
    for _ in range(3):
        step(core, results)
    with pytest.raises(error) as caught:
        core.submit(1, job(**{"prompt": PROMPT, **changes}))
    assert type(caught.value) is error
    assert caught.value.param == param  # type: ignore[attr-defined]
    while core.has_work:
        step(core, results)
    assert results[0].tokens == expected


def test_the_last_token_of_the_context_can_be_had(core: EngineCore) -> None:
    """Prompt and output may fill the context exactly; an open bound is lowered to do so."""
    prompt = [3] * 2043
    assert len(alone(core, job(prompt, max_tokens=5, ignore_eos=True)).tokens) == 5
    lowered = alone(core, job(prompt, explicit=False, max_tokens=100, ignore_eos=True))
    assert (len(lowered.tokens), lowered.finish) == (5, "length")


def test_a_pool_bounds_what_fits(folder: str) -> None:
    """A job that fits the context and not the pool is refused; the largest that fits runs alone,
    its last token needing no room."""
    block_bytes = sum(g.block_bytes for g in cpu_core(folder).info().kv_groups)
    core = cpu_core(folder, kv_cache_bytes=block_bytes * 4)
    capacity = core.info().kv_token_capacity
    assert capacity == 64
    for prompt, max_tokens, param in ((60, 6, "max_tokens"), (65, 1, "messages")):
        with pytest.raises(ContextTooLong, match="KV cache of this server holds 64") as caught:
            core.submit(0, job([5] * prompt, max_tokens=max_tokens))
        assert caught.value.param == param
    for prompt, max_tokens in ((60, 5), (64, 1), (1, 64)):
        result = alone(core, job([5] * prompt, max_tokens=max_tokens, ignore_eos=True))
        assert len(result.tokens) == max_tokens
    lowered = alone(core, job([5] * 60, explicit=False, max_tokens=500, ignore_eos=True))
    assert len(lowered.tokens) == 5


def test_a_full_queue_says_so(folder: str) -> None:
    """Beyond `max_waiting` a job is turned away with a hint when to come back."""
    core = cpu_core(folder, max_waiting=2)
    core.submit(0, job(PROMPT))
    core.submit(1, job(PROMPT))
    with pytest.raises(Overloaded) as caught:
        core.submit(2, job(PROMPT))
    assert caught.value.retry_after_s == 1.0


def test_a_pool_without_room_for_a_block_does_not_start(folder: str) -> None:
    """Too little memory for a pool is one clear line at start."""
    with pytest.raises(StartupError, match="too little memory for a KV cache"):
        cpu_core(folder, kv_cache_bytes=1000)


def test_an_unknown_backend_does_not_start(folder: str) -> None:
    """A backend that does not exist is named."""
    with pytest.raises(StartupError, match="unknown attention backend 'fastest'"):
        cpu_core(folder, attention_backend="fastest")


def test_info_is_the_models_own(core: EngineCore) -> None:
    """What the engine says of itself is what was loaded and planned."""
    info = core.info()
    assert (info.vocab_size, info.max_model_len, info.eos_token_ids) == (VOCAB, 2048, (255,))
    assert [(g.name, g.layers, g.window) for g in info.kv_groups] == [
        ("full", 2, None),
        ("sliding", 2, 16),
    ]
    assert sum(g.num_blocks * g.block_bytes for g in info.kv_groups) <= 4 << 20
    assert info.kv_token_capacity == info.kv_groups[0].num_blocks * 16
    assert (info.dtype, info.device, info.attention_backend) == ("float32", "cpu", "tiled")


def test_counters_count(folder: str) -> None:
    """Prefill, decode, hit and job counters add up exactly."""
    core = cpu_core(folder, max_batch_tokens=256)
    run(core, {0: job([7] * 40, max_tokens=5, ignore_eos=True)})
    stats = core.stats()
    assert (stats.prefill_tokens, stats.decode_tokens, stats.steps) == (40, 4, 1 + 4)
    assert (stats.prefix_queries_tokens, stats.prefix_hit_tokens) == (40, 0)
    result = alone(core, job([7] * 40, max_tokens=5, ignore_eos=True))
    assert result.deltas[0].cached_tokens == 32
    assert core.stats().prefill_tokens == 40 + 8
    assert (core.stats().prefix_queries_tokens, core.stats().prefix_hit_tokens) == (80, 32)
    assert (core.stats().jobs_finished, core.stats().jobs_failed) == (2, 0)


@pytest.mark.parametrize("prompt", [[POISON], [5, 6, POISON]], ids=["only", "last"])
def test_nan_logits_fail_their_job_alone(tmp_path: Path, prompt: list[int]) -> None:
    """A job whose logits are NaN fails with its own error; the others say what they say alone."""
    core = poisoned(tmp_path)
    good = {key: job([*PROMPT, key], max_tokens=20, ignore_eos=True) for key in range(4)}
    expected = {key: alone(core, one).tokens for key, one in good.items()}
    results = run(core, {**good, 9: job(prompt)})
    assert type(results[9].error) is EngineFailed
    assert results[9].tokens == []
    for key in good:
        assert results[key].error is None
        assert results[key].tokens == expected[key]
    assert core.stats().jobs_failed == 1


@pytest.mark.parametrize(
    "prompt",
    [[POISON, 5, 6], [5] * 20 + [POISON] + [6] * 30, [POISON] + [6] * 100],
    ids=["first", "in a chunk", "chunks ago"],
)
def test_nan_inside_a_prompt_fails_its_job(tmp_path: Path, prompt: list[int]) -> None:
    """A job whose keys or values are NaN anywhere fails, the first time and when its prefix
    might be found in the cache; it never says something that the model did not."""
    core = poisoned(tmp_path)
    good = job(PROMPT, max_tokens=20, ignore_eos=True)
    expected = alone(core, good).tokens
    for _ in range(2):
        results = run(core, {0: good, 1: job(prompt)})
        assert results[0].tokens == expected
        assert type(results[1].error) is EngineFailed
        assert results[1].tokens == []


def test_sampling_defaults_are_off() -> None:
    """The defaults of `SamplingParams` adjust nothing: plain sampling at temperature 1."""
    params = SamplingParams(max_tokens=1)
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (1.0, 1.0, 0, 0.0)
    assert (params.presence_penalty, params.frequency_penalty) == (0.0, 0.0)
    assert (params.repetition_penalty, params.logit_bias, params.logprobs) == (1.0, {}, None)
