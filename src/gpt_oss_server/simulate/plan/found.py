"""What a search knows of its candidates, and what follows: the best, and what to propose.

Knows: how knees on different traffics are brought on one footing, noise, what is simpler. Does not
know: how knees were found.

The best is who bears most on the mean over base and draws (who was only played on less, if that is
all there is). Proposed is the simplest finalist that is no worse within noise, at most `GIVE_UP`
below the best, and on the traffic as it was given at most a step of the grid: that one is known to
come, its variants may not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gpt_oss_server.simulate.plan.knee import GRID, Knee
from gpt_oss_server.simulate.plan.trials import Candidate
from gpt_oss_server.simulate.results.confidence import Interval, interval, ratio

GIVE_UP = 0.02
_ORDER = ("draws", "base", "short")


@dataclass(frozen=True)
class Standing:
    """What one candidate was found to bear.

    `per_s` (requests per second) is for all on one footing: what the best bears on the mean over
    its draws, times `relative`, the ratio to the best on the longest traffic that was played on
    both (`basis`: draws, base, short). `bears` is its own range over draws, `to_best` that of the
    ratio, pair by pair; None where there were none. `short` and `base` are None where it was not
    searched, or bore nothing; `draws` has requests per second on base and every further draw.
    """

    candidate: Candidate
    per_s: float
    relative: float
    basis: str
    short: Knee | None = None
    base: Knee | None = None
    draws: tuple[float, ...] = ()
    bears: Interval | None = None
    to_best: Interval | None = None

    @property
    def no_worse(self) -> bool:
        """Chance may be all that lies between it and the best."""
        return self.to_best is not None and (self.to_best.high or self.to_best.middle) >= 1.0

    @property
    def last(self) -> Knee | None:
        """Its knee on base, or else on the short stretch."""
        return self.base or self.short


@dataclass(frozen=True)
class Below:
    """A candidate of which only that is known that it bears less than so much."""

    candidate: Candidate
    per_s: float


@dataclass(frozen=True)
class Found:
    """Everything a search found: finalists first, then those known from base, then the others,
    each best first. `cut` says what time did not suffice for; `not_tried` candidates were near the
    best on the short stretch but not among those that went on to the whole one."""

    standings: tuple[Standing, ...]
    best: Standing
    proposed: Standing
    below: tuple[Below, ...]
    runs: int
    cut: tuple[str, ...]
    not_tried: int = 0

    def of(self, candidate: Candidate | None) -> Standing | None:
        """What is known of a candidate."""
        if candidate is None:
            return None
        return next((s for s in self.standings if s.candidate.key == candidate.key), None)

    def best_of(self, kind: Callable[[Candidate], bool]) -> Standing | None:
        """The best of some."""
        return next((s for s in self.standings if kind(s.candidate)), None)

    @property
    def without_dispatcher(self) -> Standing | None:
        """The best that any balancer in front of the replicas can do."""
        return self.best_of(lambda candidate: candidate.rule.plain)

    @property
    def uniform(self) -> Standing | None:
        """The best of replicas that are all alike."""
        return self.best_of(lambda candidate: len(candidate.fleet.pools) == 1)


@dataclass
class Notes:
    """What is known so far, by the candidate's key. `below`: not borne at so many requests/s of
    the short stretch. `cut`: what time did not suffice for, (left out, all) by what it is."""

    candidates: dict[str, Candidate] = field(default_factory=dict)
    short: dict[str, Knee | None] = field(default_factory=dict)
    base: dict[str, Knee | None] = field(default_factory=dict)
    draws: dict[str, tuple[float, ...]] = field(default_factory=dict)
    below: dict[str, float] = field(default_factory=dict)
    cut: dict[str, tuple[int, int]] = field(default_factory=dict)
    not_tried: int = 0

    def missed(self, what: str, left_out: int, of: int) -> None:
        """Of so many more of a kind, time did not suffice for some."""
        before = self.cut.get(what, (0, 0))
        self.cut[what] = (before[0] + left_out, before[1] + of)

    @property
    def short_of_time(self) -> bool:
        """Whether time did not suffice for anything."""
        return any(left for left, _ in self.cut.values())

    def found(self, *, independent: bool, runs: int) -> Found:
        """Compare all that is known. `independent`: draws are a generator's, not variants of one
        record. Some candidate must bear something."""
        everyone = list(self.candidates.values())
        finals = [one for one in everyone if self.draws.get(one.key)]
        best = self._ordered(finals or everyone, independent)[0]
        rows = self._ordered(finals, independent, best)
        rows += self._ordered([one for one in everyone if one not in finals], independent, best)
        best = rows[0]
        able = [
            row
            for row in rows
            if row.no_worse and row.relative >= 1.0 - GIVE_UP and _near(row.base, best.base)
        ]
        return Found(
            standings=tuple(rows),
            best=best,
            proposed=min(able, key=lambda row: plainness(row.candidate), default=best),
            below=self._left_early(best),
            runs=runs,
            cut=tuple(f"{left} of {of} {what}" for what, (left, of) in self.cut.items() if left),
            not_tried=self.not_tried,
        )

    def _left_early(self, best: Standing) -> tuple[Below, ...]:
        if best.short is None:
            return ()
        footing = best.per_s / best.short.verdict.requests_per_s
        below = [
            Below(self.candidates[key], footing * limit)
            for key, limit in self.below.items()
            if self.short.get(key) is None and self.base.get(key) is None
        ]
        return tuple(sorted(below, key=lambda one: (-one.per_s, one.candidate.key)))

    def _ordered(
        self, candidates: Sequence[Candidate], independent: bool, best: Standing | None = None
    ) -> list[Standing]:
        """Those that bear anything, on the footing of the best (None: each on its own)."""
        rows = [self._standing(one, independent, best) for one in candidates]
        return sorted(
            (row for row in rows if row is not None),
            key=lambda row: (_ORDER.index(row.basis), -row.relative, *plainness(row.candidate)),
        )

    def _standing(
        self, one: Candidate, independent: bool, best: Standing | None
    ) -> Standing | None:
        short, base = self.short.get(one.key), self.base.get(one.key)
        draws = self.draws.get(one.key, ())
        footing = self._footing(one, best)
        if footing is None:
            return None
        basis, relative = footing
        bears = to_best = None
        if draws:
            bears = interval(draws, independent=independent, resolution=GRID - 1.0)
            relative = bears.middle
        if draws and best is not None and len(draws) == len(best.draws):
            step = 0.0 if one.key == best.candidate.key else GRID - 1.0
            to_best = ratio(draws, best.draws, independent=independent, resolution=step)
            relative = to_best.middle
        per_s = relative if best is None else relative * best.per_s
        return Standing(one, per_s, relative, basis, short, base, draws, bears, to_best)

    def _footing(self, one: Candidate, best: Standing | None) -> tuple[str, float] | None:
        """The longest traffic that both were played on, and the ratio there (without a best:
        requests per second)."""
        if self.draws.get(one.key) and (best is None or best.draws):
            return "draws", 1.0
        pairs = (
            ("base", self.base.get(one.key), best.base if best else None),
            ("short", self.short.get(one.key), best.short if best else None),
        )
        for basis, own, other in pairs:
            if own is not None and (best is None or other is not None):
                against = other.verdict.requests_per_s if other is not None else 1.0
                return basis, own.verdict.requests_per_s / against
        return None


def _near(one: Knee | None, best: Knee | None) -> bool:
    """Whether a knee is at most a step below the best's, as far as both are known."""
    return one is None or best is None or one.step >= best.step - 1


def plainness(one: Candidate) -> tuple[int, int, int, int]:
    """What is simpler to run comes first: fewer kinds of replica, a policy that any balancer has,
    fewer thresholds, smaller replicas."""
    largest = max(pool.replica.shape.gpus for pool in one.fleet.pools)
    return (len(one.fleet.pools), not one.rule.plain, len(one.rule.bounds), largest)
