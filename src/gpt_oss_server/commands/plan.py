"""`gpt-oss-server plan`: from a workload and a number of GPUs to a layout, with the evidence.

Knows: its flags, what is searched and in which order, how long it may take. Does not know: how
anything is simulated, searched, priced or worded (see `simulate/`).
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import TYPE_CHECKING

from gpt_oss_server.commands import simulate_inputs as inputs
from gpt_oss_server.commands.progress import Progress
from gpt_oss_server.errors import ConfigError, StartupError

if TYPE_CHECKING:
    from gpt_oss_server.simulate.cost.layout import EngineSettings, Replica, Shape
    from gpt_oss_server.simulate.plan.fleet_file import Start
    from gpt_oss_server.simulate.plan.found import Standing
    from gpt_oss_server.simulate.plan.inventory import Fitting, Inventory
    from gpt_oss_server.simulate.plan.planning import Question
    from gpt_oss_server.simulate.plan.report import Plan
    from gpt_oss_server.simulate.plan.traffic import Source
    from gpt_oss_server.simulate.plan.trials import Candidate, Runner

SUMMARY = "Find the layout and policy that serve a workload best on some GPUs."
BUDGET_S = 90.0
CLOSER_REQUESTS = 100
"""Of a mix, the least that are worth looking at closer."""
SEEDS = 5
MOST_PROCESSES, MOST_JOBS = 8, 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Model, GPUs, workload, promises, engine; prices; how long to search."""
    add = parser.add_argument
    inputs.add_model(parser)
    add("--gpus", required=True, metavar="N[@TYPE]", help="as 8@h100 or 4@h100+4@l40s")
    add("--machine-gpus", type=int, default=8, help="GPUs of one machine (default: 8)")
    add(
        "--engine",
        choices=("own", "vllm"),
        default="own",
        help="what serves: this server, which reserves KV before its engine, or vLLM, whose "
        "requests queue in the engine (default: own)",
    )
    add(
        "--workload",
        default="mixed",
        metavar="FILE|MIX",
        help=f"a trace or log (CSV, JSON lines, parquet), or {inputs.MIX_NAMES} (default: mixed)",
    )
    add("--rate", type=float, help="requests per second that are expected (default: a log's own)")
    add("--load", type=float, default=1.0, help="or so many times a log's own (default: 1)")
    add("--seed", type=int, default=0, help="of mixes, draws and random policies (default: 0)")
    inputs.add_promises(parser)
    inputs.add_engine(parser)
    parser.set_defaults(prefill_order=None)
    add(
        "--policy",
        action="append",
        default=[],
        metavar="NAME",
        help="only these; repeatable (default: all but random and power_of_two; all: those too)",
    )
    add("--current", metavar="POOLS[/POLICY]", help="what runs today, as 8xtp1/round_robin")
    add(
        "--price",
        metavar="FILE|TYPE=PRICE,…|none",
        help="per GPU-hour, as h100=2.5,l40s=0.9 or EUR:h100=2.3 (default: a packaged list)",
    )
    add("--seeds", type=int, default=SEEDS, help=f"draws of the workload (default: {SEEDS})")
    add(
        "--budget-s",
        type=float,
        default=BUDGET_S,
        help=f"seconds to search, on two cores (default: {BUDGET_S:g})",
    )
    add("--jobs", type=int, help="processes (default: as many as CPUs, at most 8)")
    add("--yaml", metavar="FILE", help="write the fleet's description there (-: to stdout only)")
    add("--json", metavar="FILE", help="write inputs and figures there (-: to stdout only)")


def run(arguments: Mapping[str, object]) -> int:
    """0 when a layout was found.

    Raises:
        StartupError: a file cannot be read or written, or the model does not fit anywhere.
        ConfigError: an unknown name, an impossible setting, promises that nothing can keep.
    """
    from gpt_oss_server.commands.trial_processes import ProcessRunner
    from gpt_oss_server.simulate.plan.planning import carry_out, prepare
    from gpt_oss_server.simulate.plan.trials import LocalRunner, Player

    began_s = time.monotonic()
    if arguments["yaml"] == "-" and arguments["json"] == "-":
        raise ConfigError("only one of --yaml and --json can go to stdout")
    inputs.check_writable(arguments, "yaml", "json")
    question, processes = _question(arguments), _processes(arguments)
    work = prepare(question, _source(arguments))
    player = Player(work.traffics.by_name, question.slo, question.seed)
    with closing(Progress()) as progress, ExitStack() as stack:
        progress.begin("searching")
        runner: Runner = LocalRunner(player.play)
        if processes > 1:
            runner = stack.enter_context(ProcessRunner(player, processes))
        limit_s = round(question.budget_s)

        def elapsed_s() -> float:
            return time.monotonic() - began_s

        plan = carry_out(
            question,
            work,
            runner,
            elapsed_s=elapsed_s,
            tell=lambda runs: progress.tell(min(round(elapsed_s()), limit_s), limit_s),
            processes=processes,
        )
    _write(arguments, question, plan, work.traffics.factor)
    return 0


def _question(arguments: Mapping[str, object]) -> Question:
    from gpt_oss_server.simulate.plan.inventory import fitting, parse_gpus
    from gpt_oss_server.simulate.plan.money import read_prices
    from gpt_oss_server.simulate.plan.planning import Question
    from gpt_oss_server.simulate.plan.rules import check_names

    inventory = parse_gpus(
        str(arguments["gpus"]),
        inputs.default_gpu(arguments),
        machine_gpus=inputs.integer(arguments, "machine_gpus"),
    )
    price = arguments["price"]
    prices = read_prices(None if price is None else str(price))
    slo = inputs.promises(arguments)
    policies = _policies(inputs.names(arguments["policy"]))
    check_names(policies)
    draws, budget_s = inputs.draws(arguments), inputs.number(arguments, "budget_s")
    if not budget_s > 0:
        raise ConfigError(f"--budget-s must be above 0, not {budget_s:g}")
    model = inputs.simulated_model(arguments)
    lay_out = _lay_out(arguments, model)
    found = fitting(inventory, lay_out)
    if not found.replicas:
        raise StartupError(_nothing_fits(model.name, found))
    return Question(
        model=model.name,
        inventory=inventory,
        fitting=found,
        slo=slo,
        policies=policies,
        prices=prices,
        current=_current(arguments, inventory, lay_out),
        draws=draws - 1,
        seed=inputs.seed(arguments),
        budget_s=budget_s,
    )


def _source(arguments: Mapping[str, object]) -> Source:
    from gpt_oss_server.simulate.plan.traffic import Source
    from gpt_oss_server.simulate.workload.made import MIXES

    name = str(arguments["workload"])
    rate, load = inputs.optional_number(arguments, "rate"), inputs.number(arguments, "load")
    if load > 0 and load != 1.0 and (name in MIXES or rate is not None):
        raise ConfigError(
            "--load is a multiple of a record's own pace, for neither a mix nor beside --rate"
        )
    if name in MIXES:
        return Source(mix=name, rate=rate, load=load)
    record = inputs.workload({**arguments, "load": 1.0})
    return Source(record=record, rate=rate, load=load)


def _policies(named: list[str]) -> tuple[str, ...]:
    from gpt_oss_server.routing.policies import POLICIES
    from gpt_oss_server.simulate.plan.rules import PREFERRED

    if named == ["all"]:
        return tuple(dict.fromkeys((*PREFERRED, *POLICIES)))
    return tuple(dict.fromkeys(named)) or PREFERRED


def _processes(arguments: Mapping[str, object]) -> int:
    given = inputs.optional_integer(arguments, "jobs")
    if given is None:
        return max(1, min(MOST_PROCESSES, _cores()))
    if given < 1:
        raise ConfigError(f"--jobs must be at least 1, not {given}")
    if given > MOST_JOBS:
        raise ConfigError(f"--jobs must be at most {MOST_JOBS}, not {given}")
    return given


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinity
        return os.cpu_count() or 1


def _lay_out(
    arguments: Mapping[str, object], model: inputs.Simulated
) -> Callable[[Shape], Replica]:
    """How a shape becomes a replica of what serves. This server's ranks hold quantized weights
    other than gpt-oss's as plain numbers (docs/gpu-modes.md); vLLM's requests queue in the engine,
    in order of arrival."""
    from gpt_oss_server.doctor.plan import stored_form, widened
    from gpt_oss_server.memory.errors import ImpossibleSplit
    from gpt_oss_server.memory.weights import weights_of
    from gpt_oss_server.simulate.plan.fleet_file import mode_of

    engine = arguments["engine"]
    _check_engine(arguments)
    order = arguments["prefill_order"] or ("fcfs" if engine == "vllm" else "shortest")
    settings: EngineSettings = inputs.engine_settings({**arguments, "prefill_order": order})
    if engine == "vllm":
        settings = replace(settings, admission="engine")
    lay_out = inputs.lay_out_of(arguments)
    plain = model.cost
    if engine == "own" and stored_form(model.config) is not None:
        weights = weights_of(model.config, dtype="bfloat16", dequantized=True)
        plain = replace(model.cost, weights=weights)

    def laid(shape: Shape) -> Replica:
        mode = mode_of(shape)
        if mode is None and engine == "own":
            raise ImpossibleSplit("this server's modes are tensor or pipeline, not both at once")
        cost = plain if widened(model.config, mode or "tensor") else model.cost
        return lay_out(model.config, cost, shape, settings)

    return laid


def _check_engine(arguments: Mapping[str, object]) -> None:
    """That no flag asks for what the replicas that are started will not do. Raises ConfigError."""
    from gpt_oss_server.simulate.calibrate.served import OWN

    if arguments["engine"] == "own" and arguments["admission"] == "engine":
        raise ConfigError(
            "--admission engine: this server reserves KV before its engine; --engine vllm is for "
            "replicas that do not"
        )
    measured = inputs.calibration(arguments)
    if measured is not None and (measured.served.server == OWN) != (arguments["engine"] == "own"):
        raise ConfigError(
            f"--engine {arguments['engine']}: {arguments['calibration']} was measured on another "
            f"server ({measured.served.server})"
        )
    for name in ("prefill_order", "max_waiting", "max_wait_s"):
        value = arguments[name]
        if arguments["engine"] == "vllm" and value not in (None, "fcfs"):
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} {value}: vLLM takes all that come, in order of arrival")


def _nothing_fits(name: str, found: Fitting) -> str:
    lacking = [one for one in found.refused if one.missing_bytes is not None]
    if not lacking:
        return f"{name} cannot be split over these GPUs: {found.refused[0].reason}"
    nearest = min(lacking, key=lambda one: one.missing_bytes or 0)
    return (
        f"{name} fits none of the layouts on these GPUs; the nearest, {nearest.shape.name}, lacks "
        f"{nearest.missing_bytes} bytes on each GPU"
    )


def _current(
    arguments: Mapping[str, object], inventory: Inventory, lay_out: Callable[[Shape], Replica]
) -> Candidate | None:
    from gpt_oss_server.simulate.fleet.notation import parse_pools
    from gpt_oss_server.simulate.fleet.pools import Fleet, Pool
    from gpt_oss_server.simulate.plan.rules import Rule, check_names
    from gpt_oss_server.simulate.plan.trials import Candidate

    given = arguments["current"]
    if given is None:
        return None
    text, _, name = str(given).partition("/")
    shapes = parse_pools(text, inventory.stock[0][0], "--current")
    check_names([name] if name else [])
    pools = tuple(Pool(lay_out(shape), count) for shape, count in shapes)
    return Candidate(Fleet(pools), Rule(name or "least_request"))


def _write(arguments: Mapping[str, object], question: Question, plan: Plan, factor: float) -> None:
    from gpt_oss_server.hub import ALIASES
    from gpt_oss_server.simulate.plan.fleet_file import fleet_document, fleet_yaml, starts
    from gpt_oss_server.simulate.plan.json_document import as_json
    from gpt_oss_server.simulate.plan.report import lines

    chosen = plan.found.proposed
    fleet, rule = chosen.candidate.fleet, chosen.candidate.rule
    model, engine = inputs.model_name(arguments), str(arguments["engine"])
    named = ALIASES.get(model, model) if engine == "vllm" else model
    command = _command(arguments)
    comments = [
        f"Written by: {command}",
        f"Bears {chosen.per_s:.2f} requests/s of {plan.workload}, as simulated.",
    ]
    document = fleet_document(named, fleet, rule, str(arguments["slo"]), engine)
    text = fleet_yaml(document, comments)
    begun = starts(named, fleet, question.inventory.machine_gpus, engine)
    if arguments["yaml"] != "-" and arguments["json"] != "-":
        remarks = [f"  Calibration: {remark}." for remark in inputs.remarks(arguments)]
        made = [*lines(plan), *remarks, "", "Fleet:", *(f"  {line}" for line in text.splitlines())]
        made += ["", "Start it:"]
        machines = list(dict.fromkeys(start.machine for start in begun))
        for machine in machines:
            made += [f"  # {machine}"] if len(machines) > 1 else []
            made += [f"  {start.command} &" for start in begun if start.machine == machine]
        made += ["", *_in_front(plan, begun, len(machines)), ""]
        made += ["Look closer:", f"  {_closer(arguments, chosen, factor)}"]
        if rule.bounds:
            made.append(f"  (there {rule.name} has the thresholds that it ships with)")
        inputs.write_text("-", "\n".join([*made, ""]))
    if arguments["yaml"] is not None:
        inputs.write_text(arguments["yaml"], text)
    if arguments["json"] is not None:
        inputs.write_json(
            arguments["json"],
            {
                "command": command,
                "inputs": dict(arguments),
                **as_json(plan),
                "fleet": document,
                "start": [start.command for start in begun],
            },
        )


def _in_front(plan: Plan, begun: Sequence[Start], machines: int) -> list[str]:
    """What sends requests to the replicas: there is no dispatcher of our own yet."""
    from gpt_oss_server.simulate.plan.fleet_file import balancer_lines

    rule = plan.found.proposed.candidate.rule
    if len(begun) == 1:
        return ["One replica: nothing is needed in front of it."]
    made = []
    if not rule.plain:
        made += [
            f"In front: {rule.name} needs a dispatcher that knows the replicas' queues; this",
            "server has none for several replicas yet. Until then any balancer by fewest requests:",
        ]
        plain = plan.found.without_dispatcher
        if plain is not None and plain.candidate.rule.name == "least_request":
            layout = plan.layout(plain.candidate.fleet)
            made.append(f"it bears at most {plain.per_s:.2f} requests/s, on {layout}. With nginx:")
    else:
        made.append(f"In front: any balancer with {rule.name}. With nginx:")
    if machines > 1:
        return [*made, "  (one server line per replica, with its machine's address)"]
    lines = balancer_lines([start.port for start in begun], rule.name)
    return [*made, *(f"  {line}" for line in lines)]


def _closer(arguments: Mapping[str, object], chosen: Standing, factor: float) -> str:
    """How `simulate` plays the same workload on what was chosen: at the pace that was asked for, a
    mix without one at what is borne."""
    from gpt_oss_server.commands.simulate import command_line
    from gpt_oss_server.simulate.cost.gpu_types import gpu_type
    from gpt_oss_server.simulate.plan.fleet_file import pools_text
    from gpt_oss_server.simulate.workload.made import MIXES

    fleet, rule = chosen.candidate.fleet, chosen.candidate.rule
    files = re.findall(r"@([^+\s]+\.ya?ml)", str(arguments["gpus"]))
    settings = fleet.pools[0].replica.settings
    kept = ("model", "calibration", "workload", "slo", "seed")
    given: dict[str, object] = {name: arguments[name] for name in kept}
    given["pools"] = pools_text(fleet, {gpu_type(path).name: path for path in files})
    given["policy"] = [rule.name]
    if arguments["workload"] in MIXES:
        rate = inputs.optional_number(arguments, "rate") or round(chosen.per_s, 2)
        lasts_s = max(inputs.DURATION_S, round(CLOSER_REQUESTS / rate))
        given |= {"rate": rate, "duration": lasts_s}
    else:
        given["load"] = factor
    names = ("max_num_seqs", "max_batch_tokens", "prefill_order", "admission")
    given |= {name: getattr(settings, name) for name in (*names, "max_waiting", "max_wait_s")}
    return command_line(given)


def _command(arguments: Mapping[str, object]) -> str:
    """What to type to get the same: the flags that differ from their defaults."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    defaults = {action.dest: action.default for action in parser._actions}
    words = ["gpt-oss-server", "plan"]
    for name, value in arguments.items():
        if value == defaults.get(name) or name in ("yaml", "json"):
            continue
        flag = "--" + name.replace("_", "-")
        many = value if isinstance(value, list) else [value]
        words += [word for one in many for word in (flag, str(one))]
    return shlex.join(words)
