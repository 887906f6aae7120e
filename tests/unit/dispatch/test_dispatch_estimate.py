"""What a request costs and what a pool holds, from an engine's own words."""

from __future__ import annotations

import pytest
from dispatch_parts import INFO, call, info

from gpt_oss_server.admission.capacity import BlockGroup
from gpt_oss_server.dispatch.estimate import (
    at_once,
    capacity_of,
    estimator_for,
    kv_bytes,
    kv_capacity_bytes,
    predicted_kv_bytes,
)


def test_predicted_bytes_of_one_sequence() -> None:
    """100 + 29 - 1 rows: 8 full blocks, and 7 sliding ones (a window of 32 and a step of 64)."""
    jobs = call(100, 29).jobs
    assert predicted_kv_bytes(estimator_for(INFO), jobs) == 8 * 8192 + 7 * 4096


def test_predicted_bytes_of_several_sequences_add_up() -> None:
    """Nothing is assumed shared, whatever the prompts have in common."""
    estimator = estimator_for(INFO)
    one = predicted_kv_bytes(estimator, call(100, 29).jobs)
    assert predicted_kv_bytes(estimator, call(100, 29, choices=3).jobs) == 3 * one


def test_predicted_bytes_of_different_sequences() -> None:
    """Each costs its own, wherever it stands among the others."""
    estimator = estimator_for(INFO)
    jobs = [*call(100, 29, choices=2).jobs, *call(10, 7).jobs, *call(100, 29).jobs]
    assert predicted_kv_bytes(estimator, jobs) == 3 * (8 * 8192 + 7 * 4096) + 8192 + 4096


def test_predicted_bytes_with_a_lower_bound() -> None:
    """Output bounds above it are lowered to it; the others are left alone."""
    estimator = estimator_for(INFO)
    jobs = [*call(100, 900).jobs, *call(10, 7).jobs]
    least = predicted_kv_bytes(estimator, jobs, at_most_tokens=29)
    assert least == 8 * 8192 + 7 * 4096 + 8192 + 4096


def test_a_short_sequence_takes_no_more_of_a_window_than_it_has() -> None:
    """10 + 7 - 1 rows are one block in either pool."""
    assert predicted_kv_bytes(estimator_for(INFO), call(10, 7).jobs) == 8192 + 4096


def test_capacity_sets_a_prefill_chunk_aside_in_sliding_groups() -> None:
    """A decoding sequence holds 3 sliding blocks at most; one step's 64 tokens take 4 more, once
    for all; slots are a group of their own."""
    assert capacity_of(INFO).groups == (
        BlockGroup(name="full", blocks=64, block_tokens=16),
        BlockGroup(name="sliding", blocks=36, block_tokens=16, max_blocks_per_sequence=3),
        BlockGroup(name="slots", blocks=8, block_tokens=1, max_blocks_per_sequence=1),
    )


def test_capacity_always_has_room_for_one() -> None:
    """A sliding pool smaller than a chunk still runs one sequence at a time."""
    groups = capacity_of(info(max_batch_tokens=4096)).groups
    assert (groups[1].blocks, groups[1].max_blocks_per_sequence) == (3, 3)


@pytest.mark.parametrize(
    ("jobs", "tokens", "expected"),
    [
        pytest.param(1, 100, 1, id="one"),
        pytest.param(2, 100, 2, id="a quarter of the slots"),
        pytest.param(12, 100, 2, id="more than that"),
        pytest.param(2, 512, 2, id="all the pool"),
        pytest.param(2, 513, 1, id="too long for two"),
        pytest.param(3, 5000, 1, id="too long for any"),
    ],
)
def test_how_many_jobs_of_a_request_run_at_once(jobs: int, tokens: int, expected: int) -> None:
    """At most a quarter of the 8 slots, no more than the 1,024 tokens hold, at least one."""
    assert at_once(capacity_of(INFO), jobs, tokens) == expected


def test_bytes_of_blocks() -> None:
    """Whole pools, and what is named of them; slots and strangers weigh nothing."""
    assert kv_capacity_bytes(INFO) == 64 * 8192 + 40 * 4096
    assert kv_bytes(INFO, {"full": 2, "sliding": 1, "slots": 9}) == 2 * 8192 + 4096
    assert kv_bytes(INFO, {}) == 0
