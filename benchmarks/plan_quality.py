"""Is the layout that `plan` proposes the best there is? Its choice against an exhaustive search.

    python benchmarks/plan_quality.py TRACES --cache plan.json [--cases azure mixed] [--minutes 9]
    python benchmarks/plan_quality.py TRACES --cache plan.json --out benchmarks/results

For each case (`CASES`: a trace or a built-in mix, a model, GPUs, an engine) the proposal is made as
`gpt-oss-server plan` makes it. Then the capacity of *every* layout under *every* policy and
threshold is searched (of pipelines, which `plan` leaves out, under the two likeliest), on the
stretch that the plan was made on and on one that it has not seen: of a trace another stretch of the
same length, of a mix another seed. The target: the proposal bears at least 0.97 times the best.

The best of a hundred noisy figures is high by luck: a knee is where some burst first breaks a
promise, and another draw has other bursts. So beside the best on each stretch, the search's winner
on the first is judged on the second, as the proposal is: that is what knowing the exhaustive answer
beforehand would have been worth.

All cases take some ten minutes of two cores. They can be made in parts: each run goes on where the
last one ended (`--cache`, several files are merged), begins nothing after `--minutes`, and says
what is left. With `--out` nothing is played: what the cache has is judged and written. Exit status
2 where the target is missed, 1 while something is left to play.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from gpt_oss_server.commands.trial_processes import ProcessRunner
from gpt_oss_server.doctor.published import PUBLISHED
from gpt_oss_server.simulate.cost.layout import EngineSettings, Replica, Shape, lay_out
from gpt_oss_server.simulate.cost.roofline import Efficiency, model_cost
from gpt_oss_server.simulate.plan.inventory import Fitting, fitting, fleets, parse_gpus
from gpt_oss_server.simulate.plan.knee import GRID, Explorer, Quest, gated, knee, step_of
from gpt_oss_server.simulate.plan.planning import Question, Work, carry_out, prepare
from gpt_oss_server.simulate.plan.rules import PREFERRED, Rule, rules_for
from gpt_oss_server.simulate.plan.traffic import Source
from gpt_oss_server.simulate.plan.trials import Candidate, Player
from gpt_oss_server.simulate.results.slo import Slo
from gpt_oss_server.simulate.workload.made import MIXES, make_workload
from gpt_oss_server.simulate.workload.requests import Request, Workload
from promises import RESULTS, Promise, exit_status, keep, table
from sim_inputs import machine, trace

TARGET = 0.97
STRETCHES = ("made on", "another")
PLAN_S = 3600.0
"""Wall-clock limit of a plan here: nothing may be cut, however busy the machine is."""
BUDGET_S = 45.0
"""Half of what `plan` has by default: what is played is half as long."""
FAR_BELOW = 5
"""Candidates that do not bear so many steps less than the best so far are left at that."""


@dataclass(frozen=True)
class Case:
    """What is planned. `later` is where the other stretch of a trace begins, in seconds."""

    workload: str
    model: str
    gpus: str
    engine: str
    later: float = 0.0


CASES: Mapping[str, Case] = {
    "mooncake": Case("mooncake", "openai/gpt-oss-120b", "8@h100", "own", 1800.0),
    "azure": Case("azure", "openai/gpt-oss-120b", "8@h100", "own", 2100.0),
    "servegen": Case("servegen", "openai/gpt-oss-120b", "8@h100", "own", 15_000.0),
    "mixed": Case("mixed", "openai/gpt-oss-120b", "8@h100", "vllm"),
    "agents": Case("agents", "openai/gpt-oss-120b", "8@h100", "vllm"),
    "azure, L40S": Case("azure", "openai/gpt-oss-20b", "4@l40s", "own", 2100.0),
    "mixed, L40S": Case("mixed", "openai/gpt-oss-20b", "4@l40s", "own"),
}


def main() -> int:
    options = _options()
    known: dict[str, Any] = {}
    for path in options.cache:
        known |= json.loads(path.read_text()) if path.exists() else {}
    left: list[str] = []
    if options.out is None:
        end_s = time.monotonic() + 60 * options.minutes
        for name in options.cases:
            left += _case(options, name, known.setdefault(name, {}), known, end_s)
    promises = _judged(known)
    text = "\n".join(["# What plan proposes against the best", "", machine(), "", *_tables(known)])
    text += "\n".join(["", "", *table(promises), ""])
    print(text)
    if left:
        print(f"left to play: {'; '.join(left)}", file=sys.stderr)
        return 1
    if options.out is not None:
        keep(options.out, datetime.now(UTC).isoformat(), "plan", text, known)
    return exit_status(promises, quick=False)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the traces are")
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=list(CASES))
    parser.add_argument(
        "--cache",
        type=Path,
        nargs="+",
        required=True,
        help="what was found so far; the first grows",
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--minutes", type=float, default=9.0, help="begin nothing after so long")
    parser.add_argument("--out", type=Path, default=None, help=f"write a result (as {RESULTS})")
    return parser.parse_args()


def _case(
    options: argparse.Namespace, name: str, entry: dict[str, Any], known: Any, end_s: float
) -> list[str]:
    """Play what is not known yet of one case, until the time is over; returns what is left."""
    case = CASES[name]
    record = None if case.workload in MIXES else trace(options.folder, case.workload)
    question = _question(case)
    source = Source(record=record) if record is not None else Source(mix=case.workload)
    work = prepare(question, source)
    if "plan" not in entry:
        if time.monotonic() > end_s:
            return [f"{name}: all"]
        entry["plan"] = _planned(question, work, options.jobs)
        _save(options.cache[0], known)
    played = (work.traffics.by_name["base"], _another(case, record, work))
    left = []
    for stretch, workload in zip(STRETCHES, played, strict=True):
        entry.setdefault(stretch, {"requests": len(workload.requests), "bears": {}})
        missing = _exhaust(question, work, workload, entry, stretch, options.jobs, end_s)
        _save(options.cache[0], known)
        if missing:
            left.append(f"{name}, {stretch}: {missing} candidates")
    return left


def _question(case: Case) -> Question:
    inventory = parse_gpus(case.gpus)
    found = _fitting(case)
    return Question(
        model=case.model,
        inventory=inventory,
        fitting=found,
        slo=Slo(),
        policies=PREFERRED,
        prices=None,
        current=None,
        draws=4,
        seed=0,
        budget_s=BUDGET_S,
    )


def _fitting(case: Case) -> Fitting:
    """As `gpt-oss-server plan` lays replicas out."""
    config = PUBLISHED[case.model]
    cost = model_cost(config)
    settings = EngineSettings()
    if case.engine == "vllm":
        settings = EngineSettings(prefill_order="fcfs", admission="engine")

    def laid(shape: Shape) -> Replica:
        return lay_out(config, cost, shape, settings, Efficiency())

    return fitting(parse_gpus(case.gpus), laid)


def _planned(question: Question, work: Work, jobs: int) -> dict[str, Any]:
    """What `plan` proposes, without a time limit, and how long it took."""
    began_s = time.monotonic()
    player = Player(work.traffics.by_name, question.slo, question.seed)
    patient = replace(question, budget_s=PLAN_S)
    with ProcessRunner(player, jobs) as runner:
        plan = carry_out(
            patient,
            work,
            runner,
            elapsed_s=lambda: time.monotonic() - began_s,
            tell=lambda runs: None,
            processes=jobs,
        )
    found = plan.found
    return {
        "proposed": found.proposed.candidate.key,
        "best": found.best.candidate.key,
        "bears": found.proposed.per_s,
        "uniform_is_best": len(found.proposed.candidate.fleet.pools) == 1,
        "runs": found.runs,
        "seconds": round(time.monotonic() - began_s),
    }


def _another(case: Case, record: Workload | None, work: Work) -> Workload:
    """As long as what the plan was made on, and not that."""
    base = work.traffics.by_name["base"]
    if record is None:
        rate = base.requests_per_s
        return make_workload(
            case.workload, requests_per_s=rate, duration_s=base.duration_s, seed=1000
        )
    later = record.between(case.later, record.duration_s + 1.0)
    return later.first(len(base.requests))


def _exhaust(
    question: Question,
    work: Work,
    workload: Workload,
    entry: dict[str, Any],
    stretch: str,
    jobs: int,
    end_s: float,
) -> int:
    """Fill in what each candidate bears, in requests/s (negative: less than that); returns how
    many are left."""
    bears: dict[str, float] = entry[stretch]["bears"]
    candidates = list(_all(question, work))
    mine = entry["plan"]["proposed"]
    guess, rate = work.rough.fleet_rate, workload.requests_per_s
    # The proposal first: most of the others are then seen to bear less in a single trial.
    candidates.sort(
        key=lambda one: (one.key != mine, one.rule != Rule(PREFERRED[0]), -guess(one.fleet))
    )
    missing = [one for one in candidates if one.key not in bears]
    player = Player({"all": workload}, question.slo, question.seed)
    if not missing or time.monotonic() > end_s:
        return len(missing)
    with ProcessRunner(player, jobs) as runner:
        explorer = Explorer(runner, spent=lambda: 1.0 if time.monotonic() > end_s else 0.0)
        while missing and time.monotonic() < end_s:
            several = 8 if bears else 1
            part, missing = missing[:several], missing[several:]
            best = max(bears.values(), default=0.0)
            quests = []
            for one in part:
                begin = step_of(guess(one.fleet) / rate)
                if best > 0:
                    gate = step_of(best / rate) - FAR_BELOW
                    steps = gated(gate, min(max(begin, gate), gate + FAR_BELOW))
                else:
                    steps = knee(begin)
                quests.append(Quest(one, "all", steps))
            for (key, _), found in explorer.explore(quests).items():
                far = -best / GRID**FAR_BELOW
                bears[key] = found.verdict.requests_per_s if found is not None else far
    return sum(one.key not in bears for one in candidates)


def _all(question: Question, work: Work) -> Iterator[Candidate]:
    """Every layout with every policy and threshold; those with pipelines, which `plan` left out,
    with the two likeliest."""
    requests: list[Request] = list(work.traffics.by_name["base"].requests[::5])
    replicas = question.fitting.replicas

    def work_s(request: Request) -> float:
        return work.rough.work_s(replicas[0], request)

    for fleet in fleets(question.inventory, replicas):
        rules = work.rules.get(fleet.name)
        if rules is None:
            rules = rules_for(fleet, PREFERRED[:2], requests, work_s)
        for rule in rules:
            yield Candidate(fleet, rule)


def _save(path: Path, known: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")


def _ratio(entry: Mapping[str, Any], stretch: str) -> float | None:
    """What the proposal bears of the best."""
    bears = entry.get(stretch, {}).get("bears", {})
    mine = bears.get(entry["plan"]["proposed"], 0.0)
    best = max(bears.values(), default=0.0)
    return max(0.0, mine) / best if best > 0 else None


def _to_winner(entry: Mapping[str, Any]) -> float | None:
    """What the proposal bears of the first stretch's best, both on the other one. Of several that
    are best, the luckiest there; the proposal itself, where it is one of them."""
    first, other = (entry.get(stretch, {}).get("bears", {}) for stretch in STRETCHES)
    best = max(first.values(), default=0.0)
    winners = [key for key in first if first[key] == best and key in other]
    mine = entry["plan"]["proposed"]
    if mine in winners or not winners:
        return 1.0 if winners else None
    luckiest = max(abs(other[key]) for key in winners)
    return max(0.0, other.get(mine, 0.0)) / luckiest


def _judged(known: Mapping[str, Any]) -> list[Promise]:
    promises = []
    judged: list[tuple[str, Callable[[Mapping[str, Any]], float | None]]] = [
        ("the best on the stretch it was made on", lambda entry: _ratio(entry, STRETCHES[0])),
        ("the best on another one", lambda entry: _ratio(entry, STRETCHES[1])),
        ("the first stretch's best, on the other", _to_winner),
    ]
    for label, of in judged:
        ratios = {
            name: ratio
            for name, entry in known.items()
            if "plan" in entry and (ratio := of(entry)) is not None
        }
        if ratios:
            worst = min(ratios, key=lambda name: ratios[name])
            promises.append(
                Promise(
                    f"proposal over {label}, worst of {len(ratios)} ({worst})",
                    f"{ratios[worst]:.3f}; geometric mean {_mean(ratios.values()):.3f}",
                    f"≥ {TARGET}",
                    ratios[worst] >= TARGET,
                )
            )
    return promises


def _mean(ratios: Iterable[float]) -> float:
    return math.exp(fmean(math.log(max(ratio, 1e-3)) for ratio in ratios))


def _tables(known: Mapping[str, Any]) -> list[str]:
    lines = [
        "Requests per second; the exhaustive best of all candidates beside the proposal.",
        "",
        "| case | proposed | made on: proposal / best | another: proposal / best | best there "
        "| there / the first's best | candidates | plan's runs, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in known.items():
        if "plan" not in entry:
            continue
        plan = entry["plan"]
        cells = []
        for stretch in STRETCHES:
            bears = entry.get(stretch, {}).get("bears", {})
            best = max(bears.values(), default=0.0)
            ratio = _ratio(entry, stretch)
            mine = bears.get(plan["proposed"], 0.0)
            cells.append("–" if ratio is None else f"{mine:.2f} / {best:.2f} = {ratio:.3f}")
        other = entry.get("another", {}).get("bears", {})
        best_there = max(other, key=lambda key: other[key]) if other else "–"
        winner = _to_winner(entry)
        against = "–" if winner is None else f"{winner:.3f}"
        count = len(entry.get("made on", {}).get("bears", {}))
        lines.append(
            f"| {name} | {plan['proposed']} | {cells[0]} | {cells[1]} | {best_there} "
            f"| {against} | {count} | {plan['runs']}, {plan['seconds']} |"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
