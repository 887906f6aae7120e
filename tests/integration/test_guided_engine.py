"""Guided jobs in the engine: valid whatever the model says, and nobody else notices."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from engine_runs import Result, alone, cpu_core, kept_by_sampler, run
from gpt_oss_server.engine.core import EngineCore
from gpt_oss_server.errors import BadRequest
from gpt_oss_server.types import Grammar, GuidedSpec, Job, SamplingParams
from guided_runs import FOLDER, chat_format, of_schema, shown, vocabulary
from guided_schemas import problem_of, random_schema

pytestmark = pytest.mark.usefixtures("one_thread")

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
PROMPT = list(range(100, 170))
SCHEMAS = 40


@pytest.fixture(scope="module")
def shared(one_thread: None) -> EngineCore:
    return cpu_core(
        str(FOLDER), load_format="random", max_num_seqs=16, max_batch_tokens=64, max_waiting=200
    )


@pytest.fixture
def core(shared: EngineCore) -> Iterator[EngineCore]:
    """An idle engine; whatever a test does, nothing may be left in it."""
    yield shared
    assert not shared.has_work
    assert kept_by_sampler(shared) == 0
    assert not shared._guides._walks
    assert shared._guides.compiling == 0


def job(guided: GuidedSpec | None, *, prompt: list[int] = PROMPT, **sampling: Any) -> Job:
    fields: dict[str, Any] = {"max_tokens": 60, "temperature": 1.5, **sampling}
    return Job(id="j", prompt=prompt, sampling=SamplingParams(guided=guided, **fields))


def person(**sampling: Any) -> Job:
    return job(GuidedSpec.whole(of_schema(PERSON)), **sampling)


def is_person(result: Result) -> bool:
    assert result.error is None
    return problem_of(shown(result.tokens, chat=False), PERSON) is None


@pytest.mark.parametrize("framing", ["harmony", "whole"])
def test_random_schemas_at_a_high_temperature(core: EngineCore, framing: str) -> None:
    """Forty random schemas, random weights, temperature 1.5, tight and wide bounds, beside free
    jobs: every guided output is JSON of its schema, every free one is what it is alone."""
    jobs: dict[int, Job] = {}
    schemas: dict[int, Any] = {}
    for n in range(SCHEMAS):
        rng = random.Random(n)
        schemas[n] = random_schema(rng)
        grammar = of_schema(schemas[n])
        whole = framing == "whole"
        spec = GuidedSpec.whole(grammar) if whole else chat_format().answer_guide(grammar)
        jobs[n] = job(spec, max_tokens=rng.choice((180, 260)), seed=n)
    free = {1000 + n: job(None, seed=n, max_tokens=30, ignore_eos=True) for n in range(6)}
    results = run(core, {**jobs, **free}, arrivals=random.Random(7))
    for n, schema in schemas.items():
        assert results[n].error is None
        assert problem_of(shown(results[n].tokens, chat=framing == "harmony"), schema) is None
        assert results[n].finish in ("stop", "length")
    for key, one in free.items():
        assert results[key].tokens == alone(core, one).tokens


def test_a_guided_output_does_not_depend_on_the_batch(core: EngineCore) -> None:
    """The same seed gives the same tokens alone, in any company, and behind a cached prefix."""
    jobs = {n: person(seed=n) for n in range(6)}
    together = run(core, jobs, arrivals=random.Random(3))
    assert len({tuple(result.tokens) for result in together.values()}) == 6
    for n, one in jobs.items():
        repeated = alone(core, one)
        assert repeated.tokens == together[n].tokens
        assert is_person(repeated)


def test_preempted_and_chunked() -> None:
    """In a pool too small for all, jobs are put back and go on: the tokens are the same."""
    settings = {"load_format": "random", "max_batch_tokens": 24, "prefix_caching": False}
    jobs = {n: person(seed=n, prompt=[n + 10, *PROMPT]) for n in range(6)}
    roomy = cpu_core(str(FOLDER), **settings)
    expected = {n: alone(roomy, one).tokens for n, one in jobs.items()}
    per_block = sum(group.block_bytes for group in roomy.info().kv_groups)
    small = cpu_core(str(FOLDER), **settings, kv_cache_bytes=24 * per_block)
    results = run(small, jobs)
    assert small.stats().preemptions > 0
    assert {n: result.tokens for n, result in results.items()} == expected
    assert all(map(is_person, results.values()))


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {"top_p": 0.1},
        {"top_k": 1},
        {"min_p": 0.9},
        {"presence_penalty": 2.0, "frequency_penalty": 2.0, "repetition_penalty": 1.8},
        {"min_tokens": 50},
        {"ignore_eos": True},
        {"logit_bias": {vocabulary().byte_ids[byte]: -100.0 for byte in b'{}[]",: 0123456789'}},
        {"logit_bias": {vocabulary().byte_ids[byte]: 100.0 for byte in b"xyz\x00\xff"}},
    ],
    ids=lambda sampling: "+".join(sampling),
)
def test_with_every_other_parameter(core: EngineCore, sampling: dict[str, Any]) -> None:
    """What else shapes the choice of tokens never makes an output invalid."""
    results = run(core, {n: person(seed=n, **sampling) for n in range(4)})
    assert all(map(is_person, results.values()))


def test_min_tokens_yields_where_only_the_end_is_left(core: EngineCore) -> None:
    """A text that nothing can follow ends, though the least length is not reached."""
    spec = GuidedSpec.whole(Grammar(kind="choice", source='["yes"]'))
    result = alone(core, job(spec, min_tokens=20))
    assert shown(result.tokens, chat=False) == "yes"
    assert result.finish == "stop"


def test_logprobs_are_of_the_tokens_that_came(core: EngineCore) -> None:
    """Each token's log-probability is the model's own, also where the bound chose the token."""
    result = alone(core, person(seed=5, logprobs=2, max_tokens=30))
    assert result.finish == "length"
    told = [entry.token_id for delta in result.deltas for entry in delta.logprobs or ()]
    assert told == result.tokens
    free = alone(core, job(None, max_tokens=1, logprobs=2, seed=5)).deltas[0].logprobs
    first = result.deltas[0].logprobs
    assert first is not None
    assert free is not None
    assert first[0].top == free[0].top


def test_the_bound_is_kept_and_told(core: EngineCore) -> None:
    """An output that the bound shortened is complete, no longer than it and says `length`."""
    for bound in (30, 31, 35, 50):
        result = alone(core, person(seed=bound, max_tokens=bound))
        assert is_person(result)
        assert len(result.tokens) <= bound
        assert result.finish == "length"


@pytest.mark.parametrize(
    ("one", "param", "reason"),
    [
        (person(max_tokens=5), "max_tokens", "leaves room for 5 tokens"),
        (job(GuidedSpec.whole(of_schema({"type": "x"}, param="p.q"))), "p.q", "Invalid type: x"),
        (job(GuidedSpec.whole(Grammar(kind="regex", source="(", param="r"))), "r", "unclosed"),
        (
            job(GuidedSpec.whole(Grammar(kind="regex", source="a" * 9000, param="r"))),
            "r",
            "longer than the 8192 bytes",
        ),
    ],
)
def test_refusals_name_the_parameter(core: EngineCore, one: Job, param: str, reason: str) -> None:
    """A bound too small, a wrong schema, a broken or long expression: refused by name, while the
    neighbours' outputs stay what they are."""
    neighbour = job(None, seed=3, max_tokens=20, ignore_eos=True)
    expected = alone(core, neighbour).tokens
    try:
        results = run(core, {1: neighbour, 2: one, 3: person(seed=1)})
        error = results[2].error
    except BadRequest as refusal:  # at once, where nothing has to be compiled
        error = refusal
        results = {1: Result(), 3: Result(), **run_rest(core)}
    assert isinstance(error, BadRequest)
    assert error.param == param
    assert reason in str(error)
    if results[1].deltas:
        assert results[1].tokens == expected
        assert is_person(results[3])


def run_rest(core: EngineCore) -> dict[int, Result]:
    """Let what was submitted before a refusal end."""
    while core.has_work:
        core.step()
    return {}


def test_a_cancelled_job_leaves_nothing(core: EngineCore) -> None:
    """Cancelled while its grammar compiles or while it runs: all it held is given back."""
    core.submit(1, job(GuidedSpec.whole(of_schema({"const": "never seen before"}))))
    core.cancel(1)
    core.submit(2, person())
    while not core.stats().running:
        core.step()
    core.step()
    core.cancel(2)
    assert not any(core.stats().blocks_in_use.values())


def test_stop_ids_of_the_client_end_it(core: EngineCore) -> None:
    """A stop token that the client named ends the output where it comes, as ever."""
    free = alone(core, person(seed=2, max_tokens=200)).tokens
    stop = free[len(free) // 2]
    result = alone(core, person(seed=2, stop_token_ids=(stop,), max_tokens=200))
    assert result.tokens == free[: free.index(stop) + 1]
    assert result.finish == "stop"


def test_choices_are_equally_open(core: EngineCore) -> None:
    """A bound with room for nothing but the shortest outputs still leaves the choice to the
    model."""
    spec = GuidedSpec.whole(Grammar(kind="choice", source=json.dumps(["a", "b", "c"])))
    results = run(core, {n: job(spec, seed=n, max_tokens=2) for n in range(16)})
    assert {shown(result.tokens, chat=False) for result in results.values()} == {"a", "b", "c"}
