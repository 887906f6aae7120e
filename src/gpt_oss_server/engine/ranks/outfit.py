"""What one rank steps with, made in this process: its part, its share of the pools.

Knows: the order in which a rank is made ready, the same for leader and followers. Does not know:
processes, sockets, who leads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from gpt_oss_server.engine.layout import allocate_layers
from gpt_oss_server.engine.meter import Meter, make_meter
from gpt_oss_server.engine.outfit import Bounds, bounds_of, kv_budget, read_config
from gpt_oss_server.engine.phases import Phases
from gpt_oss_server.engine.profile import Profile
from gpt_oss_server.engine.ranks.comms import Comms
from gpt_oss_server.engine.ranks.liveness import Activity
from gpt_oss_server.engine.ranks.loading import load_part
from gpt_oss_server.engine.ranks.messages import Loaded
from gpt_oss_server.engine.ranks.part import ModelPart
from gpt_oss_server.engine.ranks.place import Place
from gpt_oss_server.engine.ranks.rank import Rank
from gpt_oss_server.engine.ranks.trial import Trial, in_flight_bytes
from gpt_oss_server.engine.runner import make_backend
from gpt_oss_server.engine.single import say_profile
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.memory.kv import PoolGroup, PoolPlan

# Torch's own bound on a call between ranks. Who is lost is found out sooner, by `liveness`; this
# only must never end a step that is merely long.
CALL_TIMEOUT_S = 24 * 3600.0


@dataclass(frozen=True)
class Mine:
    """A loaded part, and how many bytes of KV this rank has room for beside it."""

    spec: EngineSpec
    part: ModelPart
    comms: Comms
    bounds: Bounds
    budget_bytes: int
    profile: Profile | None = None

    def report(self) -> Loaded:
        """What the leader must know of it."""
        loaded = self.part.loaded
        return Loaded(
            device=str(loaded.device),
            first_layer=self.part.layers.start,
            geometry=self.part.shape.layers,
            weights_bytes=loaded.weights_bytes,
            budget_bytes=self.budget_bytes,
        )

    def allocate(self, blocks: list[int], members: list[list[int]], activity: Activity) -> Rank:
        """The rank, over pools of so many blocks with these of its layers."""
        shape, loaded, size = self.part.shape, self.part.loaded, self.spec.block_size
        groups = tuple(
            PoolGroup(
                name=str(g),
                window=shape.layers[indices[0]].window if indices else None,
                layer_indices=tuple(indices),
                num_blocks=count,
                block_bytes=0,  # what is allocated follows from the layers
            )
            for g, (count, indices) in enumerate(zip(blocks, members, strict=True))
        )
        plan = PoolPlan(groups, token_capacity=0)
        layers = allocate_layers(plan, shape, size, loaded.dtype, loaded.device)
        backend = make_backend(self.spec.attention_backend, size, [loaded.device])
        return Rank(self.part, layers, backend, self.comms, activity, self.spec)


def load(
    spec: EngineSpec,
    place: Place,
    comms: Comms,
    progress: Callable[[str], None],
    phases: Phases | None = None,
    meter_of: Callable[[torch.device], Meter | None] = make_meter,
) -> Mine:
    """Load this rank's part and, where its device has a meter, run the largest steps. All ranks
    call it together. Raises StartupError."""
    phases = phases or Phases()
    with phases.during("load"):
        part = load_part(spec, place, comms, progress)
    for line in part.warnings:
        progress(f"warning: {line}")
    bounds = bounds_of(spec, read_config(spec), part.loaded)
    aside, profile = bounds.activations_bytes, None
    meter = meter_of(part.loaded.device)
    if meter is not None:
        progress("profiling the largest steps")
        backend = make_backend(spec.attention_backend, spec.block_size, [part.loaded.device])
        trial = Trial(spec, part, backend, comms, bounds)
        with phases.during("profile"):
            profile = trial.profiled(meter)
        say_profile(profile, bounds.activations_bytes, progress)
        aside = profile.set_aside_bytes + in_flight_bytes(spec, part, place, bounds)
        progress("warming up")
        with phases.during("warm"):
            trial.warm()
    budget = kv_budget(spec, part.loaded, aside)
    return Mine(spec, part, comms, bounds, budget, profile)
