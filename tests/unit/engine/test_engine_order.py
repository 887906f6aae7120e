"""The order of prefills: what a step's tokens go to, and the two bounds that are promised."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_oss_server.engine.order import (
    FirstCome,
    Grant,
    PrefillItem,
    PrefillOrder,
    ShortestFirst,
    prefill_order,
)


@dataclass
class Simulation:
    """Prefills alone, under a constant budget: the batcher's walk over a ranking."""

    order: PrefillOrder
    budget: int
    remaining: dict[int, int] = field(default_factory=dict)
    arrived: int = 0

    def arrive(self, tokens: int) -> int:
        self.remaining[self.arrived] = tokens
        self.arrived += 1
        return self.arrived - 1

    def step(self) -> None:
        items = [PrefillItem(arrival, left) for arrival, left in self.remaining.items()]
        left = self.budget
        for arrival, cap in self.order.rank(items, self.budget):
            taken = min(cap, left, self.remaining[arrival])
            self.remaining[arrival] -= taken
            left -= taken
        assert left == 0 or not any(self.remaining.values()), "tokens were left unused"
        self.remaining = {arrival: left for arrival, left in self.remaining.items() if left}

    def finish_order(self) -> list[int]:
        """Run out; the arrivals by step of completion, then by arrival."""
        finished: list[int] = []
        while self.remaining:
            before = set(self.remaining)
            self.step()
            finished += sorted(before - set(self.remaining))
        return finished


def test_first_come_is_by_arrival() -> None:
    """First come: arrival order, each up to all that is left."""
    items = [PrefillItem(7, 3), PrefillItem(2, 90), PrefillItem(5, 1)]
    assert FirstCome().rank(items, 8) == [Grant(2, 8), Grant(5, 8), Grant(7, 8)]


@pytest.mark.parametrize(
    ("share", "budget", "expected"),
    [
        (0.25, 8, [Grant(2, 2), Grant(5, 8), Grant(7, 8), Grant(2, 8)]),
        (0.25, 9, [Grant(2, 3), Grant(5, 9), Grant(7, 9), Grant(2, 9)]),
        (0.0, 8, [Grant(5, 8), Grant(7, 8), Grant(2, 8)]),
        (1.0, 8, [Grant(2, 8), Grant(5, 8), Grant(7, 8), Grant(2, 8)]),
    ],
    ids=["a quarter", "rounded up", "no share", "all of it"],
)
def test_shortest_first_keeps_a_share_for_the_oldest(
    share: float, budget: int, expected: list[Grant]
) -> None:
    """The oldest's share comes first, then the shortest, ties by arrival."""
    items = [PrefillItem(7, 3), PrefillItem(2, 90), PrefillItem(5, 3)]
    assert ShortestFirst(share).rank(items, budget) == expected


@pytest.mark.parametrize("order", [FirstCome(), ShortestFirst()])
def test_nothing_to_rank(order: PrefillOrder) -> None:
    """No prompts, no grants."""
    assert order.rank([], 8) == []


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_is_a_share(share: float) -> None:
    """A share outside 0..1 is refused."""
    with pytest.raises(ValueError, match=r"within 0\.\.1"):
        ShortestFirst(share)


def test_policies_by_name() -> None:
    """The settings' names give the policies."""
    items = [PrefillItem(1, 9), PrefillItem(2, 1)]
    assert isinstance(prefill_order("fcfs", 0.5), FirstCome)
    assert prefill_order("shortest", 0.5).rank(items, 4)[0] == Grant(1, 2)


def test_a_short_prompt_passes_a_long_one_and_not_the_other_way() -> None:
    """Behind a prompt of 1000 tokens, one of 6 is done in one step; first come makes it wait."""
    for order, steps in ((ShortestFirst(), 1), (FirstCome(), 126)):
        simulation = Simulation(order, budget=8)
        simulation.arrive(1000)
        short = simulation.arrive(6)
        taken = 0
        while short in simulation.remaining:
            simulation.step()
            taken += 1
        assert taken == steps


ARRIVALS = st.lists(st.lists(st.integers(1, 40), max_size=3), max_size=25)


@settings(max_examples=200, deadline=None)
@given(
    before=st.lists(st.integers(1, 90), max_size=8),
    own=st.integers(1, 12),
    later=ARRIVALS,
    budget=st.integers(8, 40),
    share_and_k=st.sampled_from([(0.25, 2), (0.25, 4), (0.5, 3), (0.5, 5), (0.6, 4), (0.75, 6)]),
)
def test_large_shares_leave_a_weaker_bound(
    before: list[int],
    own: int,
    later: list[list[int]],
    budget: int,
    share_and_k: tuple[float, int],
) -> None:
    """With k > 1/(1 - s), n tokens are done within `ceil((S + n) / (B - ceil(s B) k / (k - 1)))`
    steps, S counting only prompts shorter than k n: what docs/admission.md says of each share."""
    share, k = share_and_k
    free = budget - math.ceil(share * budget) * k / (k - 1)
    if free <= 0:
        return
    simulation = Simulation(ShortestFirst(share), budget)
    for tokens in before:
        simulation.arrive(tokens)
    ours = simulation.arrive(own)
    shorter = sum(tokens for tokens in before if tokens < k * own)
    steps = 0
    arrivals = iter(later)
    while ours in simulation.remaining:
        for tokens in next(arrivals, []) if steps else []:
            simulation.arrive(tokens)
            shorter += tokens if tokens < k * own else 0
        simulation.step()
        steps += 1
        assert steps <= 2000
    assert steps <= math.ceil((shorter + own) / free)


@settings(max_examples=200, deadline=None)
@given(
    before=st.lists(st.integers(1, 60), max_size=8),
    own=st.integers(1, 30),
    later=ARRIVALS,
    budget=st.integers(3, 24),
    share=st.sampled_from([0.0, 0.1, 0.25, 0.4]),
)
def test_short_prompts_wait_for_shorter_than_twice_themselves_only(
    before: list[int], own: int, later: list[list[int]], budget: int, share: float
) -> None:
    """The first bound of `ShortestFirst`: n tokens are done within
    `ceil((S + n) / (B - 2 ceil(s B)))` steps, S counting only prompts shorter than 2n."""
    free = budget - 2 * math.ceil(share * budget)
    if free < 1:
        return
    simulation = Simulation(ShortestFirst(share), budget)
    for tokens in before:
        simulation.arrive(tokens)
    ours = simulation.arrive(own)
    shorter = sum(tokens for tokens in before if tokens < 2 * own)
    steps = 0
    arrivals = iter(later)
    while ours in simulation.remaining:
        for tokens in next(arrivals, []) if steps else []:
            simulation.arrive(tokens)
            shorter += tokens if tokens < 2 * own else 0
        simulation.step()
        steps += 1
        assert steps <= 2000
    assert steps <= math.ceil((shorter + own) / free)


@settings(max_examples=200, deadline=None)
@given(
    before=st.lists(st.integers(1, 40), max_size=8),
    own=st.integers(1, 200),
    later=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=20),
    budget=st.integers(1, 24),
    share=st.sampled_from([0.1, 0.25, 0.4, 1.0]),
)
def test_long_prompts_never_starve(
    before: list[int], own: int, later: list[list[int]], budget: int, share: float
) -> None:
    """The second bound of `ShortestFirst`: N tokens behind O' older prompts of O tokens are done
    within `ceil((O + N) / ceil(s B)) + O'` steps, though shorter prompts arrive for ever."""
    simulation = Simulation(ShortestFirst(share), budget)
    for tokens in before:
        simulation.arrive(tokens)
    ours = simulation.arrive(own)
    bound = math.ceil((sum(before) + own) / math.ceil(share * budget)) + len(before)
    for step in range(bound):
        simulation.step()
        for tokens in later[step % len(later)]:
            simulation.arrive(tokens)
    assert ours not in simulation.remaining


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.integers(1, 10))
def test_first_come_finishes_in_order(lengths: list[int], budget: int) -> None:
    """First come: whoever arrives earlier is never done later."""
    simulation = Simulation(FirstCome(), budget)
    for tokens in lengths:
        simulation.arrive(tokens)
    assert simulation.finish_order() == list(range(len(lengths)))
