"""The guard: verdicts of one request, shrinking, and numbers in refusals."""

from __future__ import annotations

import pytest
from admission_requests import ask, core, pool

from gpt_oss_server.admission import (
    AdmissionConfig,
    AdmissionRequest,
    BlockGroup,
    Capacity,
    OutputLengths,
    parse_priority,
    slots,
)
from gpt_oss_server.admission.guard import Bounds, Guard, NeverFits
from gpt_oss_server.errors import ConfigError


@pytest.mark.parametrize(
    ("request_", "action", "max_tokens", "blocks"),
    [
        (ask(50, 50), "accept", 50, (10,)),
        (ask(50, 51), "never_fits", None, None),
        (ask(50, 51, explicit=False), "shrink", 50, (10,)),
        (ask(95, 900, explicit=False), "shrink", 5, (10,)),
        (ask(96, 900, explicit=False), "never_fits", None, None),
        (ask(96, 3, explicit=False), "accept", 3, (10,)),
        (ask(20, 10, sequences=3), "accept", 10, (9,)),
        (ask(20, 20, sequences=3), "never_fits", None, None),
        (ask(20, 20, sequences=3, explicit=False), "shrink", 10, (9,)),
        (ask(0, 0), "accept", 0, (0,)),
    ],
)
def test_the_verdict_on_an_empty_pool_of_100_tokens(
    request_: AdmissionRequest, action: str, max_tokens: int | None, blocks: tuple[int] | None
) -> None:
    """An explicit bound is kept or refused; an open one is lowered, but not below its least."""
    verdict = core().offer(request_, 0.0)
    assert verdict.action == action
    if verdict.admission is None:
        assert max_tokens is None
    else:
        assert verdict.admission.plan.max_tokens == max_tokens
        assert verdict.admission.plan.blocks == blocks


def test_a_refusal_for_good_has_the_numbers() -> None:
    """What was asked, and how much of which group there is."""
    verdict = core().offer(ask(50, 51), 0.0)
    assert verdict.message == (
        "the request needs 101 tokens of KV cache (50 of input and 51 of output), "
        "more than there is (full: 11 of 10 blocks)"
    )
    many = core(Capacity((pool().groups[0], slots(2)))).offer(ask(1, 1, sequences=3), 0.0)
    assert many.message == (
        "the request needs 2 tokens of KV cache (1 of input and 1 of output, 3 times (n)), "
        "more than there is (slots: 3 of 2 blocks)"
    )


def test_worst_case_shrinks_an_open_bound_to_the_room_there_is() -> None:
    """With 40 tokens free an open request starts now with 20; an explicit one waits."""
    busy = core(open_output_tokens=50)
    assert busy.offer(ask(10, 50), 0.0).action == "accept"
    waits = busy.offer(ask(20, 30), 0.0)
    assert waits.action == "queue"
    shrunk = busy.offer(ask(20, 1000, explicit=False), 0.0)
    assert shrunk.action == "shrink"
    assert shrunk.admission is not None
    assert shrunk.admission.plan.max_tokens == 20


def test_worst_case_reserves_no_more_than_the_open_bound_setting() -> None:
    """An open bound does not take the whole pool."""
    verdict = core(open_output_tokens=30).offer(ask(10, 1000, explicit=False), 0.0)
    assert verdict.admission is not None
    assert verdict.admission.plan.blocks == (4,)
    assert verdict.admission.plan.max_tokens == 30


def test_optimistic_reserves_what_answers_have_needed() -> None:
    """Assumed at first, the observed quantile later; the bound itself stays the client's."""
    outputs = OutputLengths(0.9, min_samples=10)
    config = AdmissionConfig(assumed_output_tokens=40)
    guard = Guard(pool(), config, outputs)
    request = ask(10, 80)
    bounds = guard.bounds(request)
    assert bounds == Bounds(80, 80)
    before = guard.plan(request, bounds, (10,))
    assert before is not None
    assert (before.blocks, before.max_tokens, before.expected_tokens) == ((5,), 80, 40)
    for _ in range(10):
        outputs.observe(10, 8)
    after = guard.plan(request, bounds, (10,))
    assert after is not None
    assert (after.blocks, after.max_tokens, after.expected_tokens) == ((2,), 80, 8)


def test_optimistic_refuses_what_could_outgrow_the_whole_pool() -> None:
    """However short answers are, an explicit bound beyond the pool could never finish."""
    guard = Guard(pool(), AdmissionConfig(assumed_output_tokens=1), OutputLengths(0.9))
    assert isinstance(guard.bounds(ask(50, 51)), NeverFits)


def test_a_pool_without_length_limit_still_counts_slots() -> None:
    """Sliding layers only: any length fits, one more sequence than slots does not."""
    sliding = BlockGroup(name="sliding", blocks=8, block_tokens=4, max_blocks_per_sequence=2)
    small = core(Capacity((sliding, slots(1))))
    assert small.offer(ask(10_000, 10_000), 0.0).action == "accept"
    assert small.offer(ask(1, 100, explicit=False), 0.0).action == "queue"


@pytest.mark.parametrize(
    ("request_", "action"),
    [
        (ask(10, 10, route="multi_gpu"), "accept"),
        (ask(10, 10, route="multi_gpu", multi_gpu_elsewhere=True), "route4"),
        (ask(10, 10, multi_gpu_elsewhere=True), "accept"),
        (ask(500, 10, multi_gpu_elsewhere=True), "route4"),
        (ask(500, 10), "never_fits"),
    ],
)
def test_what_belongs_elsewhere_is_sent_there(request_: AdmissionRequest, action: str) -> None:
    """Only where there is a multi-GPU pool: decided for it, or too large for this one."""
    assert core().offer(request_, 0.0).action == action


def test_outputs_learn_by_prompt_length_and_forget() -> None:
    """Classes are apart, the quantile is a bucket's upper edge, old answers fade."""
    outputs = OutputLengths(0.5, min_samples=4, max_samples=16)
    assert outputs.predict(100) is None
    for tokens in (10, 10, 1000, 1000):
        outputs.observe(100, tokens)
    assert outputs.predict(100) == 12
    assert outputs.predict(1000) is None
    for _ in range(40):
        outputs.observe(100, 1000)
    assert outputs.predict(100) == 1024


@pytest.mark.parametrize(
    ("tokens", "edge"), [(0, 1), (1, 1), (2, 2), (3, 3), (5, 6), (2**30, 2**23 * 1.5)]
)
def test_output_buckets(tokens: int, edge: float) -> None:
    """Every length has the next edge up; the last bucket takes the rest."""
    outputs = OutputLengths(1.0, min_samples=1)
    outputs.observe(0, tokens)
    predicted = outputs.predict(0)
    assert predicted is not None
    if tokens < 2**23:
        assert predicted == edge
    else:
        assert predicted == 11863284


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("mode", "hopeful", "mode must be optimistic or worst_case, not 'hopeful'"),
        ("output_quantile", 0, "output_quantile must be more than 0, not 0"),
        ("output_quantile", float("nan"), "output_quantile must be finite, not nan"),
        ("max_queue_length", -1, "max_queue_length must be at least 0, not -1"),
        ("max_wait_s", float("inf"), "max_wait_s must be finite, not inf"),
        ("ageing_s", 0, "ageing_s must be more than 0, not 0"),
        ("bypass_limit", -1, "bypass_limit must be at least 0, not -1"),
        ("scan_limit", 0, "scan_limit must be at least 1, not 0"),
        ("retry_fallback_s", 121, "retry_fallback_s (121) must not exceed retry_cap_s (120)"),
        (
            "min_open_output_tokens",
            5000,
            "min_open_output_tokens (5000) must not exceed open_output_tokens (4096)",
        ),
    ],
)
def test_impossible_settings_are_refused_by_name(field: str, value: object, says: str) -> None:
    """One line naming the setting."""
    with pytest.raises(ConfigError) as caught:
        AdmissionConfig(**{field: value})  # type: ignore[arg-type]
    assert str(caught.value) == says


@pytest.mark.parametrize("fields", [{"prompt_tokens": -1}, {"max_tokens": -1}, {"sequences": 0}])
def test_impossible_requests_are_refused(fields: dict[str, int]) -> None:
    """Negative sizes do not reach the arithmetic."""
    with pytest.raises(ValueError, match="start at 0"):
        AdmissionRequest(**{"id": "r", "prompt_tokens": 1, "max_tokens": 1, **fields})  # type: ignore[arg-type]


def test_priorities_are_one_digit() -> None:
    """Headers carry 0 to 9, and nothing else."""
    assert [parse_priority(text) for text in "059"] == [0, 5, 9]
    for text in ("", "10", "-1", "high", "٣", " 5"):
        with pytest.raises(ValueError, match="from 0 to 9"):
            parse_priority(text)
    with pytest.raises(ValueError, match="from 0 to 9"):
        ask(1, 1, priority=10)
