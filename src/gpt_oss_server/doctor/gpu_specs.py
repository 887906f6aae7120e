"""How fast GPUs read their memory and reach each other, by the name that the driver gives them.

Source: NVIDIA's data sheets of these products. Memory bandwidth is the peak; the link is one
direction of NVLink between two GPUs (half of what data sheets call its bandwidth), or of the PCIe
slot. Those that the simulator has data of (`simulate/cost/gpus`) are read from there: each figure
stands in one place. Knows: names and figures. Does not know: which GPUs there are, or what share of
a peak is reached (`pace`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from gpt_oss_server.simulate.cost.gpu_types import GpuType, gpu_names, gpu_type

Link = Literal["NVLink", "PCIe"]


@dataclass(frozen=True)
class GpuSpec:
    """`memory_gb_s` and `link_gb_s` are 10^9 bytes per second. `known` is False where they are
    assumed; `simulated_as` is the simulator's name of the kind, if it has one."""

    name: str
    memory_gb_s: float
    link: Link
    link_gb_s: float
    known: bool = True
    simulated_as: str | None = None


# Too little is stated here of these to simulate them.
OTHERS: tuple[GpuSpec, ...] = (
    GpuSpec("H200 NVL", 4800, "NVLink", 450),
    GpuSpec("GH200", 4000, "NVLink", 450),
    GpuSpec("H100 PCIe", 2000, "PCIe", 64),
    GpuSpec("H100 NVL", 3900, "NVLink", 300),
    GpuSpec("A100-SXM4-40GB", 1555, "NVLink", 300),
    GpuSpec("A100 80GB PCIe", 1935, "PCIe", 32),
    GpuSpec("A100-PCIE-40GB", 1555, "PCIe", 32),
    GpuSpec("V100-SXM2", 900, "NVLink", 150),
    GpuSpec("V100", 900, "PCIe", 16),
    GpuSpec("L40", 864, "PCIe", 32),
    GpuSpec("L4", 300, "PCIe", 32),
    GpuSpec("A10G", 600, "PCIe", 32),
    GpuSpec("A10", 600, "PCIe", 32),
    GpuSpec("A40", 696, "PCIe", 32),
    GpuSpec("T4", 320, "PCIe", 16),
    GpuSpec("RTX PRO 6000", 1792, "PCIe", 64),
    GpuSpec("RTX 6000 Ada", 960, "PCIe", 32),
    GpuSpec("RTX A6000", 768, "PCIe", 32),
    GpuSpec("RTX 5090", 1792, "PCIe", 64),
    GpuSpec("RTX 3090", 936, "PCIe", 32),
)
ASSUMED = GpuSpec("GPU of an unknown kind", 2000, "PCIe", 32, known=False)


@lru_cache(maxsize=1)
def specs() -> tuple[GpuSpec, ...]:
    """All kinds that are known; of several names that occur in a driver's, the first one counts:
    the one of most words, then the longest."""
    simulated = [_of_type(gpu_type(name)) for name in gpu_names()]
    return tuple(
        sorted((*simulated, *OTHERS), key=lambda s: (-len(s.name.split()), -len(s.name), s.name))
    )


def spec_of(names: Sequence[str | None], *, reach_each_other: bool | None = None) -> GpuSpec:
    """The slowest of these GPUs, since a model spread over them waits for it; `ASSUMED` where one
    is not known. GPUs that cannot reach each other (`reach_each_other` is False) exchange data
    through the host, whatever their link."""
    found = [_spec(name) for name in names] or [ASSUMED]
    spec = min(found, key=lambda one: (one.known, one.memory_gb_s))
    if reach_each_other is False and spec.link == "NVLink":
        return replace(spec, link="PCIe", link_gb_s=ASSUMED.link_gb_s)
    return spec


def _of_type(gpu: GpuType) -> GpuSpec:
    """What the simulator's data says of a kind."""
    return GpuSpec(
        name=gpu.driver_name,
        memory_gb_s=gpu.bandwidth_bytes_s / 1e9,
        link="NVLink" if gpu.link == "NVLink" else "PCIe",
        link_gb_s=gpu.link_bytes_s / 1e9,
        simulated_as=gpu.name,
    )


def _spec(name: str | None) -> GpuSpec:
    words = (name or "").split()
    for spec in specs():
        if _within(spec.name, words):
            return spec
    return ASSUMED


def _within(name: str, words: list[str]) -> bool:
    """Whether the words of `name` are words of the driver's, one after the other; the last may be
    the beginning of one that goes on after a hyphen (`V100-SXM2` in `V100-SXM2-32GB`)."""
    wanted = name.split()
    for start in range(len(words) - len(wanted) + 1):
        part = words[start : start + len(wanted)]
        whole = part[:-1] == wanted[:-1]
        if whole and (part[-1] == wanted[-1] or part[-1].startswith(wanted[-1] + "-")):
            return True
    return False
