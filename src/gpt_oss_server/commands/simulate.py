"""`gpt-oss-server simulate`: play a workload on GPUs that need not be there.

Knows: its flags, what they ask for, where the results go. Does not know: how anything is simulated,
judged or drawn (see `simulate/`).
"""

from __future__ import annotations

import argparse
import platform
import shlex
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from gpt_oss_server import __version__
from gpt_oss_server.commands import simulate_inputs as inputs
from gpt_oss_server.commands.progress import Progress
from gpt_oss_server.errors import ConfigError

if TYPE_CHECKING:
    from gpt_oss_server.simulate.fleet.pools import Failure, Fleet
    from gpt_oss_server.simulate.results.runs import Draw, Played, Question
    from gpt_oss_server.simulate.workload.requests import Workload

SUMMARY = "Replay a workload on a fleet of GPUs that need not be there."
SAMPLES = 600
"""Looks at the fleet while requests come, where `--sample-every` does not say how often."""
LEAST_SAMPLE_EVERY_S = 0.05
"""However fast requests come, their answers take their time, during which looks go on."""
MOST_SAMPLES = 100_000
"""More than are ever drawn, and few enough to be held."""
LEAST_VIEW_AGE_S = 1e-6
_OUTPUTS = ("json", "html")

Arguments = Mapping[str, object]
Document = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Model, fleet, workload, policies, promises."""
    add = parser.add_argument
    inputs.add_model(parser)
    add("--gpu", help="type of GPU, or a .yaml file of one (default: h100, or the calibrated one)")
    add("--pools", default="1xtp1", metavar="POOLS", help="as 4xtp1+2xtp2 (default: 1xtp1)")
    inputs.add_workload(parser)
    add("--clients", type=int, metavar="N", help="closed loop: so many requests at any time")
    add(
        "--policy",
        action="append",
        default=[],
        metavar="NAME",
        help="earliest_completion (default), least_request, …; repeatable, or all",
    )
    inputs.add_promises(parser)
    inputs.add_engine(parser)
    add(
        "--fail",
        action="append",
        default=[],
        metavar="REPLICA@AT[+FOR]",
        help="replica 0, 1, … dies at a second, for good or so many seconds; repeatable",
    )
    add(
        "--view-age",
        type=float,
        default=0.0,
        metavar="S",
        help="replicas report to the dispatcher every so many seconds (default: 0, always known)",
    )
    add(
        "--hindsight",
        action="store_true",
        help="also the best of all policies that know every answer's length, chosen afterwards",
    )
    add("--sweep", action="store_true", help="find the largest load that each policy bears")
    add("--seeds", type=int, default=1, metavar="K", help="mean and interval over K draws")
    add("--sample-every", type=float, metavar="S", help="seconds between looks at the fleet")
    add("--json", metavar="FILE", help="write inputs and figures there (-: to stdout, no table)")
    add("--html", metavar="FILE", help="write them as a page with plots (-: to stdout, no table)")


def run(arguments: Arguments) -> int:
    """0 when the simulation ran, whatever came of it.

    Raises:
        StartupError: a file cannot be read or written, or the model does not fit.
        ConfigError: an unknown name, or an impossible setting.
    """
    from gpt_oss_server.simulate.results.runs import hindsight, played

    to_stdout = [name for name in _OUTPUTS if arguments[name] == "-"]
    if len(to_stdout) > 1:
        raise ConfigError("only one of --json and --html can go to stdout")
    inputs.check_writable(arguments, *_OUTPUTS)
    model = inputs.simulated_model(arguments)
    question = _question(arguments, inputs.fleet(arguments, model))
    document = _document(arguments, model.name, question)
    with closing(Progress()) as progress:
        rows = [played(question, name, progress) for name in question.policies]
        best_per_s = hindsight(question, progress) if arguments["hindsight"] else None
    document["policies"] = {row.name: row.figures for row in rows}
    document["hindsight_goodput_per_s"] = best_per_s
    if not to_stdout:
        _print(question, rows, inputs.remarks(arguments), best_per_s)
    inputs.write_json(arguments["json"], document)
    if arguments["html"] is not None:
        from gpt_oss_server.simulate.html.page import page

        inputs.write_text(arguments["html"], page(document))
    return 0


def _question(arguments: Arguments, fleet: Fleet) -> Question:
    """All flags checked, before any work."""
    from gpt_oss_server.routing.policies import POLICIES
    from gpt_oss_server.simulate.results.runs import Draw, Question

    first = Draw(inputs.seed(arguments), inputs.workload(arguments))
    names = inputs.names(arguments["policy"]) or ["earliest_completion"]
    made = _is_made(arguments)
    question = Question(
        fleet=fleet,
        slo=inputs.promises(arguments),
        first=first,
        policies=tuple(POLICIES) if names == ["all"] else tuple(dict.fromkeys(names)),
        failures=_failures(arguments, fleet),
        clients=_clients(arguments),
        sample_every_s=_sample_every_s(arguments, first.workload),
        view_age_s=_view_age_s(arguments),
        sweep=bool(arguments["sweep"]),
        draws=_draws(arguments, first, made),
        independent=made,
    )
    for name in question.policies:
        question.policy(name, first.seed)
    return question


def _failures(arguments: Arguments, fleet: Fleet) -> tuple[Failure, ...]:
    from gpt_oss_server.simulate.fleet.notation import parse_failure
    from gpt_oss_server.simulate.fleet.pools import interruptions

    failures = tuple(parse_failure(one) for one in inputs.names(arguments["fail"]))
    interruptions(failures, sum(pool.count for pool in fleet.pools))
    return failures


def _clients(arguments: Arguments) -> int | None:
    clients = inputs.optional_integer(arguments, "clients")
    if clients is not None and clients < 1:
        raise ConfigError(f"--clients must be at least 1, not {clients}")
    if clients is not None and arguments["hindsight"]:
        raise ConfigError("--hindsight compares what comes at the same moments: not with --clients")
    if clients is not None and arguments["sweep"]:
        raise ConfigError("--sweep varies how fast requests come; with --clients that is not given")
    return clients


def _view_age_s(arguments: Arguments) -> float:
    age_s = inputs.number(arguments, "view_age")
    if not (age_s == 0 or age_s >= LEAST_VIEW_AGE_S):
        raise ConfigError(f"--view-age must be 0 or at least {LEAST_VIEW_AGE_S:g}, not {age_s:g}")
    return age_s


def _sample_every_s(arguments: Arguments, workload: Workload) -> float:
    given = inputs.optional_number(arguments, "sample_every")
    if given is None:
        return max(workload.duration_s / SAMPLES, LEAST_SAMPLE_EVERY_S)
    if not given > 0:
        raise ConfigError(f"--sample-every must be above 0, not {given:g}")
    if workload.duration_s / given > MOST_SAMPLES:
        raise ConfigError(
            f"--sample-every {given:g}: more than {MOST_SAMPLES} looks at the fleet in "
            f"{workload.duration_s:g} s"
        )
    return given


def _draws(arguments: Arguments, first: Draw, made: bool) -> tuple[Draw, ...]:
    """Those over which figures are averaged: none for a single one. A mix is made anew with the
    seeds that follow; of a record, which came once, variants are drawn."""
    from gpt_oss_server.simulate.results.confidence import resampled
    from gpt_oss_server.simulate.results.runs import Draw

    count = inputs.draws(arguments)
    if count == 1:
        return ()
    if not made and not first.workload.duration_s > 0:
        raise ConfigError(
            f"--seeds: all requests of {first.workload.name} come at one moment: it has no variants"
        )
    seeds = range(first.seed, first.seed + count)
    if made:
        return tuple(
            Draw(seed, inputs.workload({**arguments, "seed": seed})) if seed > first.seed else first
            for seed in seeds
        )
    return tuple(Draw(seed, resampled(first.workload, seed)) for seed in seeds)


def _is_made(arguments: Arguments) -> bool:
    from gpt_oss_server.simulate.workload.made import MIXES

    return str(arguments["workload"]) in MIXES


def _document(arguments: Arguments, model_name: str, question: Question) -> Document:
    """All inputs, so that a stranger can repeat the run; no results yet."""
    import numpy as np

    from gpt_oss_server.simulate.results.report import SCHEMA, fleet_json, slo_json
    from gpt_oss_server.simulate.workload.facts import workload_facts

    given = {name: value for name, value in arguments.items() if name not in _OUTPUTS}
    return {
        "schema": SCHEMA,
        "command": command_line(given),
        "versions": {
            "gpt-oss-server": __version__,
            "Python": platform.python_version(),
            "numpy": np.__version__,
        },
        "inputs": {
            **given,
            "model_name": model_name,
            "fleet": fleet_json(question.fleet, question.failures),
            "calibrated": _calibrated(arguments),
            "sample_every_s": question.sample_every_s,
            "slo": slo_json(question.slo),
        },
        "workload": workload_facts(question.first.workload),
    }


def _calibrated(arguments: Arguments) -> Document | None:
    """Which calibration was used; what it found is beside each pool. Its server is not named."""
    measured = inputs.calibration(arguments)
    if measured is None:
        return None
    remarks = inputs.remarks(arguments)
    return {"made_at": measured.made_at, "model": measured.model, "remarks": remarks}


def command_line(given: Arguments) -> str:
    """What to type to get the same: the flags that differ from their defaults."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    defaults = vars(parser.parse_args([]))
    words = ["gpt-oss-server", "simulate"]
    for name, value in given.items():
        flag = "--" + name.replace("_", "-")
        if value == defaults.get(name):
            continue
        if isinstance(value, list):
            words += [word for one in value for word in (flag, str(one))]
        else:
            words += [flag] if value is True else [flag, str(value)]
    return shlex.join(words)


def _print(
    question: Question,
    rows: Sequence[Played],
    remarks: Sequence[str],
    hindsight_per_s: float | None,
) -> None:
    from gpt_oss_server.simulate.results.number_text import per_second
    from gpt_oss_server.simulate.results.report import repeats_table, table

    workload = question.first.workload
    pace = f"{workload.requests_per_s:.2f}/s"
    if question.clients is not None:
        pace = f"{question.clients} at a time" if question.clients > 1 else "one at a time"
    lines = [
        f"{question.fleet.name} ({question.fleet.gpus} GPUs), {workload.name}: "
        f"{len(workload.requests)} requests in {workload.duration_s:.0f} s, {pace}"
    ]
    lines += [f"  input: {line}" for line in workload.problems.lines()]
    lines += [f"  calibration: {remark}" for remark in remarks]
    lines += table([row[:3] for row in rows])
    for row in rows:
        if "capacity_per_s" in row.figures:
            least = "at least " if row.figures["sweep"]["endless"] else ""
            borne = per_second(row.figures["capacity_per_s"])
            lines.append(f"{row.name}: bears {least}{borne}")
    if hindsight_per_s is not None:
        best = f"goodput {per_second(hindsight_per_s)}"
        lines.append(f"the best in hindsight, knowing every answer's length: {best}")
    if question.draws:
        lines += repeats_table({row.name: row.figures["repeats"] for row in rows})
    inputs.write_text("-", "\n".join([*lines, ""]))
