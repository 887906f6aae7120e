"""Fleets, verdicts and a runner for the tests of the search, which need no simulation."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sim_builders import replica

from gpt_oss_server.simulate.cost.layout import Replica
from gpt_oss_server.simulate.fleet.pools import Fleet, Pool
from gpt_oss_server.simulate.plan.rules import Rule
from gpt_oss_server.simulate.plan.trials import Candidate, LocalRunner, Trial, Verdict
from gpt_oss_server.simulate.results.slo import ClassReport, SloReport


def fleet(*pools: tuple[int, int]) -> Fleet:
    """Pools of (replicas, tp) of gpt-oss-120b on H100."""
    return Fleet(tuple(Pool(made(tp), count) for count, tp in pools))


def made(tp: int) -> Replica:
    return replica(tp=tp)


def candidate(*pools: tuple[int, int], rule: str = "earliest_completion") -> Candidate:
    return Candidate(fleet(*pools), Rule(rule))


def verdict(requests_per_s: float, met: bool) -> Verdict:
    """All of one class of 100 requests, all or none served as promised."""
    times = (1.0, 2.0, 3.0)
    report = SloReport(
        (ClassReport("short", 100, 100 if met else 0, times, times, times),), requests_per_s, met
    )
    return Verdict(
        requests_per_s=requests_per_s,
        input_tokens_s=1000.0 * requests_per_s,
        output_tokens_s=100.0 * requests_per_s,
        report=report,
        busy_share=0.5,
        cached_share=0.0,
        preemptions=0,
        lost={},
    )


class Pretender(LocalRunner):
    """Plays nothing: a candidate bears what `bears` says, on traffics of `rates` requests/s."""

    def __init__(
        self, bears: Callable[[Candidate, str], float], rates: Mapping[str, float]
    ) -> None:
        super().__init__(self._verdict)
        self._bears = bears
        self._rates = rates
        self.trials: list[Trial] = []

    def _verdict(self, trial: Trial) -> Verdict:
        self.trials.append(trial)
        load = trial.factor * self._rates[trial.traffic]
        return verdict(load, load <= self._bears(trial.candidate, trial.traffic))
