"""Engines of several ranks as a front has them: started, asked, looked after; and what they are
asked, to be compared with one process.

Knows: `EngineClient`, process ids, jobs of every kind. Does not know: what happens inside a rank.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

import gpt_oss_server
from engine_runs import Result, job, run
from gpt_oss_server.engine.client import EngineClient
from gpt_oss_server.engine.core import EngineCore
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.errors import ServerError
from gpt_oss_server.types import Grammar, GuidedSpec, Job
from tiny_models import build, saved

TINY = Path(gpt_oss_server.__file__).parent / "models" / "tiny"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
CONFIG = json.loads((TINY / "config.json").read_text())
EOS = tuple(CONFIG["eos_token_id"])
DEADLINE_S = 120.0
# In a gpt-oss of `talkative_folder`: a token whose keys are not finite, and that it never says.
POISON = 1900
HEAD_SIZE = 16
SCHEMA = '{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"]}'
# Sums in another order differ in the last places.
LOGPROB_ERROR = 1e-3


def talkative_folder(folder: Path, name: str = "gpt_oss", **changes: Any) -> str:
    """A model of four layers with the built-in vocabulary and weights of varied output."""
    model = build(name, vocab_size=CONFIG["vocab_size"], eos_token_id=list(EOS), **changes)
    if name == "gpt_oss":
        _poison(model)
    saved(model, folder)
    for file in TOKENIZER_FILES:
        shutil.copy(TINY / file, folder)
    return str(folder)


def _poison(model: Any) -> None:
    """Only `POISON` has something in the first place of its embedding, and only the keys of the
    first layer's last head, which no leader has, look at it. They overflow; behind a softmax that
    sees the key as 0 nothing does."""
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding[:, 0] = 0.0
        embedding[POISON, 0] = 1e3
        keys = model.model.layers[0].self_attn.k_proj.weight
        keys[:, 0] = 0.0
        keys[-HEAD_SIZE:, 0] = 3e38
        model.lm_head.weight[POISON] = 0.0


def crew_spec(folder: str, mode: str = "pipeline", gpus: int = 2, **changes: Any) -> EngineSpec:
    """Ranks on this machine's CPU, a thread each."""
    defaults: dict[str, Any] = {
        "folder": folder,
        "device": "cpu",
        "max_num_seqs": 16,
        "max_batch_tokens": 64,
        "kv_cache_bytes": 4 << 20,
        "threads": 1,
        "gpu_mode": mode,
        "gpus": gpus,
    }
    return EngineSpec(**{**defaults, **changes})


@asynccontextmanager
async def started(
    spec: EngineSpec,
    deadline_s: float = DEADLINE_S,
    on_progress: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[EngineClient]:
    """A started client; when it is closed, none of its processes is left."""
    client = EngineClient(spec, on_progress=on_progress)
    async with asyncio.timeout(deadline_s):
        await client.start()
        try:
            yield client
        finally:
            pids = client.pids
            await client.close()
            await eventually(lambda: all(map(gone, pids)))


async def answers(client: EngineClient, jobs: Mapping[int, Job]) -> dict[int, Result]:
    """All jobs at once; what the engine says to each."""

    async def one(job: Job) -> Result:
        result = Result()
        try:
            async for delta in client.generate(job):
                result.deltas.append(delta)
        except ServerError as error:
            result.error = error
        return result

    results = await asyncio.gather(*map(one, jobs.values()))
    return dict(zip(jobs, results, strict=True))


async def eventually(predicate: Callable[[], bool]) -> None:
    while not predicate():  # noqa: ASYNC110 - other processes give no event to wait for
        await asyncio.sleep(0.01)


def gone(pid: int) -> bool:
    """Ended; whether anybody has asked for its status is not its own affair."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def mixed_jobs(count: int = 50) -> dict[int, Job]:
    """Jobs of 1 to 90 prompt tokens, a third behind one system prompt, some the same prompt under
    several seeds; greedy, sampled with every parameter, with logprobs, guided; 1 to 40 tokens."""
    rng = random.Random(7)

    def text(length: int) -> list[int]:
        return [rng.randrange(2, 900) for _ in range(length)]

    system, shared = text(40), text(23)
    sampled: list[dict[str, Any]] = [
        {"top_k": 20},
        {"top_p": 0.8, "logit_bias": {7: 2.0}},
        {"presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"repetition_penalty": 1.3, "min_p": 0.02},
    ]
    jobs = {}
    for key in range(count):
        prompt = text(rng.choice((1, 3, 17, 50)))
        if key % 3 == 0:
            prompt = system + prompt
        fields: dict[str, Any] = {"max_tokens": rng.choice((1, 5, 20, 40))}
        if key % 5 == 1:
            fields |= {"temperature": 1.0, "seed": key, **sampled[key % 4]}
        if key % 8 == 3:
            prompt, fields = shared, {"temperature": 1.0, "seed": key, "max_tokens": 12}
        if key % 7 == 2:
            fields["logprobs"] = 3
        if key % 9 == 5:
            fields |= {"min_tokens": 4, "stop_token_ids": tuple(range(0, 2048, 5))}
        if key % 10 == 4:
            grammar = Grammar(kind="json_schema", source=SCHEMA)
            fields |= {"guided": GuidedSpec.whole(grammar), "max_tokens": 40}
        jobs[key] = job(prompt, **fields)
    return jobs


def said_in_one_process(folder: str, jobs: Mapping[int, Job]) -> dict[int, Result]:
    """The yardstick: what each job gets without ranks, and that it is no constant."""
    results = run(EngineCore(crew_spec(folder, "single", 1)), jobs)
    assert not any(result.error for result in results.values())
    assert len({token for result in results.values() for token in result.tokens}) > 150
    return results


def check_same(results: Mapping[int, Result], expected: Mapping[int, Result]) -> None:
    """Tokens, ends, and the alternatives of each token with their log-probabilities."""
    for key, result in results.items():
        assert result.error is None, key
        assert (result.tokens, result.finish) == (expected[key].tokens, expected[key].finish), key
        for mine, theirs in zip(_entries(result), _entries(expected[key]), strict=True):
            assert [token for token, _ in mine] == [token for token, _ in theirs], key
            for (_, value), (_, other) in zip(mine, theirs, strict=True):
                assert math.isclose(value, other, abs_tol=LOGPROB_ERROR), key


def _entries(result: Result) -> list[list[tuple[int, float]]]:
    """For each token that has them, itself and its alternatives."""
    found = [entry for delta in result.deltas for entry in delta.logprobs or ()]
    return [[(entry.token_id, entry.logprob), *entry.top] for entry in found]
