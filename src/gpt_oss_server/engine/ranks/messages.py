"""What a leader and its followers say to each other, in the frames of `wire`.

Knows: the messages. Does not know: sockets, processes, arrays; importing it loads no torch.
"""

from __future__ import annotations

import msgspec

from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.memory.architecture import LayerAttention


class Begin(msgspec.Struct, frozen=True, tag=True):
    """Leader to follower, first and once: who it is."""

    spec: EngineSpec
    rank: int
    tp: int
    pp: int


class Meet(msgspec.Struct, frozen=True, tag=True):
    """Where the leader's store listens. The group is joined, then the part is loaded."""

    port: int


class Allocate(msgspec.Struct, frozen=True, tag=True):
    """The pools, in the order of the step's tables: how many blocks each has here, and which
    layers of this rank (counted from its first) are in it."""

    blocks: list[int]
    members: list[list[int]]


class Step(msgspec.Struct, frozen=True, tag=True):
    """A `StepLayout` (see `packing`): int32 arrays as bytes; `tables` have `columns` columns."""

    token_ids: bytes
    sample_rows: bytes
    query_start: bytes
    seq_lens: bytes
    columns: int
    tables: list[bytes]


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """Follower to leader: its part is there. `budget_bytes` is what its device has left for KV;
    `geometry` are its layers as observed."""

    device: str
    first_layer: int
    geometry: tuple[LayerAttention, ...]
    weights_bytes: int
    budget_bytes: int


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The pools are allocated, and take so many bytes: steps may come."""

    kv_bytes: int


class Failed(msgspec.Struct, frozen=True, tag=True):
    """It cannot start and ends; one line that says what to do."""

    message: str
    exit_status: int


class Broken(msgspec.Struct, frozen=True, tag=True):
    """Its last words: a step raised. What happened to it, as the end of a sentence about it, and
    where (`faults.places`)."""

    message: str
    places: str = ""


class Pulse(msgspec.Struct, frozen=True, tag=True):
    """Now and then, from a thread of its own. `progress` grows with each layer and each call to
    another rank; `waiting`: it is inside such a call; `idle`: it has no step to compute."""

    progress: int
    waiting: bool
    idle: bool


ToFollower = Begin | Meet | Allocate | Step
ToLeader = Loaded | Ready | Failed | Broken | Pulse
