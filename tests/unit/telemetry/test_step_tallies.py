"""How long engine steps take, by what they did."""

from __future__ import annotations

import pytest

from gpt_oss_server.engine.tallies import StepTallies
from gpt_oss_server.types import STEP_SECONDS_BOUNDS, STEP_TOKENS_BOUNDS


@pytest.mark.parametrize(
    ("prefill_tokens", "decode_tokens", "kind"),
    [(100, 0, "prefill"), (0, 3, "decode"), (100, 3, "mixed")],
)
def test_a_step_counts_once_under_its_kind(
    prefill_tokens: int, decode_tokens: int, kind: str
) -> None:
    """Its time and its tokens in their buckets; the other kinds stay at zero."""
    tallies = StepTallies()
    tallies.add(prefill_tokens, decode_tokens, 0.02)
    seconds, tokens = tallies.seconds(), tallies.tokens()
    assert {k: sum(tally.counts) for k, tally in seconds.items()} == {
        "prefill": 0, "decode": 0, "mixed": 0, kind: 1
    }  # fmt: skip
    assert seconds[kind].counts[STEP_SECONDS_BOUNDS.index(0.025)] == 1
    assert seconds[kind].total == 0.02
    assert tokens[kind].total == prefill_tokens + decode_tokens


def test_beyond_the_last_bound() -> None:
    """The last entry is open: nothing is lost."""
    tallies = StepTallies()
    tallies.add(1_000_000, 0, 60.0)
    assert tallies.seconds()["prefill"].counts[len(STEP_SECONDS_BOUNDS)] == 1
    assert tallies.tokens()["prefill"].counts[len(STEP_TOKENS_BOUNDS)] == 1
