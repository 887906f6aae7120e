"""The GPUs that are there, and every way to lay replicas of a model over them.

Knows: GPUs by type, machines of some GPUs each, which replicas fit, all fleets of them. Does not
know: workloads, policies, which fleet is any good.

A replica lies within one machine, and has a power of two of its GPUs, or as many as a machine or
what is there of a type has. It is a tensor or a pipeline one; both at once (tp × pp) only where
neither fits alone. A fleet uses of each type as many GPUs as replicas of it fit; types on which
nothing fits stay idle, which is said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.memory.errors import ImpossibleSplit
from gpt_oss_server.simulate.cost.gpu_types import GpuType, gpu_type
from gpt_oss_server.simulate.cost.layout import DoesNotFit, Replica, Shape
from gpt_oss_server.simulate.fleet.pools import Fleet, Pool

MACHINE_GPUS = 8
MANY_GPUS = 16
MOST_GPUS, MOST_LAYOUTS = 4096, 200_000
_PART = re.compile(r"(\d{1,9})(?:@(\S+))?")

LayOut = Callable[[Shape], Replica]
"""Puts the model on a shape; raises as `layout.lay_out` does."""


@dataclass(frozen=True)
class Inventory:
    """So many GPUs of each type, in machines of `machine_gpus`. Raises ConfigError."""

    stock: tuple[tuple[GpuType, int], ...]
    machine_gpus: int = MACHINE_GPUS

    def __post_init__(self) -> None:
        if self.machine_gpus < 1:
            raise ConfigError(f"a machine has at least one GPU, not {self.machine_gpus}")
        for gpu, count in self.stock:
            if count < 1:
                raise ConfigError(f"--gpus {count}@{gpu.name}: at least one GPU is needed")
            if count > MOST_GPUS:
                raise ConfigError(f"--gpus {count}@{gpu.name}: at most {MOST_GPUS} can be planned")

    @property
    def gpus(self) -> int:
        return sum(count for _, count in self.stock)

    @property
    def name(self) -> str:
        """As `8 h100` or `4 h100 + 4 l40s`."""
        return " + ".join(f"{count} {gpu.name}" for gpu, count in self.stock)

    def machines(self, count: int) -> list[int]:
        """The GPUs of each machine that holds so many of one type: all full but the last."""
        whole, rest = divmod(count, self.machine_gpus)
        return [self.machine_gpus] * whole + ([rest] if rest else [])

    def smaller(self) -> Iterator[Inventory]:
        """Every part of it, itself included, in no order."""
        for counts in product(*(range(count + 1) for _, count in self.stock)):
            stock = tuple(
                (gpu, count) for (gpu, _), count in zip(self.stock, counts, strict=True) if count
            )
            if stock:
                yield Inventory(stock, self.machine_gpus)


def parse_gpus(
    text: str, default_gpu: str | GpuType = "h100", machine_gpus: int = MACHINE_GPUS
) -> Inventory:
    """`8`, `8@h100`, `4@h100+4@l40s`. Raises ConfigError saying what is not understood."""
    default = gpu_type(default_gpu) if isinstance(default_gpu, str) else default_gpu
    stock: dict[str, tuple[GpuType, int]] = {}
    for part in text.split("+"):
        match = _PART.fullmatch(part.strip())
        if match is None:
            raise ConfigError(f"--gpus {part.strip()}: write COUNT or COUNT@TYPE, joined by +")
        count, name = match.groups()
        gpu = default if name in (None, default.name) else gpu_type(name)
        known, already = stock.get(gpu.name, (gpu, 0))
        if known != gpu:
            raise ConfigError(f"--gpus {text}: two types are called {gpu.name}")
        stock[gpu.name] = (gpu, already + int(count))
    return Inventory(tuple(stock.values()), machine_gpus)


@dataclass(frozen=True)
class Refusal:
    """A shape that cannot be: why, and how many bytes each GPU lacks where it is memory."""

    shape: Shape
    reason: str
    missing_bytes: int | None


@dataclass(frozen=True)
class Fitting:
    """The replicas that fit on an inventory's GPUs, and the shapes that do not."""

    replicas: tuple[Replica, ...]
    refused: tuple[Refusal, ...]


def fitting(inventory: Inventory, lay_out: LayOut) -> Fitting:
    """Try every shape. `ShapeUnknown` and the like pass through: they concern the model."""
    replicas: list[Replica] = []
    refused: list[Refusal] = []
    for gpu, count in inventory.stock:
        for size in _sizes(min(count, inventory.machine_gpus)):
            pure = [Shape(gpu, size, 1)] + ([Shape(gpu, 1, size)] if size > 1 else [])
            found = _tried(pure, lay_out, refused)
            if not found:
                found = _tried(
                    [Shape(gpu, size // pp, pp) for pp in range(2, size) if size % pp == 0],
                    lay_out,
                    refused,
                )
            replicas += found
    return Fitting(tuple(replicas), tuple(refused))


def fleets(inventory: Inventory, replicas: Sequence[Replica]) -> Iterator[Fleet]:
    """Every fleet to whose GPUs no further replica could be added, uniform ones first. Raises
    ConfigError for more than can be gone through."""
    per_type: list[list[tuple[Pool, ...]]] = []
    for gpu, count in inventory.stock:
        mine = [replica for replica in replicas if replica.shape.gpu == gpu]
        # Where there are fewer GPUs than any replica has, the one packing is of none.
        packings = filter(None, _packings(mine, count, inventory.machines(count)) if mine else ())
        ordered = sorted(packings, key=_plainness)
        if ordered:
            per_type.append(ordered)
    if not per_type:
        return
    if prod(map(len, per_type)) > MOST_LAYOUTS:
        raise ConfigError(
            f"--gpus: there are more than {MOST_LAYOUTS:,} layouts of {inventory.name}: give fewer "
            "types or GPUs"
        )
    for parts in product(*per_type):
        yield Fleet(tuple(pool for part in parts for pool in part))


def _sizes(most: int) -> list[int]:
    powers = [1 << power for power in range(most.bit_length())]
    return sorted({size for size in (*powers, most) if size <= most})


def _tried(shapes: Sequence[Shape], lay_out: LayOut, refused: list[Refusal]) -> list[Replica]:
    found = []
    for shape in shapes:
        try:
            found.append(lay_out(shape))
        except DoesNotFit as error:
            refused.append(Refusal(shape, str(error), error.missing_bytes))
        except ImpossibleSplit as error:
            refused.append(Refusal(shape, str(error), None))
    return found


def _packings(
    replicas: Sequence[Replica], count: int, machines: Sequence[int]
) -> Iterator[tuple[Pool, ...]]:
    """Pools of these replicas on `count` GPUs of one type in these machines, small replicas first.
    Where many GPUs are there, of at most two shapes."""
    ordered = sorted(replicas, key=lambda replica: (replica.shape.gpus, replica.shape.pp))
    least = ordered[0].shape.gpus
    most_pools = 3 if count <= MANY_GPUS else 2
    most_left = len(machines) * (least - 1)

    def fill(place: int, left: int, pools: tuple[Pool, ...]) -> Iterator[tuple[Pool, ...]]:
        if left <= most_left:
            room = _room_left(pools, machines)
            if room is not None and max(room) < least:
                yield pools
                return
        if place == len(ordered):
            return
        size = ordered[place].shape.gpus
        most = left // size if len(pools) < most_pools else 0
        for number in range(most + 1):
            taken = (*pools, Pool(ordered[place], number)) if number else pools
            yield from fill(place + 1, left - number * size, taken)

    return fill(0, count, ())


def _room_left(pools: Sequence[Pool], machines: Sequence[int]) -> list[int] | None:
    """What is free on each machine with these replicas on them, placed as they will be started: the
    largest first, each on the first machine that has room. None: they do not go in so."""
    room = list(machines)
    for pool in sorted(pools, key=lambda pool: -pool.replica.shape.gpus):
        size, left = pool.replica.shape.gpus, pool.count
        for place, free in enumerate(room):
            taken = min(left, free // size)
            room[place] -= taken * size
            left -= taken
        if left:
            return None
    return room


def _plainness(pools: tuple[Pool, ...]) -> tuple[int, ...]:
    return (len(pools), *(pool.replica.shape.gpus for pool in pools))
