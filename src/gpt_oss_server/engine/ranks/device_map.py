"""Which module goes on which device, for one process over several.

Knows: accelerate's device maps, `--device-map`, `--max-memory`, `--offload`. Does not know: KV,
steps, how weights are loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gpt_oss_server.engine.host_memory import free_bytes
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.errors import ConfigError, StartupError

# A rough host link (PCIe 4.0 x16), for the warning only: what is offloaded crosses it each step.
HOST_LINK_BYTES_S = 25e9
_OFFLOADED = ("cpu", "disk")


@dataclass(frozen=True)
class DeviceMap:
    """`modules` maps names of modules to devices as accelerate has them: a GPU's number, `cpu` or
    `disk`. `main` is the device of what is not offloaded and of inputs. `tensors` are the bytes of
    the model's parameters by name, each tensor once."""

    modules: Mapping[str, int | str]
    main: torch.device
    tensors: Mapping[str, int]

    @property
    def single(self) -> torch.device | None:
        """The one device, where there is only one and nothing is offloaded."""
        places = set(self.modules.values())
        here: int | str = "cpu" if self.main.type == "cpu" else self.main.index
        return self.main if places == {here} else None

    def offloaded(self, name: str) -> bool:
        """Whether the tensor of this name is kept elsewhere than where it is used."""
        place = self.place(name)
        return place == "disk" or (place == "cpu" and self.main.type != "cpu")

    def on_host(self, name: str) -> bool:
        """Whether it is kept in the host's memory, beside a GPU that uses it."""
        return self.offloaded(name) and self.place(name) == "cpu"

    def place(self, name: str) -> int | str:
        """Where the tensor of this name is kept: by the longest entry that it begins with."""
        for beginning in _beginnings(name):
            if beginning in self.modules:
                return self.modules[beginning]
        raise StartupError(f"the device map has no place for {name}")

    def knows(self, name: str) -> bool:
        """Whether it has a place."""
        return any(beginning in self.modules for beginning in _beginnings(name))


def device_map(spec: EngineSpec, blank: Any, dtype: torch.dtype, device: torch.device) -> DeviceMap:
    """The user's map as it is, else the one that accelerate computes for the model `blank`
    (without weights) and the memory that there is: of `spec.gpus` GPUs from `device` on, or of
    the host where that is the CPU.

    Raises StartupError for a map or a limit that cannot be, and for a model that only fits
    offloaded where that was not asked for; ConfigError for settings that contradict each other.
    """
    _check_settings(spec, device)
    tensors = {
        name: parameter.numel() * parameter.element_size()
        for name, parameter in blank.named_parameters()
    }
    if spec.device_map is not None:
        return _given(spec.device_map, tensors)
    if device.type == "cpu" and spec.offload != "disk" and spec.max_memory is None:
        return DeviceMap({"": "cpu"}, device, tensors)
    from accelerate import infer_auto_device_map  # type: ignore[import-untyped]
    from accelerate.utils import get_balanced_memory  # type: ignore[import-untyped]

    unsplit = list(blank._no_split_modules or ())
    limits = _limits(spec, device)
    modules: Mapping[str, int | str] = infer_auto_device_map(
        blank,
        get_balanced_memory(blank, limits, no_split_module_classes=unsplit, dtype=dtype),
        no_split_module_classes=unsplit,
        dtype=dtype,
    )
    gpus = sorted({place for place in modules.values() if isinstance(place, int)})
    main = torch.device("cuda", gpus[0]) if gpus else torch.device("cpu")
    found = DeviceMap(modules, main, tensors)
    _check_offload(spec, found)
    return found


def flat(found: DeviceMap, blank: Any) -> dict[str, int | str]:
    """The same map for the model `blank` with no entry inside another's module, as loaders take
    it. What has no parameters, and no place, is where inputs are."""
    entries: dict[str, int | str] = {}
    _flatten(blank, "", found, entries)
    return entries


def _flatten(module: nn.Module, name: str, found: DeviceMap, entries: dict[str, int | str]) -> None:
    names = [path for path, _ in module.named_parameters(name)]
    names += [path for path, _ in module.named_buffers(name) if found.knows(path)]
    places = {found.place(path) for path in names}
    if len(places) == 1 and not isinstance(module, nn.ModuleList):
        entries[name] = places.pop()
        return
    if not places and any(True for _ in module.buffers()):
        entries[name] = "cpu" if found.main.type == "cpu" else found.main.index
        return
    below = f"{name}." if name else ""
    for key, _ in module.named_parameters(recurse=False):
        entries[below + key] = found.place(below + key)
    for key, child in module.named_children():
        _flatten(child, below + key, found, entries)


def offload_warning(found: DeviceMap) -> str | None:
    """What offloading costs: bytes that cross to the device in each step."""
    names = [name for name in found.tensors if found.offloaded(name)]
    if not names:
        return None
    size = sum(found.tensors[name] for name in names)
    where = " and ".join(sorted({str(found.place(name)) for name in names}))
    return (
        f"{size / 2**30:,.3f} GiB of weights are offloaded to {where} and cross to {found.main} in "
        "every step, so for every token of a single request: at least "
        f"{size / HOST_LINK_BYTES_S:,.3f} s each at {HOST_LINK_BYTES_S / 1e9:.0f} GB/s"
    )


def _beginnings(name: str) -> list[str]:
    """The name, and what modules around it are called, inside out; `""` is the whole model."""
    pieces = name.split(".")
    return [".".join(pieces[:length]) for length in range(len(pieces), -1, -1)]


def _check_settings(spec: EngineSpec, device: torch.device) -> None:
    if spec.device_map is not None:
        for name, given in (("max-memory", spec.max_memory), ("offload", spec.offload != "none")):
            if given:
                raise ConfigError(
                    f"--{name} is for a device map that is computed: --device-map says already "
                    "where everything goes"
                )
    elif device.type == "cpu" and spec.offload == "cpu":
        raise ConfigError(
            "--offload cpu is for models on GPUs: with --device cpu everything is on the host"
        )


def _given(modules: Mapping[str, str], tensors: Mapping[str, int]) -> DeviceMap:
    """The user's own map: what it says is done, or refused, and never changed."""
    known: dict[str, int | str] = {}
    for name, place in modules.items():
        known[name] = _device(place)
    gpus = [place for place in known.values() if isinstance(place, int)]
    main = torch.device("cuda", gpus[0]) if gpus else torch.device("cpu")
    for gpu in gpus:
        if gpu >= torch.cuda.device_count():
            raise StartupError(
                f"--device-map: GPU {gpu} is not there, this machine has "
                f"{torch.cuda.device_count()}"
            )
    if not known or set(known.values()) == {"disk"}:
        raise StartupError("--device-map: nothing is on a device that computes")
    found = DeviceMap(known, main, tensors)
    for name in tensors:
        found.place(name)  # raises where there is none
    return found


def _device(place: str) -> int | str:
    if place in _OFFLOADED:
        return place
    number = str(place).removeprefix("cuda:")
    if not number.isdigit():
        raise StartupError(f"--device-map: {place!r} is no device: use a GPU's number, cpu or disk")
    return int(number)


def _limits(spec: EngineSpec, device: torch.device) -> dict[int | str, int]:
    """Bytes that weights may take by device: the user's, else the usable share of each GPU of those
    to use, and of the host what is free, where offloading was asked for or there is no GPU."""
    from accelerate.utils import convert_file_size_to_int

    limits: dict[int | str, int] = {}
    first, there = device.index or 0, torch.cuda.device_count() if device.type == "cuda" else 0
    for gpu in range(first, min(there, first + spec.gpus)):
        free, total = torch.cuda.mem_get_info(gpu)
        limits[gpu] = max(0, int(free - (1.0 - spec.gpu_memory_utilization) * total))
    on_host = spec.offload == "cpu" or not limits
    limits["cpu"] = free_bytes() if on_host else 0
    for name, size in (spec.max_memory or {}).items():
        key: int | str = int(name) if name.isdigit() else name
        if key not in limits:
            known = ", ".join(map(str, limits))
            raise StartupError(f"--max-memory: no device {name!r} is in use, only {known}")
        try:
            limits[key] = int(size) if size.isdigit() else int(convert_file_size_to_int(size))
        except ValueError as error:
            raise StartupError(f"--max-memory: {name}={size} is no size: {error}") from error
    return limits


def _check_offload(spec: EngineSpec, found: DeviceMap) -> None:
    places = set(found.modules.values())
    if "disk" in places and spec.offload != "disk":
        cure = "more GPUs, a smaller model, or --offload disk"
        if spec.offload == "none" and found.main.type == "cuda":
            cure = "more GPUs, a smaller model, or --offload cpu (slow)"
        raise StartupError(
            f"the model does not fit the devices that --gpu-mode auto may use: {cure}"
        )
