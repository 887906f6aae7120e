"""Find the largest load that is borne, on a grid of loads: for many candidates at once.

Knows: the grid, the order in which one candidate's loads are tried, trials under way. Does not
know: which candidates there are or why. One candidate's path depends on its own verdicts only.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass

from gpt_oss_server.simulate.plan.trials import Candidate, Runner, Trial, Verdict

GRID = 1.03
"""Neighbouring loads; a knee is found to within one step."""
FIRST_STRIDE = 4
ENDLESS = 100_000
FARTHEST = 160
"""So many steps from where it began a search ends: a hundredth, or a hundred times, of the load."""

Steps = Generator[int, bool, int | None]
"""Yields steps of the grid to try, is told whether the load was borne, returns the knee."""


def factor_of(step: int) -> float:
    """How many times as fast as it is the traffic is played at this step."""
    return float(GRID**step)


def step_of(factor: float) -> int:
    """The step nearest to a factor."""
    return round(math.log(factor) / math.log(GRID))


def knee(begin: int, most: int = ENDLESS) -> Steps:
    """Stride from `begin` until one load is borne and one above it is not, then halve the gap.
    None: not even a hundredth of the first load is borne. Where a hundred times as much, or the
    step `most`, is borne as well, that is the answer.

    Attainment need not fall steadily with load: what is found is a step that is borne next to one
    that is not.
    """
    borne: int | None = None
    too_much: int | None = None
    at, stride = min(begin, most), FIRST_STRIDE
    while borne is None or too_much is None or too_much - borne > 1:
        if (yield at):
            borne = at
        else:
            too_much = at
        if borne is not None and too_much is not None:
            at = (borne + too_much) // 2
        elif borne is not None and (borne == most or at + stride > begin + FARTHEST):
            return borne
        elif borne is not None:
            at, stride = min(at + stride, most), 2 * stride
        elif at - stride < begin - FARTHEST:
            return None
        else:
            at, stride = at - stride, 2 * stride
    return borne


def gated(gate: int, begin: int, most: int = ENDLESS) -> Steps:
    """The knee, if the load at `gate` is borne; None at once if it is not."""
    if not (yield gate):
        return None
    return (yield from knee(max(gate, begin), most))


def single(at: int) -> Steps:
    """That load alone, if it is borne."""
    return at if (yield at) else None


@dataclass(frozen=True)
class Quest:
    """One candidate's search on one traffic."""

    candidate: Candidate
    traffic: str
    steps: Steps

    @property
    def key(self) -> tuple[str, str]:
        return self.candidate.key, self.traffic


@dataclass(frozen=True)
class Knee:
    """The largest load found to be borne, and what it was like."""

    step: int
    verdict: Verdict


class Explorer:
    """Runs quests side by side, remembers every verdict, stops when time is over.

    `until` is the share of the time after which no further trial is begun.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        spent: Callable[[], float] = lambda: 0.0,
        tell: Callable[[int], None] = lambda runs: None,
    ) -> None:
        """`spent` says what share of the time is over; `tell` hears how many trials were made."""
        self._runner = runner
        self._spent = spent
        self._tell = tell
        self.until = 1.0
        self._known: dict[tuple[str, str, int], Verdict] = {}
        self.runs = 0

    def expired(self) -> bool:
        """Whether time is over."""
        return self._spent() >= self.until

    def explore(self, quests: Iterable[Quest]) -> dict[tuple[str, str], Knee | None]:
        """The knees of all quests by candidate and traffic; None where nothing was borne. A quest
        that time did not suffice for is left out."""
        waiting = deque({quest.key: quest for quest in quests}.values())
        under_way: dict[tuple[str, str], tuple[Quest, int]] = {}
        found: dict[tuple[str, str], Knee | None] = {}
        while waiting or under_way:
            while waiting and len(under_way) < 2 * self._runner.slots and not self.expired():
                quest = waiting.popleft()
                self._advance(quest, next(quest.steps), under_way, found)
            if not under_way:
                break  # time is over, or what was left was known already
            trial, verdict = self._runner.take()
            self.runs += 1
            self._tell(self.runs)
            key = (trial.candidate.key, trial.traffic)
            quest, at = under_way.pop(key)
            self._known[*key, at] = verdict
            if not self.expired():
                self._advance(quest, at, under_way, found)
        return found

    def play(self, trials: Iterable[Trial]) -> list[tuple[Trial, Verdict]]:
        """Single trials at any load, in the order given; those that time sufficed for."""
        waiting = deque(enumerate({trial.key: trial for trial in trials}.values()))
        places: dict[tuple[str, str, float], int] = {}
        done: dict[int, tuple[Trial, Verdict]] = {}
        while waiting or places:
            while waiting and len(places) < 2 * self._runner.slots and not self.expired():
                place, trial = waiting.popleft()
                places[trial.key] = place
                self._runner.submit(trial)
            if not places:
                break
            trial, verdict = self._runner.take()
            self.runs += 1
            self._tell(self.runs)
            done[places.pop(trial.key)] = (trial, verdict)
        return [done[place] for place in sorted(done)]

    def _advance(
        self,
        quest: Quest,
        at: int,
        under_way: dict[tuple[str, str], tuple[Quest, int]],
        found: dict[tuple[str, str], Knee | None],
    ) -> None:
        """Follow the quest through what is known to the next trial, or to its end."""
        try:
            while (known := self._known.get((*quest.key, at))) is not None:
                at = quest.steps.send(known.met)
        except StopIteration as end:
            step: int | None = end.value
            if step is None:
                found[quest.key] = None
            else:
                found[quest.key] = Knee(step, self._known[*quest.key, step])
            return
        under_way[quest.key] = (quest, at)
        self._runner.submit(Trial(quest.candidate, quest.traffic, factor_of(at)))
