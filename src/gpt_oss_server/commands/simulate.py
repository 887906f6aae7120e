"""`gpt-oss-server simulate`: play a workload on GPUs that need not be there."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt_oss_server.errors import ConfigError, StartupError

SUMMARY = "Replay a workload on a fleet of GPUs that need not be there."
DEFAULT_SLO = "2048:2:0.05,inf:10:0.05"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Model, fleet, workload, policies, promises."""
    add = parser.add_argument
    add("--model", default="120b", help="20b, 120b, a hub id or a folder (default: 120b)")
    add("--gpu", default="h100", help="type of GPU, or a .yaml file of one (default: h100)")
    add("--pools", default="1xtp1", metavar="POOLS", help="as 4xtp1+2xtp2 (default: 1xtp1)")
    add(
        "--workload",
        default="mixed",
        metavar="FILE|MIX",
        help="a trace or log (CSV, JSON lines, parquet), or chat, turns, agents, documents, "
        "reasoning, long, mixed (default: mixed)",
    )
    add("--rate", type=float, default=2.0, help="requests per second of a mix (default: 2)")
    add("--duration", type=float, default=600.0, help="seconds of a mix (default: 600)")
    add("--load", type=float, default=1.0, help="play it so many times as fast (default: 1)")
    add("--seed", type=int, default=0, help="of mixes and random policies (default: 0)")
    add(
        "--policy",
        action="append",
        default=[],
        metavar="NAME",
        help="earliest_completion (default), least_request, …; repeatable, or all",
    )
    add("--slo", default=DEFAULT_SLO, help=f"TOKENS:TTFT_S:TPOT_S,… (default: {DEFAULT_SLO})")
    add("--max-num-seqs", type=int, default=256, help="sequences per replica (default: 256)")
    add("--max-batch-tokens", type=int, default=8192, help="tokens per step (default: 8192)")
    add("--prefill-order", choices=("shortest", "fcfs"), default="shortest", help="in the engine")
    add("--sweep", action="store_true", help="find the largest load that each policy bears")
    add("--json", metavar="FILE", help="write inputs and figures there (-: to stdout, no table)")


def run(arguments: Mapping[str, object]) -> int:
    """0 when the simulation ran, whatever came of it.

    Raises:
        StartupError: a file cannot be read, or the model does not fit.
        ConfigError: an unknown name, or an impossible setting.
    """
    from gpt_oss_server.routing.policies import POLICIES, policy
    from gpt_oss_server.simulate.cluster import simulate
    from gpt_oss_server.simulate.report import as_json, slo_json, table
    from gpt_oss_server.simulate.slo import judge
    from gpt_oss_server.simulate.sweep import capacity

    fleet = _fleet(arguments)
    workload = _workload(arguments)
    slo = _slo(str(arguments["slo"]))
    names = _names(arguments["policy"]) or ["earliest_completion"]
    names = list(POLICIES) if names == ["all"] else names
    settings = {
        "seed": _int(arguments, "seed"),
        "kv_bytes_per_token": fleet.pools[0].replica.kv_bytes_per_token,
    }
    chosen = [(name, policy(name, settings)) for name in names]  # unknown names before any work
    quiet = arguments.get("json") == "-"
    written: dict[str, Any] = {
        "inputs": {**arguments, "fleet": fleet.name, "gpus": fleet.gpus, "slo": slo_json(slo)},
        "workload": {
            "requests": len(workload.requests),
            "requests_per_s": workload.requests_per_s,
            "problems": workload.problems.counts,
        },
        "policies": {},
    }
    rows = []
    for name, rule in chosen:
        outcome = simulate(workload, fleet, rule, slo=slo, progress=None if quiet else _progress)
        report = judge(outcome, slo)
        rows.append((name, outcome, report))
        written["policies"][name] = as_json(outcome, report)
        if arguments.get("sweep"):
            found = capacity(workload, fleet, lambda n=name: policy(n, settings), slo)  # type: ignore[misc]
            written["policies"][name]["capacity_per_s"] = found.requests_per_s
    if not quiet:
        _print_head(fleet.name, fleet.gpus, workload)
        print("\n".join(table(rows)))
        for name, figures in written["policies"].items():
            if "capacity_per_s" in figures:
                print(f"{name}: bears {figures['capacity_per_s']:.2f} requests/s")
    _write(arguments.get("json"), written)
    return 0


def _fleet(arguments: Mapping[str, object]) -> Any:
    from gpt_oss_server.doctor.models import model_facts
    from gpt_oss_server.simulate.cost import Efficiency, model_cost
    from gpt_oss_server.simulate.fleet import Fleet, Pool
    from gpt_oss_server.simulate.fleet_text import parse_pools
    from gpt_oss_server.simulate.layout import EngineSettings, lay_out

    shapes = parse_pools(str(arguments["pools"]), str(arguments["gpu"]))
    limits = EngineSettings(
        max_num_seqs=_int(arguments, "max_num_seqs"),
        max_batch_tokens=_int(arguments, "max_batch_tokens"),
        prefill_order=str(arguments["prefill_order"]),
    )
    config = model_facts(str(arguments["model"]), os.environ).config
    cost = model_cost(config)
    return Fleet(
        tuple(
            Pool(lay_out(config, cost, shape, limits, Efficiency()), count)
            for shape, count in shapes
        )
    )


def _workload(arguments: Mapping[str, object]) -> Any:
    from gpt_oss_server.simulate.workload_files import read_workload
    from gpt_oss_server.simulate.workload_made import MIXES, make_workload

    name = str(arguments["workload"])
    if name in MIXES:
        made = make_workload(
            name,
            requests_per_s=_float(arguments, "rate"),
            duration_s=_float(arguments, "duration"),
            seed=_int(arguments, "seed"),
        )
    else:
        path = Path(name)
        if not path.suffix and not path.exists():
            raise ConfigError(f"--workload {name}: no file, and no mix ({', '.join(MIXES)})")
        made = read_workload(path)
    return made.at_load(_float(arguments, "load"))


def _slo(text: str) -> Any:
    from gpt_oss_server.simulate.fleet_text import parse_slo
    from gpt_oss_server.simulate.slo import Slo, SloClass

    rows = parse_slo(text)
    labels = ("short", "long") if len(rows) == 2 else tuple(f"≤{row[0]:g}" for row in rows)
    return Slo(tuple(SloClass(label, *row) for label, row in zip(labels, rows, strict=True)))


def _print_head(fleet: str, gpus: int, workload: Any) -> None:
    print(
        f"{fleet} ({gpus} GPUs), {workload.name}: {len(workload.requests)} requests in "
        f"{workload.duration_s:.0f} s, {workload.requests_per_s:.2f}/s"
    )
    for line in workload.problems.lines():
        print(f"  input: {line}")


def _progress(done: int, total: int) -> None:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        return
    filled = 40 * done // max(1, total)
    end = "\r" if done < total else "\r\x1b[K"
    print(f"[{'#' * filled}{' ' * (40 - filled)}] {done}/{total}", end=end, file=sys.stderr)


def _write(target: object, content: dict[str, Any]) -> None:
    if target is None:
        return
    text = json.dumps(content, indent=2) + "\n"
    if target == "-":
        print(text, end="")
        return
    try:
        Path(str(target)).write_text(text, encoding="utf-8")
    except OSError as error:
        raise StartupError(f"cannot write {target}: {error.strerror}") from error


def _names(given: object) -> list[str]:
    return [str(name) for name in given] if isinstance(given, list) else []


def _int(arguments: Mapping[str, object], name: str) -> int:
    return int(str(arguments[name]))


def _float(arguments: Mapping[str, object], name: str) -> float:
    return float(str(arguments[name]))
