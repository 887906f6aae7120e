"""What the simulator's commands read alike from their flags: model, GPUs, engine, workload, SLO.

Knows: the flags that `simulate`, `plan` and `calibrate` share, and what each becomes. Does not
know: what is done with it. Everything heavy is imported when it is asked for.
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_oss_server.errors import ConfigError, StartupError

if TYPE_CHECKING:
    from gpt_oss_server.simulate.calibrate.calibration_file import Calibration
    from gpt_oss_server.simulate.cost.gpu_types import GpuType
    from gpt_oss_server.simulate.cost.layout import EngineSettings, Replica, Shape
    from gpt_oss_server.simulate.cost.roofline import Efficiency, ModelCost
    from gpt_oss_server.simulate.fleet.pools import Fleet
    from gpt_oss_server.simulate.results.slo import Slo
    from gpt_oss_server.simulate.workload.requests import Workload

DEFAULT_SLO = "2048:2:0.05,inf:10:0.05"
DEFAULT_MODEL = "120b"
DEFAULT_GPU = "h100"
RATE, DURATION_S = 2.0, 600.0
MOST_DRAWS = 1000
LEAST_PROMISE_S = 1e-6
MIX_NAMES = "chat, turns, agents, documents, reasoning, long, mixed"
_READ = ("workload", "calibration", "gpu", "price")
"""Flags that may name a file that is read."""

Arguments = Mapping[str, object]


def add_model(parser: argparse.ArgumentParser) -> None:
    """The model, and the calibration that it may come from."""
    parser.add_argument(
        "--model",
        help=f"20b, 120b, a hub id or a folder (default: {DEFAULT_MODEL}, or the calibrated one)",
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help="what `gpt-oss-server calibrate` wrote: replicas like the server that it measured",
    )


def add_workload(parser: argparse.ArgumentParser) -> None:
    """What is played, how fast, and the seed of what is made."""
    add = parser.add_argument
    add(
        "--workload",
        default="mixed",
        metavar="FILE|MIX",
        help=f"a trace or log (CSV, JSON lines, parquet), or {MIX_NAMES} (default: mixed)",
    )
    add(
        "--rate",
        type=float,
        default=RATE,
        help=f"requests per second of a mix (default: {RATE:g})",
    )
    add(
        "--duration",
        type=float,
        default=DURATION_S,
        help=f"seconds of a mix (default: {DURATION_S:g})",
    )
    add(
        "--arrivals",
        choices=("poisson", "bursty", "day"),
        default="poisson",
        help="how requests of a mix come; a day has 86400 s and begins at midnight",
    )
    add("--load", type=float, default=1.0, help="play it so many times as fast (default: 1)")
    add("--seed", type=int, default=0, help="of mixes and random policies (default: 0)")


def add_promises(parser: argparse.ArgumentParser) -> None:
    """What requests are promised, by the length of their prompt."""
    parser.add_argument(
        "--slo", default=DEFAULT_SLO, help=f"TOKENS:TTFT_S:TPOT_S,… (default: {DEFAULT_SLO})"
    )


def add_engine(parser: argparse.ArgumentParser) -> None:
    """The limits of every replica's engine."""
    add = parser.add_argument
    add("--max-num-seqs", type=int, default=256, help="sequences per replica (default: 256)")
    add("--max-batch-tokens", type=int, default=8192, help="tokens per step (default: 8192)")
    add("--prefill-order", choices=("shortest", "fcfs"), default="shortest", help="in the engine")
    add(
        "--admission",
        choices=("reserve", "engine"),
        default="reserve",
        help="reserve: KV is reserved before the engine, as this server does (default); "
        "engine: requests queue in the engine, as in most others",
    )
    add(
        "--max-waiting",
        type=int,
        metavar="N",
        help="requests that may wait per replica (default: 256; with engine any)",
    )
    add(
        "--max-wait-s",
        type=float,
        metavar="S",
        help="longest wait for a place (default: 30; with engine any)",
    )


@dataclass(frozen=True)
class Simulated:
    """The model that is simulated: its name, the content of its config.json, and what it costs."""

    name: str
    config: Mapping[str, Any]
    cost: ModelCost


def calibration(arguments: Arguments) -> Calibration | None:
    """The file of `--calibration`. Raises StartupError, and ConfigError for what is wrong in it."""
    from gpt_oss_server.simulate.calibrate.calibration_file import parse_calibration

    given = arguments.get("calibration")
    if given is None:
        return None
    try:
        text = Path(str(given)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise StartupError(f"cannot read {given}: {reason}") from error
    return parse_calibration(str(given), text)


def model_name(arguments: Arguments) -> str:
    """What `--model` says, or the calibration, or the default."""
    if arguments["model"] is not None:
        return str(arguments["model"])
    measured = calibration(arguments)
    return DEFAULT_MODEL if measured is None else measured.model


def remarks(arguments: Arguments) -> list[str]:
    """What there is to say of the calibration beside the model that is simulated."""
    measured = calibration(arguments)
    return [] if measured is None else measured.remarks_of(model_name(arguments))


def simulated_model(arguments: Arguments) -> Simulated:
    """The model that is meant. Raises StartupError where its config is not to be had."""
    from gpt_oss_server.doctor.models import model_facts
    from gpt_oss_server.simulate.cost.roofline import model_cost

    facts = model_facts(model_name(arguments), os.environ)
    return Simulated(facts.short_name, facts.config, model_cost(facts.config))


def engine_settings(arguments: Arguments) -> EngineSettings:
    """The engine's limits. Raises ConfigError."""
    from gpt_oss_server.simulate.cost.layout import EngineSettings

    return EngineSettings(
        max_num_seqs=integer(arguments, "max_num_seqs"),
        max_batch_tokens=integer(arguments, "max_batch_tokens"),
        prefill_order=str(arguments["prefill_order"]),
        admission=str(arguments["admission"]),
        max_waiting=optional_integer(arguments, "max_waiting"),
        max_wait_s=optional_number(arguments, "max_wait_s"),
    )


def efficiency(arguments: Arguments) -> Efficiency:
    """What of the nominal figures is attained (by a calibrated type of GPU)."""
    from gpt_oss_server.simulate.cost.roofline import Efficiency

    measured = calibration(arguments)
    return Efficiency() if measured is None else measured.efficiency


def default_gpu(arguments: Arguments) -> str | GpuType:
    """The type of GPU where none is named: the calibrated one, else an H100."""
    measured = calibration(arguments)
    return DEFAULT_GPU if measured is None else measured.gpu


LayOut = Callable[["Mapping[str, Any]", "ModelCost", "Shape", "EngineSettings"], "Replica"]


def lay_out_of(arguments: Arguments) -> LayOut:
    """How a model is laid out on a shape: as calibrated, else with the shipped efficiencies."""
    from gpt_oss_server.simulate.cost.layout import lay_out
    from gpt_oss_server.simulate.cost.roofline import Efficiency

    measured = calibration(arguments)
    if measured is not None:
        return measured.replica

    def plain(
        config: Mapping[str, Any], cost: ModelCost, shape: Shape, settings: EngineSettings
    ) -> Replica:
        return lay_out(config, cost, shape, settings, Efficiency())

    return plain


def fleet(arguments: Arguments, model: Simulated) -> Fleet:
    """The fleet of `--pools`, on `--gpu` where a pool names none.

    Raises ConfigError for what is not understood or cannot be split, DoesNotFit.
    """
    from gpt_oss_server.simulate.fleet.notation import parse_pools
    from gpt_oss_server.simulate.fleet.pools import Fleet, Pool

    given = arguments["gpu"]
    gpu = default_gpu(arguments) if given is None else str(given)
    shapes = parse_pools(str(arguments["pools"]), gpu)
    settings, lay_out = engine_settings(arguments), lay_out_of(arguments)
    return Fleet(
        tuple(
            Pool(lay_out(model.config, model.cost, shape, settings), count)
            for shape, count in shapes
        )
    )


def workload(arguments: Arguments) -> Workload:
    """The file or mix of `--workload`, at `--load`. Raises StartupError, ConfigError."""
    from gpt_oss_server.simulate.workload.files import read_workload
    from gpt_oss_server.simulate.workload.made import MIXES, PATTERNS, make_workload

    name = str(arguments["workload"])
    load = number(arguments, "load")
    _check_pace(arguments, name in MIXES)
    if not load > 0:
        raise ConfigError(f"--load must be above 0, not {load:g}")
    if name in MIXES:
        rate, duration_s = number(arguments, "rate"), number(arguments, "duration")
        made = make_workload(
            name,
            requests_per_s=rate,
            duration_s=duration_s,
            seed=seed(arguments),
            arrivals=PATTERNS[str(arguments["arrivals"])],
        )
        if not made.requests:
            raise ConfigError(
                f"--workload {name}: no request comes in {duration_s:g} s at {rate:g} a second: "
                "give a larger --rate or --duration"
            )
    else:
        path = Path(name)
        if not path.suffix and not path.exists():
            raise ConfigError(f"--workload {name}: no file, and no mix ({', '.join(MIXES)})")
        made = read_workload(path)
    return made.at_load(load)


def _check_pace(arguments: Arguments, made: bool) -> None:
    """That what a mix is made by is not asked of a record, which comes as it came. Raises
    ConfigError. (`plan` takes a rate for either, and no duration.)"""
    if "duration" not in arguments:
        return
    for name, default in (("rate", RATE), ("duration", DURATION_S)):
        value = number(arguments, name)
        if not value > 0:
            raise ConfigError(f"--{name} must be above 0, not {value:g}")
        if value != default and not made:
            raise ConfigError(f"--{name} is of a mix; a record has its own: --load plays it faster")
    if arguments["arrivals"] != "poisson" and not made:
        raise ConfigError("--arrivals is of a mix; a record comes as it came")


def promises(arguments: Arguments) -> Slo:
    """The classes of `--slo`. Raises ConfigError."""
    from gpt_oss_server.simulate.fleet.notation import parse_slo
    from gpt_oss_server.simulate.results.slo import Slo, SloClass

    rows = parse_slo(str(arguments["slo"]))
    labels = ("short", "long") if len(rows) == 2 else tuple(_upto(row[0]) for row in rows)
    for _, ttft_s, tpot_s in rows:
        if math.inf in (ttft_s, tpot_s):
            raise ConfigError(f"--slo {arguments['slo']}: a promise of any time is none")
        if 0 < min(ttft_s, tpot_s) < LEAST_PROMISE_S:
            raise ConfigError(f"--slo: nobody is promised less than {LEAST_PROMISE_S:g} s")
    try:
        return Slo(tuple(SloClass(label, *row) for label, row in zip(labels, rows, strict=True)))
    except ConfigError as error:
        raise ConfigError(f"--slo {arguments['slo']}: {error}") from error


def _upto(tokens: float) -> str:
    """A class's name, which no other one has."""
    return f"≤{int(tokens)}" if tokens.is_integer() else f"≤{tokens!r}"


def write_json(target: object, content: Mapping[str, Any]) -> None:
    """To a file, to stdout (`-`) or (None) nowhere. Raises StartupError."""
    if target is None:
        return
    write_text(target, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_text(target: object, text: str) -> None:
    """To a file, or to stdout (`-`). Raises StartupError."""
    # Names of files may hold bytes that are no text, and a terminal may have few letters.
    encoding = (sys.stdout.encoding if target == "-" else None) or "utf-8"
    text = text.encode(encoding, errors="backslashreplace").decode(encoding)
    try:
        if target == "-":
            print(text, end="", flush=True)
        else:
            Path(str(target)).write_text(text, encoding="utf-8")
    except OSError as error:
        where = "to stdout" if target == "-" else target
        raise StartupError(f"cannot write {where}: {error.strerror}") from error


def check_writable(arguments: Arguments, *names: str) -> None:
    """That the files of these flags can be written, before any work is done for them; nothing is
    written yet. Raises StartupError, and ConfigError for one that is named twice, or read."""
    seen: dict[str, str] = {}
    for name in _READ:
        given = arguments.get(name)
        if given is not None and os.path.isfile(str(given)):
            seen.setdefault(os.path.realpath(str(given)), name)
    for name in names:
        given = arguments[name]
        if given is None or given == "-":
            continue
        path = Path(str(given))
        reason = _unwritable(path)
        if reason is not None:
            raise StartupError(f"--{name}: cannot write {given}: {reason}")
        other = seen.setdefault(os.path.realpath(path), name)
        if other != name:
            raise ConfigError(f"--{other} and --{name} are the same file, {given}")


def _unwritable(path: Path) -> str | None:
    """Why a file cannot be written, as far as can be told without writing it."""
    try:
        if path.is_dir():
            return os.strerror(errno.EISDIR)
        if not path.exists() and not path.parent.is_dir():
            return os.strerror(errno.ENOENT)
        place = path if path.exists() else path.parent
        return None if os.access(place, os.W_OK) else os.strerror(errno.EACCES)
    except (OSError, ValueError) as error:
        return str(error)


def names(given: object) -> list[str]:
    """A repeatable flag's values."""
    return [str(name) for name in given] if isinstance(given, list) else []


def integer(arguments: Arguments, name: str) -> int:
    """A flag's whole number."""
    return int(str(arguments[name]))


def seed(arguments: Arguments) -> int:
    """`--seed`. Raises ConfigError for a negative one, which would draw as its positive does."""
    value = integer(arguments, "seed")
    if value < 0:
        raise ConfigError(f"--seed must be at least 0, not {value}")
    return value


def draws(arguments: Arguments) -> int:
    """`--seeds`. Raises ConfigError."""
    count = integer(arguments, "seeds")
    if count < 1:
        raise ConfigError(f"--seeds must be at least 1, not {count}")
    if count > MOST_DRAWS:
        raise ConfigError(f"--seeds must be at most {MOST_DRAWS}, not {count}")
    return count


def number(arguments: Arguments, name: str) -> float:
    """A flag's number. Raises ConfigError for one that is none, or has no end."""
    value = float(str(arguments[name]))
    if not math.isfinite(value):
        raise ConfigError(f"--{name.replace('_', '-')} must be a finite number, not {value}")
    return value


def optional_integer(arguments: Arguments, name: str) -> int | None:
    """A flag's whole number; None where it was not given."""
    return None if arguments.get(name) is None else integer(arguments, name)


def optional_number(arguments: Arguments, name: str) -> float | None:
    """A flag's number; None where it was not given."""
    return None if arguments.get(name) is None else number(arguments, name)
