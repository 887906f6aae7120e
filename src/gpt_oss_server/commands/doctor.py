"""`gpt-oss-server doctor`: does a model fit, and what is wrong with this machine.

Knows: its flags, which of the two questions is asked, the exit status. Does not know: arithmetic,
checks or layout (see `doctor/`).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gpt_oss_server import config
from gpt_oss_server.config import Settings
from gpt_oss_server.config_kinds import Choice, Integer, Kind, Size
from gpt_oss_server.errors import ConfigError, StartupError

if TYPE_CHECKING:
    from gpt_oss_server.doctor.advice import Comparison, Load
    from gpt_oss_server.doctor.checks import Found
    from gpt_oss_server.doctor.findings import Examined
    from gpt_oss_server.doctor.gpu_specs import GpuSpec
    from gpt_oss_server.doctor.models import ModelFacts
    from gpt_oss_server.doctor.plan import Plan, PlanRequest, Recommendation, WeightsForm
    from gpt_oss_server.memory.fit import GpuMode

SUMMARY = "Say whether a model fits, and what is wrong with this machine and how to cure it."

# What steps compute on a GPU where max_batch_tokens is left open.
CUDA_BATCH_TOKENS = 2048
_OF_SERVE = (
    "model",
    "gpus",
    "gpu_mode",
    "dtype",
    "block_size",
    "max_num_seqs",
    "max_batch_tokens",
    "gpu_memory_utilization",
    "experts",
    "device",
    "host",
    "port",
)
_WEIGHTS = Choice(("mxfp4", "bf16"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The settings of `serve` that matter here, the planned memory, and the form of the output."""
    parser.add_argument(
        "--gpu-memory",
        metavar="SIZE",
        default=argparse.SUPPRESS,
        help="only calculate, for GPUs of this size (80GiB); without it, look at this machine",
    )
    parser.add_argument(
        "--weights",
        metavar="{mxfp4,bf16}",
        default=argparse.SUPPRESS,
        help="how a quantized checkpoint's weights are held (default: as they are stored)",
    )
    parser.add_argument(
        "--gpu",
        metavar="NAME",
        default=argparse.SUPPRESS,
        help="only calculate: the GPU whose speed is estimated (H100, L40S, RTX 4090)",
    )
    parser.add_argument(
        "--requests",
        metavar="N",
        default=argparse.SUPPRESS,
        help="requests at once that the advice is for",
    )
    parser.add_argument(
        "--request-tokens",
        metavar="N",
        default=argparse.SUPPRESS,
        help="tokens of such a request, prompt and answer",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument(
        "--config", metavar="FILE", default=argparse.SUPPRESS, help="YAML file of settings"
    )
    group = parser.add_argument_group("settings, as for serve")
    for row in (row for row in config.TABLE if row.name in _OF_SERVE):
        text = f"{row.help} (default: {row.default_text})".replace("%", "%%")
        group.add_argument(
            row.flag,
            dest=row.name,
            default=argparse.SUPPRESS,
            help=text,
            metavar=row.kind.describe.split(",")[0].replace(" | ", "|"),
        )


def run(flags: Mapping[str, object]) -> int:
    """0 when nothing is wrong, 1 when the model does not fit or a problem was found.

    Raises:
        ConfigError: a wrong argument, named.
    """
    if "gpu_memory" in flags:
        return _calculate(flags)
    return _examine(flags)


def _calculate(flags: Mapping[str, object]) -> int:
    """The pure calculation: nothing is loaded, no GPU is looked at."""
    from gpt_oss_server.doctor.four_bits import form_planned
    from gpt_oss_server.doctor.plan import MODES

    memory_bytes = _parsed(Size(), flags["gpu_memory"], "--gpu-memory")
    # One GPU mode contradicts several GPUs for `serve`; here all modes are compared.
    lone = {name: raw for name, raw in flags.items() if name not in ("gpus", "gpu_mode")}
    settings = config.load(lone, os.environ)
    kinds = {row.name: row.kind for row in config.TABLE}
    gpus = settings.gpus or 1
    if "gpus" in flags:
        gpus = _parsed(kinds["gpus"], flags["gpus"], "--gpus")
    modes: Sequence[GpuMode] = MODES
    if "gpu_mode" in flags:
        modes = (_parsed(kinds["gpu_mode"], flags["gpu_mode"], "--gpu-mode"),)
        if modes[0] != "single" and gpus < 2:
            raise ConfigError(f"flag --gpus: gpu_mode {modes[0]} needs at least 2, got {gpus}")
    model = _model(settings, flags)
    form = _weights(flags) or form_planned(settings, model.config)
    asked = _request(settings, model, memory_bytes, gpus, form)
    plan, other = _plans(model, asked)
    advice = _advice(model, plan, _load(flags), _named_gpu(flags), modes)
    if flags.get("json"):
        _print_json({"model": _model_json(model), **_plan_json(plan, other, modes, advice)})
    else:
        print("\n".join(_plan_lines(settings.model, model, plan, other, modes, advice)))
    return 0 if any(plan.of(mode).fits for mode in modes) else 1


def _examine(flags: Mapping[str, object]) -> int:
    """Look at this machine with the settings that `serve` would have."""
    from gpt_oss_server import __version__
    from gpt_oss_server.doctor import machine_text
    from gpt_oss_server.doctor.checks import run_checks
    from gpt_oss_server.doctor.plan import MODES

    settings = config.load(flags, os.environ)
    seen = _seen(settings, flags)
    found = run_checks(seen)
    status = 1 if any(one.finding.level == "problem" for one in found) else 0
    advice = None
    if seen.plan is not None and seen.model is not None:
        advice = _advice(seen.model, seen.plan, _load(flags), _machine_gpus(seen), MODES)
    if flags.get("json"):
        _print_json(_examined_json(seen, found, advice))
        return status
    lines = [f"gpt-oss-server {__version__}", *machine_text.machine_lines(seen), ""]
    if seen.plan is not None and seen.model is not None and advice is not None:
        name = settings.model
        lines += [*_plan_lines(name, seen.model, seen.plan, seen.other_plan, MODES, advice), ""]
    print("\n".join([*lines, *machine_text.finding_lines(found)]))
    return status


def _seen(settings: Settings, flags: Mapping[str, object]) -> Examined:
    from gpt_oss_server.doctor.findings import Examined
    from gpt_oss_server.doctor.four_bits import form_held
    from gpt_oss_server.doctor.machine import examine
    from gpt_oss_server.doctor.models import model_facts

    machine = examine(os.environ, settings.host, settings.port)
    try:
        model = model_facts(settings.model, os.environ)
    except StartupError as error:
        return Examined(settings, machine, None, str(error))
    sizes = machine.gpu_memory_bytes
    if not sizes:
        return Examined(settings, machine, model)
    sliced = machine.driver is not None and bool(machine.driver.mig_gpus)
    gpus = 1 if sliced else min(settings.gpus or len(sizes), len(sizes))
    form = _weights(flags) or form_held(settings, machine, model.config)
    asked = _request(settings, model, min(sizes), gpus, form)
    try:
        plan, other = _plans(model, asked)
    except ConfigError:
        raise
    except StartupError as error:
        return Examined(settings, machine, model, str(error))
    return Examined(settings, machine, model, None, plan, other)


def _request(
    settings: Settings,
    model: ModelFacts,
    memory_bytes: int,
    gpus: int,
    weights: WeightsForm | None,
) -> PlanRequest:
    from gpt_oss_server.doctor.plan import PlanRequest, own_dtype
    from gpt_oss_server.memory.fit import FitRequest
    from gpt_oss_server.memory.kv import DTYPE_BYTES

    dtype = own_dtype(model.config) if settings.dtype == "auto" else settings.dtype
    machine = FitRequest(
        gpu_memory_bytes=memory_bytes,
        gpus=gpus,
        utilization=settings.gpu_memory_utilization,
        block_size=settings.block_size,
        max_num_seqs=settings.max_num_seqs,
        max_batch_tokens=settings.max_batch_tokens or max(CUDA_BATCH_TOKENS, settings.max_num_seqs),
        dtype_bytes=DTYPE_BYTES[dtype],
        kv_dtype_bytes=DTYPE_BYTES[dtype],
    )
    return PlanRequest(machine, dtype, weights, model.checkpoint_bytes, settings.experts)


def _plans(model: ModelFacts, asked: PlanRequest) -> tuple[Plan, Plan | None]:
    """The plan that was asked for, and the one with the weights in their other form."""
    from gpt_oss_server.doctor.plan import make_plan, stored_form

    try:
        plan = make_plan(model.config, asked)
    except ConfigError as error:
        raise ConfigError(f"flag --weights: {error}") from None
    if stored_form(model.config) != "mxfp4":
        return plan, None
    other: WeightsForm = "mxfp4" if asked.weights == "bf16" else "bf16"
    return plan, make_plan(model.config, replace(asked, weights=other))


def _model(settings: Settings, flags: Mapping[str, object]) -> ModelFacts:
    """A model that cannot be found or bounded is a wrong argument here."""
    from gpt_oss_server.doctor.models import model_facts
    from gpt_oss_server.memory.architecture import shape_from_config
    from gpt_oss_server.memory.weights import weights_of

    try:
        model = model_facts(settings.model, os.environ)
        shape_from_config(model.config)
        weights_of(model.config, checkpoint_bytes=model.checkpoint_bytes)
    except StartupError as error:
        origin = "flag --model" if "model" in flags else "model"
        raise ConfigError(f"{origin}: {error}") from None
    return model


def _weights(flags: Mapping[str, object]) -> WeightsForm | None:
    if "weights" not in flags:
        return None
    weights: WeightsForm = _parsed(_WEIGHTS, flags["weights"], "--weights")
    return weights


def _parsed(kind: Kind, raw: object, flag: str) -> Any:
    try:
        return kind.parse(raw)
    except ValueError as error:
        raise ConfigError(f"flag {flag}: {error}") from None


@dataclass(frozen=True)
class _Advice:
    """What to do, and the ways that it was chosen from."""

    recommendation: Recommendation
    compared: Comparison


def _advice(
    model: ModelFacts, plan: Plan, load: Load, speed: GpuSpec, modes: Sequence[GpuMode]
) -> _Advice:
    from gpt_oss_server.doctor.advice import advise, compare
    from gpt_oss_server.doctor.plan import recommend

    compared = compare(model.config, plan, load, speed, allowed=modes)
    if not compared.ways:
        return _Advice(recommend(model.config, plan, modes), compared)
    return _Advice(advise(model.config, plan, compared), compared)


def _load(flags: Mapping[str, object]) -> Load:
    """The load that was given, else an example."""
    from gpt_oss_server.doctor.advice import Load

    given = {"requests": "concurrent", "request_tokens": "tokens"}
    figures = {
        field: _parsed(Integer(1), flags[name], f"--{name.replace('_', '-')}")
        for name, field in given.items()
        if name in flags
    }
    return Load(**figures, given=bool(figures))


def _named_gpu(flags: Mapping[str, object]) -> GpuSpec:
    from gpt_oss_server.doctor.gpu_specs import spec_of, specs

    name = flags.get("gpu")
    spec = spec_of([None if name is None else str(name)])
    if name is not None and not spec.known:
        known = ", ".join(sorted(one.name for one in specs()))
        raise ConfigError(f"flag --gpu: {name!r} is not one of {known}")
    return spec


def _machine_gpus(seen: Examined) -> GpuSpec:
    from gpt_oss_server.doctor.gpu_specs import spec_of

    machine = seen.machine
    names = [gpu.name for gpu in machine.gpus] or list(machine.torch.devices)
    return spec_of(names, reach_each_other=machine.torch.peer_access)


def _plan_lines(
    name: str,
    model: ModelFacts,
    plan: Plan,
    other: Plan | None,
    modes: Sequence[GpuMode],
    advice: _Advice,
) -> list[str]:
    from gpt_oss_server.doctor import plan_text
    from gpt_oss_server.doctor.advice_text import comparison_lines, plan_command, plan_lines

    lines = [*plan_text.headline(model, plan), "", *plan_text.table(plan, modes), ""]
    if other is not None:
        lines += [*plan_text.summary(other, modes), ""]
    if advice.compared.ways:
        lines += [*comparison_lines(advice.compared), ""]
    lines += plan_text.recommendation_lines(advice.recommendation)
    if plan.asked.machine.gpus > 1 and advice.compared.ways:
        speed = advice.compared.speed
        command = plan_command(name, plan.asked.machine.gpus, speed.name)
        lines += ["", *plan_lines(command, logged=False)]
    return lines


def _plan_json(
    plan: Plan, other: Plan | None, modes: Sequence[GpuMode], advice: _Advice
) -> dict[str, Any]:
    from gpt_oss_server.doctor import plan_text
    from gpt_oss_server.doctor.advice_text import comparison_json

    recommendation = advice.recommendation
    return {
        "plan": plan_text.plan_json(plan, modes),
        "other_weights": None if other is None else plan_text.plan_json(other, modes),
        "recommendation": {
            "mode": recommendation.mode,
            "text": recommendation.text,
            "arithmetic": recommendation.arithmetic,
        },
        "comparison": comparison_json(advice.compared),
    }


def _examined_json(
    seen: Examined, found: Sequence[Found], advice: _Advice | None
) -> dict[str, Any]:
    from gpt_oss_server.doctor import machine_text
    from gpt_oss_server.doctor.plan import MODES

    answer = machine_text.machine_json(seen, found)
    answer["model"] = None if seen.model is None else _model_json(seen.model)
    if seen.plan is None or advice is None:
        nothing = ("plan", "other_weights", "recommendation", "comparison")
        return {**answer, **dict.fromkeys(nothing)}
    return {**answer, **_plan_json(seen.plan, seen.other_plan, MODES, advice)}


def _model_json(model: ModelFacts) -> dict[str, Any]:
    return {"id": model.model_id, "source": model.source, "weights_here": model.weights_here}


def _print_json(content: Mapping[str, Any]) -> None:
    import json

    print(json.dumps(content, indent=2))
