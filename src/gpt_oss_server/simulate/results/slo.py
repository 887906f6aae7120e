"""What was promised to whom, and how much of it was kept.

Knows: request classes by prompt length, their bounds, goodput. Does not know: how a request was
served. Everybody counts: what was dropped, failed or refused is a miss of its class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.simulate.results.outcome import Ints, Outcome


@dataclass(frozen=True)
class SloClass:
    """Prompts of at most `up_to_tokens` (and more than the class before) are promised the first
    token within `ttft_s` and a mean of `tpot_s` per token after it."""

    name: str
    up_to_tokens: float
    ttft_s: float
    tpot_s: float


@dataclass(frozen=True)
class Slo:
    """Classes by rising `up_to_tokens`, and the share of each that must be served as promised.
    Raises ConfigError."""

    classes: tuple[SloClass, ...] = (
        SloClass("short", 2048, 2.0, 0.050),
        SloClass("long", float("inf"), 10.0, 0.050),
    )
    share: float = 0.95

    def __post_init__(self) -> None:
        bounds = [one.up_to_tokens for one in self.classes]
        if not bounds or bounds != sorted(set(bounds)) or bounds[-1] != float("inf"):
            raise ConfigError("SLO classes need rising up_to_tokens, the last one infinite")
        for one in self.classes:
            if not (one.up_to_tokens >= 0 and one.ttft_s > 0 and one.tpot_s > 0):
                raise ConfigError("SLO classes need times above 0, and tokens of at least 0")
        if not 0 < self.share <= 1:
            raise ConfigError("an SLO's share must be above 0 and at most 1")

    def class_of(self, input_tokens: int) -> SloClass:
        for one in self.classes:
            if input_tokens <= one.up_to_tokens:
                return one
        return self.classes[-1]


@dataclass(frozen=True)
class ClassReport:
    """One class: how many, how many as promised, and quantiles (p50, p95, p99) of those served;
    None where none was."""

    name: str
    requests: int
    met: int
    ttft_s: tuple[float, ...] | None
    tpot_s: tuple[float, ...] | None
    e2e_s: tuple[float, ...] | None

    @property
    def share_met(self) -> float:
        return self.met / self.requests if self.requests else 1.0


@dataclass(frozen=True)
class SloReport:
    """All classes, and goodput: requests per second served as promised, over the time in which
    they came."""

    classes: tuple[ClassReport, ...]
    goodput_per_s: float
    met: bool


QUANTILES = (50, 95, 99)


def judge(outcome: Outcome, slo: Slo) -> SloReport:
    """Hold an outcome against a promise. Classes without requests are met."""
    served = outcome.served
    tpot = outcome.tpot_s
    places = class_places(outcome, slo)
    good = kept(outcome, slo)
    reports: list[ClassReport] = []
    for place, one in enumerate(slo.classes):
        mine = places == place
        reports.append(
            ClassReport(
                one.name,
                int(mine.sum()),
                int((mine & good).sum()),
                _quantiles(outcome.ttft_s, mine & served),
                _quantiles(tpot, mine & served),
                _quantiles(outcome.e2e_s, mine & served),
            )
        )
    met = sum(report.met for report in reports)
    span_s = outcome.span_s
    return SloReport(
        tuple(reports),
        met / span_s if span_s > 0 else 0.0,
        all(report.share_met >= slo.share for report in reports),
    )


def class_places(outcome: Outcome, slo: Slo) -> Ints:
    """Each request's class, by its place in `slo.classes`."""
    bounds = [one.up_to_tokens for one in slo.classes]
    return np.searchsorted(bounds, outcome.input_tokens, side="left")


def kept(outcome: Outcome, slo: Slo) -> npt.NDArray[np.bool_]:
    """Which requests were served as their class was promised."""
    places = class_places(outcome, slo)
    ttft_s = np.array([one.ttft_s for one in slo.classes])[places]
    tpot_s = np.array([one.tpot_s for one in slo.classes])[places]
    in_time = (outcome.ttft_s <= ttft_s) & (outcome.tpot_s <= tpot_s)
    return np.asarray(outcome.served & in_time)


def _quantiles(values: np.ndarray, chosen: np.ndarray) -> tuple[float, ...] | None:
    if not chosen.any():
        return None
    return tuple(float(q) for q in np.percentile(values[chosen], QUANTILES))
