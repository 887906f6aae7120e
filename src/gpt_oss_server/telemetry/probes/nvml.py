"""The probe for NVIDIA GPUs: NVML through its own Python binding, `pynvml` (nvidia-ml-py).

Knows: which NVML calls are cheap, what a driver may refuse, slices (MIG). Does not know: CUDA,
torch, or when it is asked. The binding and the driver's library are loaded at the first `read`.

Processes are never listed: that takes milliseconds and the driver's lock. Memory "used" includes
what the driver keeps for itself, so used + free is the total.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from gpt_oss_server.ports import GpuReading

T = TypeVar("T")


class NvmlUnavailable(Exception):
    """NVML cannot be used on this machine; the message says why, in one line."""


class DriverInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The driver as NVML names it. `cuda` is the newest CUDA that it runs, such as `13.0`;
    `mig_gpus` the indices of the GPUs that are partitioned."""

    version: str | None
    cuda: str | None
    mig_gpus: tuple[str, ...]


@dataclass(frozen=True)
class _Device:
    """One GPU or slice, with the NVML handle that answers for it."""

    id: str
    handle: Any
    sliced: bool


class NvmlProbe:
    """Reads every GPU that CUDA would show to this process; a partitioned one slice by slice.

    Readings come in the order in which CUDA numbers the devices where `CUDA_DEVICE_ORDER` is
    `PCI_BUS_ID` (or all are alike); ids are those of `nvidia-smi`. A GPU that does not answer is
    left out. A slice has no utilisation, power or energy of its own.

    Args:
        visible: the value of `CUDA_VISIBLE_DEVICES`; None shows all.
    """

    def __init__(self, visible: str | None = None) -> None:
        self._visible = visible
        self._nvml: Any = None
        self._energy_mj: dict[str, tuple[int, int]] = {}

    def read(self) -> Sequence[GpuReading]:
        """Raises NvmlUnavailable when there is no NVML, or no GPU that answers."""
        nvml = self._open()
        try:
            devices = _shown(nvml, _devices(nvml), self._visible)
            readings = [self._reading(nvml, device) for device in devices]
        except nvml.NVMLError as error:
            self.close()
            raise NvmlUnavailable(f"NVML: {error}") from error
        found = tuple(reading for reading in readings if reading is not None)
        if not found:
            raise NvmlUnavailable("NVML shows no GPU that this process may use")
        return found

    def driver(self) -> DriverInfo:
        """What the driver says of itself. Raises NvmlUnavailable."""
        nvml = self._open()
        cuda = _optional(nvml, nvml.nvmlSystemGetCudaDriverVersion_v2)
        try:
            count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError as error:
            raise NvmlUnavailable(f"NVML: {error}") from error
        handles = (_optional(nvml, nvml.nvmlDeviceGetHandleByIndex, i) for i in range(count))
        return DriverInfo(
            version=_text(_optional(nvml, nvml.nvmlSystemGetDriverVersion)),
            cuda=None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
            mig_gpus=tuple(str(i) for i, h in enumerate(handles) if h and _partitioned(nvml, h)),
        )

    def close(self) -> None:
        nvml, self._nvml = self._nvml, None
        if nvml is not None:
            with contextlib.suppress(nvml.NVMLError):
                nvml.nvmlShutdown()

    def _open(self) -> Any:
        if self._nvml is None:
            try:
                nvml = importlib.import_module("pynvml")
            except ImportError as error:
                raise NvmlUnavailable("the Python package nvidia-ml-py is missing") from error
            try:
                nvml.nvmlInit()
            except nvml.NVMLError as error:
                raise NvmlUnavailable(f"NVML: {error}") from error
            self._nvml = nvml
        return self._nvml

    def _reading(self, nvml: Any, device: _Device) -> GpuReading | None:
        """What `device` says; None when it does not say anything."""
        handle = device.handle
        uuid = _text(_optional(nvml, nvml.nvmlDeviceGetUUID, handle))
        memory = _optional(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
        if uuid is None and memory is None:
            return None
        busy = power = energy = None
        if not device.sliced:
            busy = _optional(nvml, nvml.nvmlDeviceGetUtilizationRates, handle)
            power = _optional(nvml, nvml.nvmlDeviceGetPowerUsage, handle)
            energy = _optional(nvml, nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
        celsius = _optional(nvml, nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
        return GpuReading(
            id=device.id,
            name=_text(_optional(nvml, nvml.nvmlDeviceGetName, handle)),
            uuid=uuid,
            total_bytes=None if memory is None else int(memory.total),
            used_bytes=None if memory is None else int(memory.used),
            free_bytes=None if memory is None else int(memory.free),
            utilization=None if busy is None else busy.gpu / 100,
            power_w=None if power is None else power / 1000,
            energy_j=self._energy_j(uuid or device.id, energy),
            temperature_c=None if celsius is None else float(celsius),
        )

    def _energy_j(self, key: str, counter_mj: int | None) -> float | None:
        """Joules since the first reading, from a counter that starts anew with the driver."""
        if counter_mj is None:
            return None
        last_mj, total_mj = self._energy_mj.get(key, (counter_mj, 0))
        total_mj += counter_mj - last_mj if counter_mj >= last_mj else counter_mj
        self._energy_mj[key] = (counter_mj, total_mj)
        return total_mj / 1000


def _devices(nvml: Any) -> list[_Device]:
    """All GPUs in the driver's order, a partitioned one replaced by its slices."""
    devices: list[_Device] = []
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = _optional(nvml, nvml.nvmlDeviceGetHandleByIndex, index)
        if handle is None:
            continue
        slices = _slices(nvml, index, handle) if _partitioned(nvml, handle) else []
        devices += slices or [_Device(str(index), handle, sliced=False)]
    return devices


def _slices(nvml: Any, index: int, parent: Any) -> list[_Device]:
    count = _optional(nvml, nvml.nvmlDeviceGetMaxMigDeviceCount, parent) or 0
    found = (
        (i, _optional(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex, parent, i))
        for i in range(count)
    )
    return [_Device(f"{index}/{i}", handle, sliced=True) for i, handle in found if handle]


def _partitioned(nvml: Any, handle: Any) -> bool:
    mode = _optional(nvml, nvml.nvmlDeviceGetMigMode, handle)
    return mode is not None and mode[0] == nvml.NVML_DEVICE_MIG_ENABLE


def _shown(nvml: Any, devices: list[_Device], visible: str | None) -> list[_Device]:
    """What `CUDA_VISIBLE_DEVICES` leaves, in its order: indices or beginnings of UUIDs, up to
    the first entry that names no device."""
    if visible is None:
        return devices
    chosen: list[_Device] = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry.isdigit():
            named = [d for d in devices if d.id.partition("/")[0] == entry]
        else:
            named = [
                d
                for d in devices
                if entry
                and (_text(_optional(nvml, nvml.nvmlDeviceGetUUID, d.handle)) or "").startswith(
                    entry
                )
            ]
        if not named:
            break
        chosen += [device for device in named if device not in chosen]
    return chosen


def _optional(nvml: Any, call: Callable[..., T], *arguments: Any) -> T | None:
    """The call's answer; None where this GPU or driver does not give it.

    NVML no longer being there is not such an answer: that is raised.
    """
    try:
        return call(*arguments)
    except nvml.NVMLError as error:
        if error.value == nvml.NVML_ERROR_UNINITIALIZED:
            raise
        return None


def _text(value: str | bytes | None) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
