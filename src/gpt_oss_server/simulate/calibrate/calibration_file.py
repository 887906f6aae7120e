"""What a calibration found, as a YAML file: how the server was, the fit, its errors, all that was
measured.

Knows: the file's fields. Does not know: who writes or reads one. Reading checks every field, and
says which one is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import yaml

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.memory.errors import ImpossibleSplit
from gpt_oss_server.simulate.calibrate.judging import Spread
from gpt_oss_server.simulate.calibrate.likeness import UNKNOWN, limited, replica_like
from gpt_oss_server.simulate.calibrate.served import Served
from gpt_oss_server.simulate.calibrate.trial import Measured, Row, Trial
from gpt_oss_server.simulate.cost.gpu_types import GpuType, parse_gpu
from gpt_oss_server.simulate.cost.layout import EngineSettings, Replica, Shape, lay_out
from gpt_oss_server.simulate.cost.roofline import Efficiency, ModelCost

FORMAT = "gpt-oss-server calibration, version 1"
_FIELDS = ("format", "made_at", "source", "model", "server", "gpu", "tp", "pp", "efficiency")
_LISTS = ("errors", "remarks", "loops")


@dataclass(frozen=True)
class Calibration:
    """One calibrated server. `source` is its address, `model` the name by which the model's config
    is found, `shape` the hardware of one replica. `errors` are relative, by `fitted` and `held_out`
    and kind of time."""

    made_at: str
    source: str
    model: str
    served: Served
    shape: Shape
    efficiency: Efficiency
    errors: Mapping[str, Mapping[str, Spread]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    loops: tuple[Measured, ...] = ()

    @property
    def gpu(self) -> GpuType:
        return self.shape.gpu

    def replica(
        self,
        config: Mapping[str, Any],
        model: ModelCost,
        shape: Shape,
        settings: EngineSettings,
    ) -> Replica:
        """A replica of this shape: where it is the measured one, as the server is (`settings` bound
        the queue before it); on the same type of GPU with its efficiency; on others as ever.

        Raises:
            ImpossibleSplit: hardware of which nothing is known, in another shape than measured.
            DoesNotFit, ShapeUnknown: as `lay_out`.
            ConfigError: `settings` ask of the measured shape for other limits than it has.
        """
        if shape == self.shape:
            like = replica_like(self.served, config, model, shape, self.efficiency)
            return limited(like, settings)
        if shape.gpu.name != self.gpu.name:
            return lay_out(config, model, shape, settings, Efficiency())
        if self.gpu.name == UNKNOWN:
            raise ImpossibleSplit(
                "the calibration is of hardware of which nothing else is known: only replicas like "
                "the measured one (tp1) can be simulated"
            )
        return lay_out(config, model, shape, settings, self.efficiency)

    def remarks_of(self, model: str) -> list[str]:
        """What to say where another model is simulated than was measured."""
        if model == self.model:
            return []
        return [f"calibrated on {self.model}, not on {model}"]


def as_yaml(calibration: Calibration) -> str:
    """The file's text. Raises nothing."""
    head: dict[str, Any] = {
        "format": FORMAT,
        "made_at": calibration.made_at,
        "source": calibration.source,
        "model": calibration.model,
        "server": asdict(calibration.served),
        "gpu": asdict(calibration.gpu),
        "tp": calibration.shape.tp,
        "pp": calibration.shape.pp,
        "efficiency": asdict(calibration.efficiency),
        "errors": {
            which: {kind: _rounded(spread._asdict()) for kind, spread in kinds.items()}
            for which, kinds in calibration.errors.items()
        },
        "remarks": list(calibration.remarks),
    }
    loops = [_loop_yaml(loop) for loop in calibration.loops]
    text = yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=100)
    return text + _LOOPS_HEAD + yaml.dump({"loops": loops}, Dumper=_Dumper, sort_keys=False)


_LOOPS_HEAD = """\
# What was measured. Each line of a pass is one request, in the order of sending: seconds since the
# pass began, tokens of the prompt and of the answer, seconds to the first token and to the last
# one, tokens of the prompt found cached.
"""


def parse_calibration(name: str, text: str) -> Calibration:
    """A file's content. Raises ConfigError: one line that names what is wrong."""
    content = _mapping(name, text)
    if content.get("format") != FORMAT:
        raise ConfigError(f"{name}: no calibration file (format must be: {FORMAT})")
    unknown = sorted(set(content) - {*_FIELDS, *_LISTS})
    missing = [key for key in _FIELDS if key not in content]
    if unknown or missing:
        what = f"unknown field {unknown[0]}" if unknown else f"no field {missing[0]}"
        raise ConfigError(f"{name}: {what}")
    try:
        return Calibration(
            made_at=str(content["made_at"]),
            source=str(content["source"]),
            model=str(content["model"]),
            served=_record(Served, "server", content["server"]),
            shape=Shape(
                parse_gpu(str((content["gpu"] or {}).get("name", "")), content["gpu"]),
                int(content["tp"]),
                int(content["pp"]),
            ),
            efficiency=_record(Efficiency, "efficiency", content["efficiency"]),
            errors={
                which: {kind: Spread(**spread) for kind, spread in kinds.items()}
                for which, kinds in (content.get("errors") or {}).items()
            },
            remarks=tuple(str(remark) for remark in content.get("remarks") or ()),
            loops=tuple(_loop(loop) for loop in content.get("loops") or ()),
        )
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise ConfigError(f"{name}: {' '.join(str(error).split())}") from error
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def _mapping(name: str, text: str) -> Mapping[str, Any]:
    try:
        content = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no such date
        raise ConfigError(f"{name}: {str(error).splitlines()[0]}") from error
    if not isinstance(content, Mapping):
        raise ConfigError(f"{name}: no calibration file (not a mapping of fields)")
    return content


def _record(kind: type[Any], what: str, content: Any) -> Any:
    """A dataclass from its fields, each of its own type."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{what} is not a mapping of fields")
    known = {one.name: str(one.type) for one in fields(kind)}
    values = {}
    for key, value in content.items():
        if key not in known:
            raise ValueError(f"{what}: unknown field {key}")
        values[key] = _value(f"{what}.{key}", known[key], value)
    return kind(**values)


def _value(what: str, kind: str, value: Any) -> Any:
    if value is None and "None" in kind:
        return None
    plain = kind.removesuffix(" | None")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if plain == "float" and (number or isinstance(value, str)):
        return float(value)  # YAML 1.1 reads 1e-06 as text
    if plain == "int" and isinstance(value, int) and not isinstance(value, bool):
        return value
    if plain == "bool" and isinstance(value, bool):
        return value
    if plain == "str" and isinstance(value, str):
        return value
    if plain.startswith("dict") and isinstance(value, Mapping):
        return {str(key): int(one) for key, one in value.items()}
    raise ValueError(f"{what} must be a {plain}, not {value!r}")


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as such."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def _loop_yaml(loop: Measured) -> dict[str, Any]:
    return {
        "loop": loop.trial.name,
        **asdict(loop.trial),
        "requests": len(loop.rows),
        **_rounded(loop.figures()._asdict()),
        "passes": ["\n".join(_line(row) for row in rows) + "\n" for rows in loop.passes],
    }


def _line(row: Row) -> str:
    return (
        f"{row.at_s:.4f} {row.input_tokens} {row.output_tokens} {row.ttft_s:.5f} {row.e2e_s:.5f} "
        f"{row.cached_tokens}"
    )


def _loop(content: Mapping[str, Any]) -> Measured:
    trial = Trial(**{one.name: int(content[one.name]) for one in fields(Trial)})
    return Measured(trial, tuple(_rows(str(text)) for text in content["passes"]))


def _rows(text: str) -> tuple[Row, ...]:
    rows = []
    for line in text.splitlines():
        at_s, prompt, answer, ttft_s, e2e_s, cached = line.split()
        rows.append(
            Row(float(at_s), int(prompt), int(answer), float(ttft_s), float(e2e_s), int(cached))
        )
    return tuple(rows)


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: float(f"{value:.5g}") if isinstance(value, float) else value
        for key, value in values.items()
    }


def told(errors: Mapping[str, Mapping[str, Spread]]) -> Sequence[str]:
    """The errors as a table for people."""
    names = {"ttft": "first token", "tpot": "per token", "e2e": "whole request"}
    lines = [f"{'':<16}{'fitted':>10}{'worst':>9}{'held out':>12}{'worst':>9}"]
    for kind, name in names.items():
        cells = ""
        for which, width in (("fitted", 10), ("held_out", 12)):
            spread = errors.get(which, {}).get(kind)
            mean = "–" if spread is None else f"{spread.mean_absolute:.1%}"
            worst = "–" if spread is None else f"{spread.worst:+.1%}"
            cells += f"{mean:>{width}}{worst:>9}"
        lines.append(f"{name:<16}{cells}")
    return lines
