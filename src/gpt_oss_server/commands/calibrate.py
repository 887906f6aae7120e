"""`gpt-oss-server calibrate`: measure a running server, so that ones like it can be simulated.

Knows: its flags, what is measured and fitted in which order, where the result goes. Does not know:
how anything is asked, fitted or worded (see `measure/` and `simulate/calibrate/`).
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING

from gpt_oss_server.commands import simulate_inputs as inputs
from gpt_oss_server.commands.progress import Progress
from gpt_oss_server.errors import ConfigError

if TYPE_CHECKING:
    from gpt_oss_server.measure.session import Found, Wanted
    from gpt_oss_server.simulate.calibrate.calibration_file import Calibration
    from gpt_oss_server.simulate.calibrate.served import Served
    from gpt_oss_server.simulate.cost.gpu_types import GpuType
    from gpt_oss_server.simulate.cost.layout import Shape

SUMMARY = "Measure a running server in minutes, so that ones like it can be simulated."
DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_OUTPUT = "calibration.yaml"
KEY_ENV, ADMIN_KEY_ENV = "GPT_OSS_API_KEY", "GPT_OSS_ADMIN_KEY"
MINUTES = 4.0
UNKNOWN_GPU = "unknown"

Arguments = Mapping[str, object]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The server, what it runs on, how long it may be measured."""
    add = parser.add_argument
    add("url", nargs="?", default=DEFAULT_URL, metavar="URL", help=f"default: {DEFAULT_URL}")
    add("--model", help="what it serves: 20b, 120b, a hub id or a folder (default: it says)")
    add("--served-model-name", metavar="NAME", help="the name to ask for (default: its first)")
    add(
        "--gpu",
        default="auto",
        metavar="TYPE",
        help="h100, …, a .yaml file, or unknown: a CPU, or a type without data (default: auto)",
    )
    add("--tp", type=int, help="GPUs that share each layer (default: it says, or 1)")
    add("--pp", type=int, help="pipeline stages (default: it says, or 1)")
    add("--minutes", type=float, default=MINUTES, help=f"of measuring (default: {MINUTES:g})")
    add("--passes", type=int, default=3, help="times that each loop is played (default: 3)")
    add("--max-clients", type=int, metavar="N", help="never more at once (default: 64)")
    add("--endpoint", choices=("completions", "chat"), default="completions", help="that is asked")
    add("--api-key", metavar="KEY", help=f"of /v1 (default: from {KEY_ENV})")
    add("--admin-key", metavar="KEY", help=f"of this server's /admin (default: {ADMIN_KEY_ENV})")
    add("--timeout", type=float, default=120.0, metavar="S", help="for one answer (default: 120)")
    add("--seed", type=int, default=0, help="of prompts and lengths (default: 0)")
    add("--output", default=DEFAULT_OUTPUT, metavar="FILE", help=f"default: {DEFAULT_OUTPUT}")


def run(arguments: Arguments) -> int:
    """0 when a calibration was written.

    Raises:
        StartupError: the server is not there, answers with errors or turns requests away; the
            model's config is not to be had; the file cannot be written.
        ConfigError: an impossible setting.
    """
    import asyncio

    from gpt_oss_server.measure.session import measure
    from gpt_oss_server.simulate.calibrate.calibration_file import as_yaml, told

    wanted = _wanted(arguments)
    inputs.check_writable(arguments, "output")
    with closing(Progress()) as progress:
        progress.begin("measuring")
        found = asyncio.run(
            measure(wanted, _say, progress.tell, lambda served: _check(arguments, served))
        )
        progress.begin("fitting")
        calibration = _calibration(arguments, found, wanted.address.url, progress)
    text = as_yaml(calibration)
    inputs.write_text(arguments["output"], text)
    if arguments["output"] != "-":
        print(_head(calibration))
        print("\n".join(told(calibration.errors)))
        for remark in calibration.remarks:
            print(f"  {remark}")
        print(
            f"written: {arguments['output']} "
            f"(gpt-oss-server simulate --calibration {arguments['output']} …)"
        )
    return 0


def _wanted(arguments: Arguments) -> Wanted:
    from gpt_oss_server.measure.connection import address_of
    from gpt_oss_server.measure.session import Wanted

    minutes, passes = inputs.number(arguments, "minutes"), inputs.integer(arguments, "passes")
    timeout_s = inputs.number(arguments, "timeout")
    most = inputs.optional_integer(arguments, "max_clients")
    if not 0 < minutes < float("inf"):
        raise ConfigError(f"--minutes must be above 0, not {minutes:g}")
    if not 0 < timeout_s < float("inf"):
        raise ConfigError(f"--timeout must be above 0, not {timeout_s:g}")
    for flag, value in (("--passes", passes), ("--max-clients", most)):
        if value is not None and value < 1:
            raise ConfigError(f"{flag} must be at least 1, not {value}")
    key = _key(arguments["api_key"], KEY_ENV)
    return Wanted(
        address=address_of(str(arguments["url"]), key),
        model=_text(arguments["served_model_name"]),
        admin_key=_key(arguments["admin_key"], ADMIN_KEY_ENV) or key,
        endpoint="chat" if arguments["endpoint"] == "chat" else "completions",
        seconds=60.0 * minutes,
        passes=passes,
        most_clients=most,
        seed=inputs.seed(arguments),
        timeout_s=timeout_s,
    )


def _check(arguments: Arguments, served: Served) -> None:
    """That there will be something to fit, before anything is measured. Raises StartupError, and
    ConfigError, as the fit would."""
    from gpt_oss_server.simulate.calibrate.likeness import replica_like
    from gpt_oss_server.simulate.cost.roofline import Efficiency

    _, model, shape = _meant(arguments, served)
    replica_like(served, model.config, model.cost, shape, Efficiency())


def _meant(arguments: Arguments, served: Served) -> tuple[str, inputs.Simulated, Shape]:
    """The name of the model, what it is, and on which hardware."""
    name = _text(arguments["model"]) or _model_of(served.model)
    model = inputs.simulated_model({"model": name, "calibration": None})
    return name, model, _shape(arguments, served)


def _calibration(
    arguments: Arguments, found: Found, source: str, progress: Progress
) -> Calibration:
    from gpt_oss_server.simulate.calibrate.calibration_file import Calibration
    from gpt_oss_server.simulate.calibrate.fit_server import fit_server

    served = found.served
    name, model, shape = _meant(arguments, served)
    fitted = fit_server(found.loops, served, model.config, model.cost, shape, progress.tell)
    verdict = fitted.verdict
    spread = sum(loop.spread() for loop in found.loops) / len(found.loops)
    remarks = [*found.remarks, *verdict.warnings]
    if any(len(loop.passes) > 1 for loop in found.loops):
        remarks.append(
            f"from pass to pass the same loop's requests took up to {spread:.0%} longer (mean over "
            "loops): no foresight can be closer than that"
        )
    return Calibration(
        made_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        source=source,
        model=name,
        served=served,
        shape=shape,
        efficiency=fitted.efficiency,
        errors={"fitted": verdict.fitted, "held_out": verdict.held_out},
        remarks=tuple(remarks),
        loops=tuple(found.loops),
    )


def _model_of(served: str) -> str:
    """The name by which the config of what a server serves is found."""
    from gpt_oss_server.hub import ALIASES

    short = {full.rpartition("/")[2]: alias for alias, full in ALIASES.items()}
    return short.get(served.rpartition("/")[2], served)


def _shape(arguments: Arguments, served: Served) -> Shape:
    from gpt_oss_server.simulate.calibrate.likeness import unknown_hardware
    from gpt_oss_server.simulate.cost.gpu_types import gpu_type
    from gpt_oss_server.simulate.cost.layout import Shape

    gpu = str(arguments["gpu"])
    if gpu == "auto":
        gpu = _gpu_of(served)
    if gpu == UNKNOWN_GPU:
        return Shape(unknown_hardware())
    tp, pp = (inputs.optional_integer(arguments, name) for name in ("tp", "pp"))
    gpus = served.gpus or 1
    if tp is None:
        tp = gpus if served.gpu_mode == "tensor" else 1
    if pp is None:
        pp = gpus if served.gpu_mode in ("auto", "pipeline") else 1
    return Shape(gpu_type(gpu), tp, pp)


def _gpu_of(served: Served) -> str:
    """The packaged type of the GPU that the server names. Raises ConfigError."""
    from gpt_oss_server.simulate.cost.gpu_types import gpu_names, gpu_type

    if served.device == "cpu":
        return UNKNOWN_GPU
    said = (served.gpu_name or "").lower()
    words = re.split(r"[^a-z0-9]+", said)
    pairs = [a + b for a, b in pairwise(words)]
    for name in gpu_names():
        if (name in words or name in pairs) and _is_as_large(said, gpu_type(name)):
            return name
    what = f"a {served.gpu_name}" if served.gpu_name else "a GPU that it does not name"
    raise ConfigError(
        f"the server runs on {what}: say --gpu TYPE ({', '.join(gpu_names())}, a .yaml file), or "
        "--gpu unknown"
    )


def _is_as_large(said: str, gpu: GpuType) -> bool:
    """Whether a driver's name for a GPU, where it says its memory, says about the type's: there are
    an A100 of 40 GB and one of 80. A laptop's is smaller without saying so."""
    stated = re.search(r"(\d+) ?gb", said)
    near = stated is None or abs(int(stated[1]) * (1 << 30) / gpu.memory_bytes - 1.0) < 0.1
    return near and "laptop" not in said


def _head(calibration: Calibration) -> str:
    served = calibration.served
    requests = sum(len(loop.rows) for loop in calibration.loops)
    where = "unknown hardware" if calibration.gpu.title == "as measured" else calibration.shape.name
    return (
        f"{served.server} {served.version}, {calibration.model} on {where}: "
        f"{len(calibration.loops)} loops, {requests} requests; mean absolute errors:"
    )


def _key(given: object, environment: str) -> str | None:
    return _text(given) or os.environ.get(environment) or None


def _text(given: object) -> str | None:
    return None if given is None else str(given)


def _say(line: str) -> None:
    print(line, file=sys.stderr)
