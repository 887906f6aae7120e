"""One trial of a search: a fleet, a rule, a traffic, a load; and who plays it, here or elsewhere.

Knows: how a trial becomes a verdict, runners that take trials and hand verdicts back. Does not
know: which trials are worth making. A verdict follows from its trial alone, so that neither the
number of processes nor the order in which they finish changes any figure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from gpt_oss_server.simulate.fleet.cluster import simulate
from gpt_oss_server.simulate.fleet.pools import Fleet
from gpt_oss_server.simulate.plan.rules import Rule
from gpt_oss_server.simulate.results.outcome import Outcome
from gpt_oss_server.simulate.results.report import cached_share
from gpt_oss_server.simulate.results.slo import Slo, SloReport, judge
from gpt_oss_server.simulate.workload.requests import Workload


@dataclass(frozen=True)
class Candidate:
    """A fleet and the rule that sends requests to its replicas."""

    fleet: Fleet
    rule: Rule

    @property
    def key(self) -> str:
        """The same for the same fleet and rule, whoever built them."""
        return f"{self.fleet.name}, {self.rule.label}"


class Trial(NamedTuple):
    """Play the traffic of that name on the candidate, `factor` times as fast."""

    candidate: Candidate
    traffic: str
    factor: float

    @property
    def key(self) -> tuple[str, str, float]:
        return self.candidate.key, self.traffic, self.factor


@dataclass(frozen=True)
class Verdict:
    """What came of a trial. `requests_per_s` is the load; tokens per second are of the prompts and
    answers that were served at it; `busy_share` is of all GPUs' time, `lost` counts requests that
    were not served, by how they ended."""

    requests_per_s: float
    input_tokens_s: float
    output_tokens_s: float
    report: SloReport
    busy_share: float
    cached_share: float
    preemptions: int
    lost: Mapping[str, int]

    @property
    def met(self) -> bool:
        return self.report.met


@dataclass(frozen=True)
class Player:
    """Plays trials on traffics by their names. `seed` is of policies that draw."""

    traffics: Mapping[str, Workload]
    slo: Slo
    seed: int = 0

    def play(self, trial: Trial) -> Verdict:
        """The same trial gives the same verdict, to the last bit."""
        workload = self.traffics[trial.traffic].at_load(trial.factor)
        candidate = trial.candidate
        kv_bytes = candidate.fleet.pools[0].replica.kv_bytes_per_token
        rule = candidate.rule.make(kv_bytes, self.seed)
        outcome = simulate(workload, candidate.fleet, rule, slo=self.slo)
        return verdict(workload, outcome, self.slo)


def verdict(workload: Workload, outcome: Outcome, slo: Slo) -> Verdict:
    """An outcome in the figures that a search compares."""
    counts = outcome.counts()
    served = outcome.served
    input_tokens = int(outcome.input_tokens[served].sum())
    output_tokens = int(outcome.output_tokens[served].sum())
    span_s = outcome.span_s
    gpus = sum(replica.gpus for replica in outcome.replicas)
    busy_s = sum(replica.busy_s * replica.gpus for replica in outcome.replicas)
    return Verdict(
        requests_per_s=workload.requests_per_s,
        input_tokens_s=input_tokens / span_s if span_s > 0 else 0.0,
        output_tokens_s=output_tokens / span_s if span_s > 0 else 0.0,
        report=judge(outcome, slo),
        busy_share=busy_s / (gpus * outcome.end_s) if outcome.end_s > 0 else 0.0,
        cached_share=cached_share(outcome),
        preemptions=int(outcome.preemptions.sum()),
        lost={end: count for end, count in counts.items() if count and end != "served"},
    )


class Runner(Protocol):
    """Takes trials, hands verdicts back in any order. `slots` trials are made at once."""

    @property
    def slots(self) -> int: ...

    def submit(self, trial: Trial) -> None: ...

    def take(self) -> tuple[Trial, Verdict]:
        """The next verdict, with its trial as it was submitted; one must be under way."""
        ...


class LocalRunner:
    """Plays here, one after the other, when a verdict is asked for."""

    slots = 1

    def __init__(self, play: Callable[[Trial], Verdict]) -> None:
        self._play = play
        self._waiting: deque[Trial] = deque()

    def submit(self, trial: Trial) -> None:
        self._waiting.append(trial)

    def take(self) -> tuple[Trial, Verdict]:
        trial = self._waiting.popleft()
        return trial, self._play(trial)
