"""What a step may compute after one for which there was no memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_oss_server.engine.step_budget import (
    FIRST_PATIENCE_STEPS,
    MOST_PATIENCE_STEPS,
    StepBudget,
)


@pytest.mark.parametrize(
    ("decode_tokens", "prefill_tokens", "left"),
    [
        (0, 2048, 1024),  # half of the prefill
        (64, 1984, 64 + 992),  # beside all that decode
        (64, 1, 64),
        (64, 0, 32),  # then half of them
        (3, 0, 1),
        (1, 1, 1),
    ],
)
def test_a_shortage_halves_the_prefill_then_the_decodes(
    decode_tokens: int, prefill_tokens: int, left: int
) -> None:
    """There is a smaller step, and the next one is no larger."""
    budget = StepBudget(2048)
    assert budget.shrink(decode_tokens, prefill_tokens)
    assert budget.tokens == left
    assert budget.reduced


@pytest.mark.parametrize(("decode_tokens", "prefill_tokens"), [(1, 0), (0, 1)])
def test_nothing_is_smaller_than_one_token(decode_tokens: int, prefill_tokens: int) -> None:
    """A single token has no smaller step; whoever comes next may still try one."""
    budget = StepBudget(8)
    assert not budget.shrink(decode_tokens, prefill_tokens)
    assert budget.tokens == 1


def test_the_budget_grows_back_in_doubles() -> None:
    """After so many good steps it doubles, until it is whole; then all is as before."""
    budget = StepBudget(100)
    budget.shrink(0, 60)
    seen = []
    for _ in range(3 * FIRST_PATIENCE_STEPS):
        budget.passed()
        seen.append(budget.tokens)
    quiet = FIRST_PATIENCE_STEPS - 1
    assert seen[:quiet] == [30] * quiet
    assert seen[quiet : 2 * quiet + 1] == [60] * (quiet + 1)
    assert seen[2 * quiet + 1 :] == [100] * (len(seen) - 2 * quiet - 1)
    assert not budget.reduced


def test_patience_doubles_while_memory_stays_short() -> None:
    """Each try that fails doubles the wait for the next one, until the budget was whole for as
    long."""
    budget = StepBudget(1000)
    waits = []
    for _ in range(12):
        budget.shrink(0, 2)
        steps = 0
        while budget.tokens == 1:
            budget.passed()
            steps += 1
        waits.append(steps)
    doubled = [FIRST_PATIENCE_STEPS << n for n in range(12)]
    assert waits == [min(steps, MOST_PATIENCE_STEPS) for steps in doubled]
    while budget.reduced:
        budget.passed()
    for _ in range(MOST_PATIENCE_STEPS):
        budget.passed()
    budget.shrink(0, 2)
    for _ in range(FIRST_PATIENCE_STEPS):
        budget.passed()
    assert budget.tokens == 2


def test_how_deep_a_single_shortage_was_does_not_count() -> None:
    """Halved eleven times in a row and at once short no more: each doubling comes as soon as after
    a small shortage."""
    budget = StepBudget(2048)
    while budget.tokens > 1:
        budget.shrink(0, budget.tokens)
    seen = []
    for _ in range(11 * FIRST_PATIENCE_STEPS):
        budget.passed()
        seen.append(budget.tokens)
    assert seen[FIRST_PATIENCE_STEPS - 1 :: FIRST_PATIENCE_STEPS] == [2 << n for n in range(11)]


def test_the_whole_is_tried_ever_more_rarely_where_only_half_of_it_fits() -> None:
    """Memory that stays short by a little costs ever fewer failed steps: the budget was whole, and
    was not for long."""
    budget = StepBudget(2048)
    failed = 0
    for _ in range(10_000):
        if budget.tokens > 1024:
            failed += 1
            budget.shrink(0, budget.tokens)
        else:
            budget.passed()
    # At 0, and then after 16, 32, ... 4096 steps each.
    assert failed == 10


@given(
    st.integers(1, 5000),
    st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 600), st.integers(0, 600)))),
)
def test_the_budget_stays_within_its_bounds(
    whole: int, course: list[tuple[int, int] | None]
) -> None:
    """Whatever happens: at least a token, never more than all, and never more after a shortage
    than the step had that met it."""
    budget = StepBudget(whole)
    for event in course:
        if event is None:
            budget.passed()
        else:
            decode = min(event[0], budget.tokens)
            prefill = min(event[1], budget.tokens - decode)
            if decode + prefill:
                budget.shrink(decode, prefill)
                assert budget.tokens <= max(1, decode + prefill - 1)
        assert 1 <= budget.tokens <= whole
