"""GPU types as data: what the maker states, and what was fitted to measurements.

Knows: the fields of a GPU's file and where the packaged ones are. Does not know: models, steps, or
GPUs of which less is known (`doctor.gpu_specs` has those, and reads these files for the others).
Figures are per GPU: bytes, bytes per second, dense bf16 multiply-adds counted as two operations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from gpt_oss_server.errors import ConfigError

DEFAULT_BANDWIDTH_EFFICIENCY = 0.87
"""Share of the stated bandwidth that a step attains on a GPU without measurements: the mean of
the calibrated types."""


@dataclass(frozen=True)
class GpuType:
    """One kind of GPU. `link_bytes_s` is one direction between two GPUs of a machine, over `link`
    (NVLink or PCIe). `driver_name` are the words by which drivers name it ("" : none are known).

    `bandwidth_efficiency` is the share of `bandwidth_bytes_s` that model steps attain;
    `calibrated` says whether it was fitted to measurements of this type.
    """

    name: str
    title: str
    memory_bytes: int
    bandwidth_bytes_s: float
    bf16_flops_s: float
    link_bytes_s: float
    source: str
    bandwidth_efficiency: float = DEFAULT_BANDWIDTH_EFFICIENCY
    calibrated: bool = False
    driver_name: str = ""
    link: str = "PCIe"

    def __post_init__(self) -> None:
        for name in ("memory_bytes", "bandwidth_bytes_s", "bf16_flops_s", "link_bytes_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"gpu {self.name}: {name} must be above 0, and finite")
        if not 0 < self.bandwidth_efficiency <= 1:
            raise ConfigError(f"gpu {self.name}: bandwidth_efficiency must be above 0, at most 1")
        if self.link not in ("NVLink", "PCIe"):
            raise ConfigError(f"gpu {self.name}: link must be NVLink or PCIe, not {self.link}")


def gpu_names() -> tuple[str, ...]:
    """The packaged types, sorted."""
    folder = resources.files(__package__) / "gpus"
    return tuple(sorted(f.name[: -len(".yaml")] for f in folder.iterdir() if _is_data(f.name)))


def gpu_type(name: str) -> GpuType:
    """A packaged type by its name, or one from a YAML file by its path.

    Raises ConfigError: no such type or file, or a file that does not describe a GPU.
    """
    if name.endswith((".yaml", ".yml")):
        try:
            text = Path(name).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot read {name}: {error.strerror}") from error
        except ValueError as error:  # also a name that no file can have
            raise ConfigError(f"cannot read {name}: not UTF-8 text") from error
    elif name in gpu_names():
        file = resources.files(__package__) / "gpus" / f"{name}.yaml"
        text = file.read_text(encoding="utf-8")
    else:
        known = ", ".join(gpu_names())
        raise ConfigError(f"unknown GPU type {name}: use one of {known}, or a .yaml file")
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no such date
        raise ConfigError(f"gpu {name}: {str(error).splitlines()[0]}") from error
    return parse_gpu(name, content)


def parse_gpu(name: str, content: object) -> GpuType:
    """A GPU from a file's content. Raises ConfigError naming the field at fault."""
    if not isinstance(content, Mapping):
        raise ConfigError(f"gpu {name}: not a mapping of fields")
    known = {field.name: field.type for field in fields(GpuType)}
    unknown = sorted(str(key) for key in content if key not in known)
    if unknown:
        raise ConfigError(f"gpu {name}: unknown field {', '.join(unknown)}")
    values = {key: _value(name, key, str(known[key]), content[key]) for key in content}
    try:
        return GpuType(**values)
    except TypeError as error:
        raise ConfigError(f"gpu {name}: {error}".replace("GpuType.__init__() ", "")) from error


def _value(name: str, key: str, kind: str, value: Any) -> Any:
    """YAML 1.1 reads `3.35e12` as text; everything else must have its field's own type."""
    try:
        if kind in ("int", "float") and not isinstance(value, bool):
            number = float(value)
            return int(number) if kind == "int" else number
    except (TypeError, ValueError, OverflowError):
        pass
    if (kind == "bool" and isinstance(value, bool)) or (kind == "str" and isinstance(value, str)):
        return value
    raise ConfigError(f"gpu {name}: {key} must be a {kind}, not {value!r}")


def _is_data(name: str) -> bool:
    return name.endswith(".yaml")
