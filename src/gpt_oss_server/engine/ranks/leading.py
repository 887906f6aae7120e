"""The leading rank: makes all ranks ready for steps, and runs them with the others.

Knows: the order of a start, the common plan of pools, which steps are where. Does not know:
processes, sockets, scheduling.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Seq

import msgspec

from gpt_oss_server.engine.guided import Guides
from gpt_oss_server.engine.host_memory import check_room, free_bytes
from gpt_oss_server.engine.outfit import Outfit, info_of, plan_within
from gpt_oss_server.engine.phases import Phases, summary
from gpt_oss_server.engine.ranks.comms import Comms, open_store
from gpt_oss_server.engine.ranks.crew import Crew, place_of
from gpt_oss_server.engine.ranks.loading import rank_device
from gpt_oss_server.engine.ranks.messages import Allocate, Loaded, Meet, Ready
from gpt_oss_server.engine.ranks.outfit import CALL_TIMEOUT_S, Mine, load
from gpt_oss_server.engine.ranks.packing import pack
from gpt_oss_server.engine.ranks.pools import CommonPlan, Share, common_plan, overdrawn
from gpt_oss_server.engine.ranks.rank import Expected, Rank
from gpt_oss_server.engine.runner import Runner, make_backend, sample_live, spoiled
from gpt_oss_server.engine.sampler import Sampled, Sampler
from gpt_oss_server.engine.sequence import Sequence
from gpt_oss_server.engine.single import MIB, sampler_of
from gpt_oss_server.engine.step import StepLayout
from gpt_oss_server.engine.step_cost import step_cost
from gpt_oss_server.types import RankInfo


def equip(crew: Crew, progress: Callable[[str], None]) -> Outfit:
    """Have every rank load its part and allocate its pools. Raises StartupError."""
    spec, place = crew.spec, crew.place
    device = rank_device(spec, place)
    backend = make_backend(spec.attention_backend, spec.block_size, [device], progress).name
    progress(f"waiting for {spec.world} ranks")
    store = open_store(CALL_TIMEOUT_S)
    crew.tell(Meet(store.port))
    comms = Comms.open(place, device, store, CALL_TIMEOUT_S)
    crew.activity.calls = lambda: (comms.entered, comms.left)
    phases = Phases()
    mine = load(spec, place, comms, progress, phases)
    loaded = {**crew.hear(Loaded), place.rank: mine.report()}
    progress("allocating the KV pools")
    with phases.during("pools"):
        plan = _plan(mine, loaded, progress)
        crew.allocate(lambda rank: Allocate(plan.blocks, plan.members(rank)))
        rank = mine.allocate(plan.blocks, plan.members(place.rank), crew.activity)
        ready = {**crew.hear(Ready), place.rank: Ready(rank.kv_bytes)}
    progress(f"start-up: {summary(phases.passed)}")
    crew.activity.loading = False
    model = mine.part.loaded

    def make_runner(guides: Guides) -> Runner:
        return CrewRunner(crew, rank, sampler_of(model, guides))

    ranks = _infos(crew, loaded, ready, plan)
    info = info_of(spec, model, mine.bounds, plan.whole, backend, ranks, mine.profile)
    info = msgspec.structs.replace(info, startup=phases.passed)
    return Outfit(info, step_cost(model.active_parameters, mine.part.shape), make_runner)


class CrewRunner:
    """The leader's steps: sent to the followers when launched, computed here when collected."""

    lookahead = False

    def __init__(self, crew: Crew, rank: Rank, sampler: Sampler) -> None:
        self.depth = crew.spec.depth
        self.sampler = sampler
        self._crew = crew
        self._rank = rank
        self._launched: deque[Expected] = deque()

    def launch(self, layout: StepLayout) -> None:
        # Counted first: a follower that is stopped may not even take the message.
        self._crew.activity.steps_taken += 1
        self._crew.tell(pack(layout))
        self._launched.append(self._rank.expect(layout))

    def sample(self, sampling: Seq[Sequence | None]) -> None:
        """All is done by `collect`."""

    def collect(self, sampling: Seq[Sequence | None]) -> tuple[Sampled, frozenset[int]]:
        step, logits, written = self._rank.compute(self._launched.popleft())
        if logits is None:
            raise RuntimeError("the leading rank has no logits")
        outcome = sample_live(self.sampler, logits, sampling), spoiled(step, written)
        self._crew.activity.steps_done += 1
        return outcome


def _plan(mine: Mine, loaded: dict[int, Loaded], progress: Callable[[str], None]) -> CommonPlan:
    """Raises StartupError where a rank has too little memory, or all of them on one host; says so
    where pools of a size that was asked for leave a GPU too little for steps."""
    spec, part = mine.spec, mine.part
    shares = [
        Share(rank, said.first_layer, said.geometry, said.budget_bytes)
        for rank, said in sorted(loaded.items())
    ]
    plan = common_plan(
        shares,
        part.shape,
        spec.block_size,
        part.loaded.dtype.itemsize,
        lambda shape, budget: plan_within(
            spec, part.loaded, shape, mine.bounds.batch_tokens, budget
        ),
        spec.kv_cache_bytes,
    )
    if part.loaded.device.type == "cpu":
        check_room(plan.whole.total_bytes, free_bytes())
    elif spec.kv_cache_bytes:
        for rank, missing in overdrawn(plan, shares).items():
            progress(
                f"warning: rank {rank} has {missing / MIB:.1f} MiB more of KV cache than its "
                f"weights and steps leave of {loaded[rank].device} at --gpu-memory-utilization "
                f"{spec.gpu_memory_utilization:g}: choose a smaller --kv-cache-memory"
            )
    return plan


def _infos(
    crew: Crew, loaded: dict[int, Loaded], ready: dict[int, Ready], plan: CommonPlan
) -> tuple[RankInfo, ...]:
    """What each rank says that it holds; what a block takes there is as planned."""
    pids = crew.pids
    return tuple(
        RankInfo(
            rank=rank,
            device=said.device,
            pid=pids[rank],
            stage=place_of(crew.spec, rank).stage,
            tp_rank=place_of(crew.spec, rank).tp_rank,
            first_layer=said.first_layer,
            layers=len(said.geometry),
            weights_bytes=said.weights_bytes,
            kv_bytes=ready[rank].kv_bytes,
            block_bytes=tuple(group.block_bytes for group in plan.local[rank].groups),
        )
        for rank, said in sorted(loaded.items())
    )
