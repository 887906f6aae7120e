"""A plan from a question: what is searched, for how long, and the figures at the workload's pace.

Knows: in which order guesses, traffics, the search and what follows it are made. Does not know:
flags, files, terminals; how any of these works. The clock and the runner are handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.simulate.cost.layout import Replica
from gpt_oss_server.simulate.fleet.pools import Fleet
from gpt_oss_server.simulate.plan.effort import effort
from gpt_oss_server.simulate.plan.fewest import Fewest, fewest
from gpt_oss_server.simulate.plan.found import Found
from gpt_oss_server.simulate.plan.inventory import Fitting, Inventory, fleets
from gpt_oss_server.simulate.plan.knee import Explorer
from gpt_oss_server.simulate.plan.money import Prices
from gpt_oss_server.simulate.plan.report import AtRate, Plan
from gpt_oss_server.simulate.plan.rough import Rough, sample
from gpt_oss_server.simulate.plan.rules import Rule, rules_for
from gpt_oss_server.simulate.plan.search import BASE, SHORTEST_S, Problem, search
from gpt_oss_server.simulate.plan.traffic import Source, Traffics, traffics
from gpt_oss_server.simulate.plan.trials import Candidate, Runner, Trial
from gpt_oss_server.simulate.results.slo import Slo
from gpt_oss_server.simulate.workload.requests import Request

MOST_FLEETS = 32
SEARCH_SHARE = 0.85
"""The share of the budget after which no further trial of the search is begun."""
NEAR = 0.7
"""A mix is made at this share of a guess of what is borne, so that loads lie around it: what
people read between two turns takes its own time."""
FEW_REQUESTS = 100
SETTLED = 3
"""A stretch should last so many times as long as the longest twentieth of answers takes."""


@dataclass(frozen=True)
class Question:
    """What is to be planned. `draws` beside the first one; `budget_s` is on `effort.CORES`."""

    model: str
    inventory: Inventory
    fitting: Fitting
    slo: Slo
    policies: tuple[str, ...]
    prices: Prices | None
    current: Candidate | None
    draws: int
    seed: int
    budget_s: float


@dataclass(frozen=True)
class Work:
    """What is searched: traffics, guesses, fleets with what is tried on each, the replicas that
    fleets are made of, and what was left out."""

    traffics: Traffics
    rough: Rough
    replicas: tuple[Replica, ...]
    fleets: tuple[Fleet, ...]
    rules: Mapping[str, list[Rule]]
    left_out: tuple[str, ...]


def prepare(question: Question, source: Source) -> Work:
    """Guess, choose what is searched, and how much of the workload is played.

    Raises ConfigError for promises that no replica can keep, or too few requests.
    """
    sampled = sample(source.glimpse(question.seed))
    rough = Rough(sampled, question.slo)
    _check_promises(question, rough, [one.request for one in sampled])
    replicas = rough.promising(question.fitting.replicas)
    found = list(fleets(question.inventory, replicas))
    found.sort(key=lambda fleet: (-rough.fleet_rate(fleet), fleet.name))
    kept = [f for place, f in enumerate(found) if place < MOST_FLEETS or len(f.pools) == 1]
    requests = [one.request for one in sampled]

    def work_s(request: Request) -> float:
        return rough.work_s(replicas[0], request)

    rules = {f.name: rules_for(f, question.policies, requests, work_s) for f in kept}
    near_per_s = NEAR * max(rough.fleet_rate(f) for f in kept)
    planned = effort(
        question.budget_s,
        [sum(pool.count for pool in f.pools) for f in kept],
        sum(len(tried) for tried in rules.values()) - len(kept),
        question.draws,
        settles_requests=SETTLED * near_per_s * _long_answer_s(question, requests),
        reserving=replicas[0].settings.admission == "reserve",
    )
    return Work(
        traffics=traffics(source, planned, work_s, near_per_s, question.draws, question.seed),
        rough=rough,
        replicas=replicas,
        fleets=tuple(sorted(kept, key=lambda f: (len(f.pools), f.name))),
        rules=rules,
        left_out=_left_out(question, replicas, len(found), len(kept)),
    )


def carry_out(
    question: Question,
    work: Work,
    runner: Runner,
    *,
    elapsed_s: Callable[[], float],
    tell: Callable[[int], None],
    processes: int,
) -> Plan:
    """Search, then play the workload at its own pace.

    Raises what `search` and trials raise.
    """

    def explorer(limit_s: float) -> Explorer:
        return Explorer(runner, spent=lambda: elapsed_s() / limit_s, tell=tell)

    played = work.traffics
    problem = Problem(
        fleets=work.fleets,
        rules=work.rules,
        rates=played.rates,
        spans_s={name: one.duration_s for name, one in played.by_name.items()},
        draws=played.draws,
        independent=played.independent,
        guess=work.rough.fleet_rate,
        current=question.current,
    )
    found = search(problem, explorer(SEARCH_SHARE * question.budget_s))
    after = explorer(question.budget_s)
    at_rate = _at_pace(question, work, found, after) if played.pace is not None else ()
    # Where all GPUs do not keep them, no part is said to: what is played there is less.
    kept = bool(at_rate) and at_rate[0].verdict.met
    least = _fewest(question, work, found, after) if kept else None
    return Plan(
        model=question.model,
        inventory=question.inventory,
        slo=question.slo,
        workload=played.title,
        played=played.played,
        found=found,
        refused=question.fitting.refused,
        notes=(*work.left_out, *played.notes, *_cautions(work, found)),
        prices=question.prices,
        current=question.current,
        pace=played.pace,
        at_rate=at_rate,
        fewest=least,
        wall_s=elapsed_s(),
        processes=processes,
    )


def _long_answer_s(question: Question, requests: list[Request]) -> float:
    """What the longest twentieth of answers takes at the least, at half the time that a token is
    promised in: about what it takes where a fleet is nearly full."""
    tokens = sorted(one.output_tokens for one in requests)[int(0.95 * len(requests))]
    return 0.5 * tokens * max(one.tpot_s for one in question.slo.classes)


def _check_promises(question: Question, rough: Rough, requests: Sequence[Request]) -> None:
    """Raises ConfigError where a class's promise cannot be kept even by an idle replica."""
    shares = [rough.keepable(replica) for replica in question.fitting.replicas]
    slo = question.slo
    longest = max(replica.longest_tokens for replica in question.fitting.replicas)
    for promise, share in zip(slo.classes, map(max, zip(*shares, strict=True)), strict=True):
        if share < slo.share:
            mine = [one for one in requests if slo.class_of(one.input_tokens) is promise]
            over = sum(one.input_tokens + one.output_tokens > longest for one in mine)
            held = f"; {over} of {len(mine)} that were looked at are longer than the {longest:,} "
            raise ConfigError(
                f"--slo: no layout keeps what class {promise.name} is promised (first token within "
                f"{promise.ttft_s:g} s, {promise.tpot_s:g} s a token): an idle replica would for "
                f"{100 * share:.1f} % of its requests, {100 * slo.share:g} % are asked for"
                + (held + "tokens that any replica holds" if over else "")
            )


def _left_out(
    question: Question, replicas: tuple[Replica, ...], found: int, kept: int
) -> tuple[str, ...]:
    made = []
    dropped = [one.shape.name for one in question.fitting.replicas if one not in replicas]
    if dropped:
        made.append(
            f"Not searched: {', '.join(dropped)}; by a rough guess tensor replicas of as many GPUs "
            "bear as much."
        )
    if kept < found:
        made.append(f"Of {found} layouts the {kept} likeliest, by a rough guess, were searched.")
    return tuple(made)


def _at_pace(
    question: Question, work: Work, found: Found, explorer: Explorer
) -> tuple[AtRate, ...]:
    """The proposal at the workload's pace, the best with a plain balancer, and what runs today."""
    plain = found.without_dispatcher
    shown = [found.proposed.candidate, plain.candidate if plain else None, question.current]
    played = work.traffics
    trials = [Trial(one, played.at_pace, played.factor) for one in shown if one is not None]
    return tuple(AtRate(trial.candidate, verdict) for trial, verdict in explorer.play(trials))


def _fewest(question: Question, work: Work, found: Found, explorer: Explorer) -> Fewest | None:
    best, rough, played = found.best, work.rough, work.traffics
    needed_per_s = played.factor * played.rates[BASE]
    if best.per_s < needed_per_s:
        return None
    # How far off the guess was for the best is about how far off it is for others.
    trust = best.per_s / rough.fleet_rate(best.candidate.fleet)
    prices = question.prices
    return fewest(
        question.inventory,
        work.replicas,
        best.candidate.rule,
        explorer,
        traffic=BASE,
        factor=played.factor,
        needed_per_s=needed_per_s,
        guess=lambda fleet: trust * rough.fleet_rate(fleet),
        price=(lambda part: None) if prices is None else prices.of_stock,
    )


def _cautions(work: Work, found: Found) -> list[str]:
    """Where the figures hang on too little."""
    base = found.proposed.base
    if base is None:
        return []
    made = []
    report, rate = base.verdict.report, base.verdict.requests_per_s
    lasts_s = len(work.traffics.by_name[BASE].requests) / rate
    slowest_s = max((one.e2e_s[1] for one in report.classes if one.e2e_s), default=0.0)
    if lasts_s < 2 * SHORTEST_S:
        made.append(
            f"Caution: what is played lasts only {lasts_s:.0f} s at that load: more may be borne."
        )
    if lasts_s < SETTLED * slowest_s:
        made.append(
            f"Caution: what is played lasts {lasts_s:.0f} s at that load, and one request in "
            f"twenty takes {slowest_s:.0f} s or more: a fleet may yet fill up. A larger "
            "--budget-s plays more."
        )
    made += [
        f"Caution: class {one.name} has only {one.requests} requests in what is played: its 95 % "
        "hang on a handful."
        for one in report.classes
        if 0 < one.requests < FEW_REQUESTS
    ]
    return made
