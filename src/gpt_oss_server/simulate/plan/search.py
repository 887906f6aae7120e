"""Search fleets × policies × thresholds for the largest load that is borne, on a budget.

Knows: the stages of the search, who goes on to the next, what is best and what is no worse within
noise. Does not know: files, flags, processes, clocks, money. Pure: it knows what trials find.

Capacity is the largest load at which every class of requests is served as promised (`slo.Slo`).
Four stages, each with longer traffic and fewer candidates:

1. *layouts*: every fleet under the first policy, on a short stretch. Uniform fleets come first;
   mixed ones that bear `LAYOUT_SLACK` steps less than the best of them are left at that.
2. *policies*: every other policy and threshold on the fleets within `OTHERS_SLACK` of the best, one
   trial at `SLACK` steps under the best so far; the knee only of those that pass. The policy that
   is then the best is tried on the other fleets too. The first plain one (what any balancer does)
   is searched on all fleets on its own account, to tell what they do without a cleverer dispatcher.
3. *base*: whoever came within `SLACK` of the best, on the whole stretch.
4. *draws*: the finalists on other draws of the workload (`confidence`), the same for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from gpt_oss_server.errors import ConfigError, StartupError
from gpt_oss_server.simulate.fleet.pools import Fleet
from gpt_oss_server.simulate.plan.found import Found, Notes, plainness
from gpt_oss_server.simulate.plan.knee import (
    GRID,
    Explorer,
    Knee,
    Quest,
    Steps,
    gated,
    knee,
    step_of,
)
from gpt_oss_server.simulate.plan.rules import PLAIN, Rule
from gpt_oss_server.simulate.plan.trials import Candidate

SHORT, BASE = "short", "base"
SLACK = 4
LAYOUT_SLACK = 10
FINAL_SLACK = 3
OTHERS_SLACK = 8
MOST_CONTENDERS = 12
MOST_FINALISTS = 4
SHORTEST_S = 5.0
"""No traffic is played so fast that it lasts less: who gets all at once queues nothing up."""
CAUTION = 0.8
"""A search begins at this share of a guess."""
UNTIL = {"layouts": 0.35, "policies": 0.5, "base": 0.75, "draws": 1.0}
"""Shares of the time by which stages end, so that a slow machine sees every stage."""


@dataclass(frozen=True)
class Problem:
    """What is searched.

    Attributes:
        fleets: all that are considered.
        rules: by the fleet's name what is tried on it, the likeliest first.
        rates: requests per second of the traffics `short`, `base`, and of each draw.
        spans_s: how long they last at that pace.
        draws: names of the other draws of the workload, in order.
        independent: draws are of their own (a generator's), not variants of one record.
        guess: requests per second that a fleet might bear.
        current: what runs today.
    """

    fleets: tuple[Fleet, ...]
    rules: Mapping[str, Sequence[Rule]]
    rates: Mapping[str, float]
    spans_s: Mapping[str, float]
    draws: tuple[str, ...]
    independent: bool
    guess: Callable[[Fleet], float]
    current: Candidate | None = None


def search(
    problem: Problem, explorer: Explorer, tell: Callable[[str], None] = lambda stage: None
) -> Found:
    """Run all stages.

    Raises ConfigError where no candidate bears any load, StartupError where time did not suffice to
    find one that does.
    """
    return _Search(problem, explorer, tell).run()


def _uniform(one: Candidate) -> bool:
    return len(one.fleet.pools) == 1


class _Search:
    def __init__(self, problem: Problem, explorer: Explorer, tell: Callable[[str], None]) -> None:
        self._problem = problem
        self._explorer = explorer
        self._tell = tell
        self._notes = Notes()
        self._trust = CAUTION

    def run(self) -> Found:
        self._enter("layouts")
        self._layouts()
        self._enter("policies")
        self._policies()
        if not any(self._notes.short.values()):
            raise self._nothing()
        self._enter("base")
        self._base()
        self._enter("draws")
        self._draws()
        return self._notes.found(independent=self._problem.independent, runs=self._explorer.runs)

    def _enter(self, stage: str) -> None:
        self._explorer.until = UNTIL[stage]
        self._tell(stage)

    # 1. layouts

    def _layouts(self) -> None:
        problem = self._problem
        leads = [Candidate(fleet, problem.rules[fleet.name][0]) for fleet in problem.fleets]
        plain = [one for one in leads if len(one.fleet.pools) == 1] or leads[:4]
        found = self._short(plain, gate=None, what="layouts")
        met = {key: one.verdict.requests_per_s for key, one in found.items() if one is not None}
        guesses = [
            met[one.key] / problem.guess(one.fleet)
            for one in plain
            if one.key in met and problem.guess(one.fleet) > 0
        ]
        if guesses:
            self._trust = median(guesses)
        others = [one for one in leads if one not in plain]
        self._short(others, gate=LAYOUT_SLACK, what="layouts")

    # 2. policies

    def _policies(self) -> None:
        problem = self._problem
        best = self._best_short(lambda one: True)
        least = best.step - OTHERS_SLACK if best is not None else 0
        others = []
        for fleet in problem.fleets:
            lead, *more = problem.rules[fleet.name]
            led = self._notes.short.get(Candidate(fleet, lead).key)
            if best is None or (led is not None and led.step >= least):
                others += [Candidate(fleet, rule) for rule in more]
        self._short(others, gate=SLACK, what="candidates beside the first policy")
        self._elsewhere()
        plain = next((name for name in PLAIN if self._tried_somewhere(name)), None)
        if plain is not None:
            self._plain(Rule(plain))

    def _elsewhere(self) -> None:
        """The policy that was best so far on all fleets that it was not tried on: which fleets are
        near the best may depend on it."""
        notes, rules = self._notes, self._problem.rules
        short = {key: one.step for key, one in notes.short.items() if one is not None}
        if not short:
            return
        first = min(short, key=lambda key: (-short[key], *plainness(notes.candidates[key])))
        rule = notes.candidates[first].rule
        left = [
            Candidate(fleet, same)
            for fleet in self._problem.fleets
            for same in rules[fleet.name]
            if same.name == rule.name
        ]
        self._short(
            [one for one in left if one.key not in notes.short],
            gate=SLACK,
            what="candidates beside the first policy",
        )

    def _tried_somewhere(self, name: str) -> bool:
        return any(rule.name == name for rules in self._problem.rules.values() for rule in rules)

    def _plain(self, rule: Rule) -> None:
        """What a plain balancer does: uniform fleets first, mixed ones if they might be better."""
        fleets = [f for f in self._problem.fleets if rule in self._problem.rules[f.name]]
        uniform = [Candidate(fleet, rule) for fleet in fleets if len(fleet.pools) == 1]
        self._short(
            uniform or [Candidate(f, rule) for f in fleets[:4]],
            gate=None,
            what="candidates beside the first policy",
        )
        mixed = [Candidate(fleet, rule) for fleet in fleets if len(fleet.pools) > 1]
        self._short(
            mixed,
            gate=0,
            what="candidates beside the first policy",
            among=lambda one: one.rule == rule,
        )

    # 3. base

    def _base(self) -> None:
        notes = self._notes
        best = self._best_short(lambda one: True)
        assert best is not None  # `run` has seen that one was borne
        near = [
            notes.candidates[key]
            for key, one in notes.short.items()
            if one is not None and one.step >= best.step - SLACK
        ]
        near.sort(key=lambda one: (-self._short_step(one), *plainness(one)))
        chosen = near[:MOST_CONTENDERS]
        notes.not_tried = len(near) - len(chosen)
        for kind in (_uniform, lambda one: one.rule.plain):
            chosen += [one for one in self._top(kind) if one not in chosen]
        self._on_base(chosen[:1])
        # How much the first one's knee moved tells where those of the others will be.
        self._on_base(chosen[1:], moved=self._moved(chosen[0]))
        self._second_chances()
        current = self._problem.current
        if current is not None:
            notes.candidates.setdefault(current.key, current)
            guess = self._trust * self._problem.guess(current.fleet)
            begin = step_of(max(guess, 1e-6) / self._problem.rates[BASE])
            self._explore(
                [(current, self._knee(begin, BASE))], BASE, notes.base, "layouts that run today"
            )

    def _second_chances(self) -> None:
        """Who fell behind on the short stretch may have done so by chance: on the whole one, every
        other policy on the best layout and the best uniform one, and then what is the best policy
        on every layout, at one load each; those that bear it go on."""
        rules = self._problem.rules
        leads = [self._best_base(lambda one: True), self._best_base(_uniform)]
        fleets = {one.fleet.name: one.fleet for one in leads if one is not None}
        others = [Candidate(fleet, rule) for fleet in fleets.values() for rule in rules[fleet.name]]
        self._gated_on_base(others)
        first = self._best_base(lambda one: True)
        if first is None:
            return
        same = [
            Candidate(fleet, rule)
            for fleet in self._problem.fleets
            for rule in rules[fleet.name]
            if rule.name == first.rule.name
        ]
        self._gated_on_base(same)

    def _gated_on_base(self, candidates: Sequence[Candidate]) -> None:
        """Knees on the whole stretch of those that bear a step less than the best."""
        notes, first = self._notes, self._best_base(lambda one: True)
        best = notes.base[first.key] if first is not None else None
        if first is None or best is None:
            return
        at = best.step - 1
        left = [one for one in candidates if one.key not in notes.base]
        found: dict[str, Knee | None] = {}
        asks = [(one, gated(at, best.step, self._most(BASE))) for one in left]
        self._explore(asks, BASE, found, "candidates on the whole stretch")
        notes.base |= {key: one for key, one in found.items() if one is not None}
        known = notes.short.get(first.key)
        if known is not None:
            limit = known.verdict.requests_per_s / GRID
            for key, one in found.items():
                if one is None and notes.short.get(key) is None:
                    notes.below[key] = min(limit, notes.below.get(key, math.inf))

    def _best_base(self, kind: Callable[[Candidate], bool]) -> Candidate | None:
        notes = self._notes
        met = {key: one.step for key, one in notes.base.items() if one is not None}
        some = [notes.candidates[key] for key in met if kind(notes.candidates[key])]
        return min(some, key=lambda one: (-met[one.key], *plainness(one)), default=None)

    def _on_base(self, candidates: Sequence[Candidate], moved: int = 0) -> None:
        shift = math.log(self._problem.rates[SHORT] / self._problem.rates[BASE], GRID)
        asks = [
            (one, self._knee(self._short_step(one) + round(shift) + moved, BASE))
            for one in candidates
            if one.key not in self._notes.base
        ]
        self._explore(asks, BASE, self._notes.base, "candidates on the whole stretch")

    def _moved(self, one: Candidate) -> int:
        found = self._notes.base.get(one.key)
        if found is None:
            return 0
        shift = math.log(self._problem.rates[SHORT] / self._problem.rates[BASE], GRID)
        return found.step - self._short_step(one) - round(shift)

    # 4. draws

    def _draws(self) -> None:
        problem, notes = self._problem, self._notes
        finalists = self._finalists()
        if not finalists or not problem.draws:
            return
        for one in finalists:
            found = notes.base[one.key]
            notes.draws[one.key] = (found.verdict.requests_per_s,) if found else ()
        for number, draw in enumerate(problem.draws):
            shift = math.log(problem.rates[BASE] / problem.rates[draw], GRID)
            asks = []
            for one in finalists:
                found = notes.base[one.key]
                begin = (found.step if found else 0) + round(shift)
                asks.append((one, self._knee(begin, draw)))
            knees: dict[str, Knee | None] = {}
            self._explore(asks, draw, knees, None)
            if any(knees.get(one.key) is None for one in finalists):
                notes.missed("draws", len(problem.draws) - number, len(problem.draws))
                break
            for one in finalists:
                last = knees[one.key]
                assert last is not None
                notes.draws[one.key] += (last.verdict.requests_per_s,)

    def _finalists(self) -> list[Candidate]:
        """Those near the best on base, and whom they are to be compared with."""
        notes = self._notes
        met = {key: one for key, one in notes.base.items() if one is not None}
        ordered = sorted(
            (notes.candidates[key] for key in met),
            key=lambda one: (-met[one.key].step, *plainness(one)),
        )
        if not ordered:
            return []
        best = met[ordered[0].key].step
        near = [one for one in ordered if met[one.key].step >= best - FINAL_SLACK]
        chosen = near[:MOST_FINALISTS]
        for kind in (
            _uniform,
            lambda one: one.rule.plain,
            lambda one: self._problem.current is not None and one.key == self._problem.current.key,
        ):
            first = next((one for one in ordered if kind(one)), None)
            if first is not None and first not in chosen:
                chosen.append(first)
        return chosen

    # what is common to all stages

    def _knee(self, begin: int, traffic: str) -> Steps:
        return knee(begin, self._most(traffic))

    def _most(self, traffic: str) -> int:
        return math.floor(math.log(self._problem.spans_s[traffic] / SHORTEST_S, GRID))

    def _short(
        self,
        candidates: Sequence[Candidate],
        *,
        gate: int | None,
        what: str,
        among: Callable[[Candidate], bool] = lambda one: True,
    ) -> dict[str, Knee | None]:
        """Knees on the short stretch; with a gate only of those that bear so many steps less than
        the best of some so far."""
        notes, problem = self._notes, self._problem
        best = self._best_short(among)
        asks = []
        for one in candidates:
            if notes.short.get(one.key) is not None:
                continue
            guess = self._trust * problem.guess(one.fleet)
            begin = step_of(max(guess, 1e-6) / problem.rates[SHORT])
            if gate is None or best is None:
                asks.append((one, self._knee(begin, SHORT)))
            else:
                at = best.step - gate
                steps = gated(at, min(max(begin, at), best.step), self._most(SHORT))
                asks.append((one, steps))
        found: dict[str, Knee | None] = {}
        self._explore(asks, SHORT, found, what)
        for key, bears in found.items():
            notes.short[key] = bears
            if bears is None and gate is not None and best is not None:
                limit = problem.rates[SHORT] * GRID ** (best.step - gate)
                notes.below[key] = min(limit, notes.below.get(key, math.inf))
        return found

    def _explore(
        self,
        asks: Iterable[tuple[Candidate, Steps]],
        traffic: str,
        found: dict[str, Knee | None],
        what: str | None,
    ) -> None:
        quests = [Quest(one, traffic, steps) for one, steps in asks]
        for quest in quests:
            self._notes.candidates.setdefault(quest.candidate.key, quest.candidate)
        knees = self._explorer.explore(quests)
        for (key, _), one in knees.items():
            found[key] = one
        if what is not None:
            keys = {quest.key for quest in quests}
            self._notes.missed(what, len(keys) - len(knees), len(keys))

    def _best_short(self, kind: Callable[[Candidate], bool]) -> Knee | None:
        notes = self._notes
        found = [
            one
            for key, one in notes.short.items()
            if one is not None and kind(notes.candidates[key])
        ]
        return max(found, key=lambda one: one.step, default=None)

    def _short_step(self, one: Candidate) -> int:
        found = self._notes.short.get(one.key)
        return found.step if found is not None else 0

    def _top(self, kind: Callable[[Candidate], bool]) -> list[Candidate]:
        notes = self._notes
        some = [one for one in notes.candidates.values() if kind(one) and notes.short.get(one.key)]
        some.sort(key=lambda one: (-self._short_step(one), *plainness(one)))
        return some[:1]

    def _nothing(self) -> StartupError:
        if self._notes.short_of_time:
            return StartupError(
                "the time was over before any layout's load was found: give a larger --budget-s"
            )
        return ConfigError(
            "no layout keeps the promises at any load, under any policy that was tried: loosen "
            "--slo, or give more or faster GPUs"
        )
