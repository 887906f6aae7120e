"""The runs that one question asks for: each policy once, swept over loads, and on other draws.

Knows: which runs there are and what of them goes into the document. Does not know: flags, files,
how a run is simulated or shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from gpt_oss_server.routing.policies import POLICIES, policy
from gpt_oss_server.routing.policies.view import RankingPolicy
from gpt_oss_server.simulate.fleet.cluster import simulate
from gpt_oss_server.simulate.fleet.pools import Failure, Fleet
from gpt_oss_server.simulate.results.outcome import Outcome
from gpt_oss_server.simulate.results.repeats import repeats_json
from gpt_oss_server.simulate.results.report import as_json, sweep_json
from gpt_oss_server.simulate.results.slo import Slo, SloReport, judge
from gpt_oss_server.simulate.results.sweep import Capacity, capacity, clairvoyant_goodput
from gpt_oss_server.simulate.workload.requests import Workload


class Progress(Protocol):
    """Whoever wants to know how far it is."""

    def begin(self, label: str) -> None: ...
    def tell(self, done: int, total: int) -> None: ...
    def tell_load(self, factor: float, done: int, total: int) -> None: ...


class Draw(NamedTuple):
    """A workload that came or might as well have come, and the seed that it and random policies
    follow."""

    seed: int
    workload: Workload


@dataclass(frozen=True)
class Question:
    """What is to be played.

    Attributes:
        first: the draw whose figures and pictures are shown.
        draws: those over which figures are averaged; none for no averages.
        independent: whether the draws were made each on their own, or are variants of one record.
    """

    fleet: Fleet
    slo: Slo
    first: Draw
    policies: tuple[str, ...]
    failures: tuple[Failure, ...] = ()
    clients: int | None = None
    sample_every_s: float = 1.0
    view_age_s: float = 0.0
    sweep: bool = False
    draws: tuple[Draw, ...] = ()
    independent: bool = True

    def policy(self, name: str, seed: int) -> RankingPolicy:
        """A policy that remembers nothing of other runs. Raises ConfigError for its name."""
        kv_bytes = self.fleet.pools[0].replica.kv_bytes_per_token
        return policy(name, {"seed": seed, "kv_bytes_per_token": kv_bytes})


class Played(NamedTuple):
    """One policy's answer: its first run, and its part of the document."""

    name: str
    outcome: Outcome
    report: SloReport
    figures: Mapping[str, Any]


def played(question: Question, name: str, progress: Progress) -> Played:
    """Play all that is asked of one policy."""
    progress.begin(name)
    outcome, report = _run(question, name, question.first, progress.tell)
    figures = as_json(outcome, report, question.slo, len(question.policies))
    if question.sweep:
        found = _sweep(question, name, question.first, progress)
        figures["capacity_per_s"] = found.requests_per_s
        figures["sweep"] = sweep_json(found)
    if question.draws:
        borne = figures.get("capacity_per_s")
        figures["repeats"] = _repeated(question, name, report, borne, progress)
    return Played(name, outcome, report, figures)


def hindsight(question: Question, progress: Progress) -> float:
    """Goodput, in requests per second, of the best of all policies on the first draw, each with
    and without knowing every answer's length, chosen afterwards (`clairvoyant_goodput`)."""
    progress.begin("hindsight")
    return clairvoyant_goodput(
        question.first.workload,
        question.fleet,
        [lambda name=name: question.policy(name, question.first.seed) for name in POLICIES],  # type: ignore[misc]
        question.slo,
        1.0,
        failures=question.failures,
        view_age_s=question.view_age_s,
        progress=progress.tell_load,
    )


def _repeated(
    question: Question, name: str, report: SloReport, borne: float | None, progress: Progress
) -> dict[str, Any]:
    """`report` and `borne` are the first draw's, which is not played again."""
    known = question.first in question.draws
    reports = [report] if known else []
    capacities = [borne] if known and borne is not None else []
    for number, draw in enumerate(question.draws, 1):
        if draw is question.first:
            continue
        progress.begin(f"{name}, draw {number} of {len(question.draws)}")
        reports.append(_run(question, name, draw, progress.tell)[1])
        if question.sweep:
            capacities.append(_sweep(question, name, draw, progress).requests_per_s)
    return repeats_json(reports, capacities, independent=question.independent)


def _run(
    question: Question, name: str, draw: Draw, progress: Callable[[int, int], None]
) -> tuple[Outcome, SloReport]:
    outcome = simulate(
        draw.workload,
        question.fleet,
        question.policy(name, draw.seed),
        slo=question.slo,
        failures=question.failures,
        sample_every_s=question.sample_every_s,
        clients=question.clients,
        view_age_s=question.view_age_s,
        progress=progress,
    )
    return outcome, judge(outcome, question.slo)


def _sweep(question: Question, name: str, draw: Draw, progress: Progress) -> Capacity:
    return capacity(
        draw.workload,
        question.fleet,
        lambda: question.policy(name, draw.seed),
        question.slo,
        failures=question.failures,
        view_age_s=question.view_age_s,
        progress=progress.tell_load,
    )
