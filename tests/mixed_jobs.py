"""Jobs of every kind that an engine serves, and what is compared of their results.

Knows: sampling parameters, the built-in model's vocabulary. Does not know: how an engine runs.
"""

from __future__ import annotations

import random

from engine_runs import Result
from gpt_oss_server.types import GuidedSpec, Job, SamplingParams
from guided_runs import of_schema

OBJECT = {
    "type": "object",
    "properties": {"age": {"type": "integer"}, "name": {"type": "string", "maxLength": 20}},
    "required": ["age", "name"],
    "additionalProperties": False,
}


def mixed_jobs(count: int) -> dict[int, Job]:
    """Greedy and drawn, penalised, biased, bounded below, with logprobs, stop ids or a schema that
    closes in on its last tokens."""
    rng = random.Random(4)
    guided = GuidedSpec.whole(of_schema(OBJECT))
    kinds = [
        SamplingParams(max_tokens=30, temperature=0.0, ignore_eos=True),
        SamplingParams(max_tokens=25, temperature=1.0, seed=7, top_p=0.9, top_k=40),
        SamplingParams(max_tokens=20, temperature=0.7, seed=1, frequency_penalty=1.5),
        SamplingParams(max_tokens=20, temperature=0.0, repetition_penalty=1.3, logprobs=3),
        SamplingParams(max_tokens=20, temperature=1.2, seed=5, logprobs=2, min_tokens=9),
        SamplingParams(max_tokens=24, temperature=1.5, seed=9, guided=guided, logprobs=1),
        SamplingParams(max_tokens=40, temperature=1.0, seed=2, stop_token_ids=(300, 301, 7)),
        SamplingParams(max_tokens=1, temperature=0.0, logit_bias={33: 100.0}),
    ]
    return {
        key: Job(
            id=str(key),
            prompt=[rng.randrange(100, 900) for _ in range(rng.choice((1, 20, 90)))],
            sampling=kinds[key % len(kinds)],
        )
        for key in range(count)
    }


def said(result: Result) -> tuple[list[int], list[object], str | None]:
    """Tokens, alternatives and end: log-probabilities differ in their last bits by batch."""
    ranked = [
        [token for token, _ in one.top] for delta in result.deltas for one in delta.logprobs or ()
    ]
    return result.tokens, list(ranked), result.finish
