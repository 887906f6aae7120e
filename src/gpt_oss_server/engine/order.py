"""In which order waiting prompts get the prefill tokens of a step. Small, pure policies.

Knows: how many tokens each prompt still needs and who came first. Does not know: memory,
sequences, time. A policy returns a ranking with caps; the batcher walks it while tokens are
left, and may skip an entry that memory does not admit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol


class PrefillItem(NamedTuple):
    """A prompt that waits or is half done. `arrival` is unique and grows."""

    arrival: int
    remaining_tokens: int


class Grant(NamedTuple):
    """Up to `cap_tokens` of the budget for the item with this arrival, if it needs as much and as
    much is left. An item may be granted twice. What a budget buys deep in a long prompt is for
    the batcher to say."""

    arrival: int
    cap_tokens: int


class PrefillOrder(Protocol):
    def rank(self, items: Sequence[PrefillItem], budget_tokens: int) -> list[Grant]:
        """Who may take how much of `budget_tokens`, in order."""
        ...


class FirstCome:
    """Arrival order. A prompt of n tokens behind S waiting ones starts after S tokens: fair to
    the early, hard on a short prompt behind a long one."""

    def rank(self, items: Sequence[PrefillItem], budget_tokens: int) -> list[Grant]:
        return [Grant(i.arrival, budget_tokens) for i in sorted(items)]


class ShortestFirst:
    """Shortest remaining prefill first, with a guaranteed share for the oldest.

    Each step, `ceil(oldest_share * budget)` tokens are first offered to the prompt that came
    first; the rest goes to the shortest remaining one, ties by arrival. With budget B tokens a
    step (constant), share s, while memory and sequence slots admit everyone, and counting tokens
    as they are charged (`StepCost`: at the start of a prompt as one, deep in a long one as more):

    - a short prompt never waits long behind a long one: one of n tokens has all its prefill
      within `ceil((S + n) / (B - 2 ceil(s B)))` steps, where S is the total remaining of prompts
      shorter than 2n (including those that arrive meanwhile). Prompts at least twice as long do
      not appear in the bound: one gets ahead only once the share has brought it down to n, so
      it takes no more from the rest of the budget than the share already gave it.
    - a long prompt never starves: one of N tokens is done within `ceil((O + N) / ceil(s B)) + O'`
      steps, where O is the total remaining of the O' prompts that came before it, however many
      shorter ones keep arriving (s > 0).

    Shortest-remaining-first minimises mean waiting time (Schrage 1968); the share is the ageing
    that bounds its tail.
    """

    def __init__(self, oldest_share: float = 0.25) -> None:
        if not 0.0 <= oldest_share <= 1.0:
            raise ValueError("oldest_share must be within 0..1")
        self._share = oldest_share

    def rank(self, items: Sequence[PrefillItem], budget_tokens: int) -> list[Grant]:
        if not items:
            return []
        oldest = min(items)
        reserved = math.ceil(self._share * budget_tokens)
        grants = [Grant(oldest.arrival, reserved)] if reserved else []
        by_length = sorted(items, key=lambda i: (i.remaining_tokens, i.arrival))
        return grants + [Grant(i.arrival, budget_tokens) for i in by_length]


def prefill_order(name: str, oldest_share: float) -> PrefillOrder:
    """The policy by its setting's name: `fcfs` or `shortest`."""
    return FirstCome() if name == "fcfs" else ShortestFirst(oldest_share)
