"""An engine over ranks without the server's processes: as little as equality needs.

Knows: every rank's part, one step at a time, layouts handed on by the leader. Does not know:
liveness, micro-batches, pools that differ by stage. Run inside ranks (`rank_processes`).
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from engine_runs import run
from gpt_oss_server.engine.attention.interface import ATTENTION_NAME, LayerKv, StepContext
from gpt_oss_server.engine.attention.tiled import TiledBackend
from gpt_oss_server.engine.core import EngineCore
from gpt_oss_server.engine.guided import Guides
from gpt_oss_server.engine.layout import register_attention
from gpt_oss_server.engine.outfit import Bounds, Outfit, info_of
from gpt_oss_server.engine.ranks.comms import Comms
from gpt_oss_server.engine.ranks.loading import load_part
from gpt_oss_server.engine.ranks.part import ModelPart
from gpt_oss_server.engine.ranks.shard import ExpertSplit
from gpt_oss_server.engine.runner import sample_live, spoiled
from gpt_oss_server.engine.sampler import Sampler
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.engine.step import StepLayout, to_device
from gpt_oss_server.engine.step_cost import StepCost
from gpt_oss_server.memory.kv import PoolPlan, plan_pools
from gpt_oss_server.types import Job


def spec_for(folder: str, **settings: Any) -> EngineSpec:
    """Small steps and pools on the CPU, as `engine_runs.cpu_core` has them."""
    defaults: dict[str, Any] = {
        "max_num_seqs": 8,
        "max_batch_tokens": 48,
        "kv_cache_bytes": 4 << 20,
        "device": "cpu",
    }
    return EngineSpec(folder=folder, **{**defaults, **settings})


def run_over_ranks(
    comms: Comms, spec: EngineSpec, jobs: Mapping[int, Job], experts: ExpertSplit = "width"
) -> Any:
    """Tokens by job on the leader (None on the others), and what this rank holds."""
    progress: list[str] = []
    part = load_part(spec, comms.place, comms, progress.append, experts)
    plan = plan_pools(
        part.whole, spec.kv_cache_bytes or 0, spec.block_size, spec.max_num_seqs, 48, 4
    )
    steps = RankSteps(comms, spec, part, plan)
    held = {
        "weights_bytes": part.loaded.weights_bytes,
        # Rotary tables; what kernels have in four bits are weights.
        "buffer_bytes": sum(
            b.numel() * b.element_size()
            for b in part.loaded.model.buffers()
            if b.is_floating_point()
        ),
        "layers": part.layers,
        "shape": part.shape,
        "warnings": part.warnings,
        "progress": progress,
    }
    if not comms.place.is_leader:
        steps.follow()
        return None, held
    info = info_of(spec, part.loaded, Bounds(2048, 48, 0), plan, "tiled", ())

    def make_runner(guides: Guides) -> RankSteps:
        steps.sampler = Sampler(part.loaded.vocab_size, comms.device, guides)
        return steps

    core = EngineCore(spec, outfit=Outfit(info, StepCost(), make_runner))
    results = run(core, jobs)
    steps.tell(b"")
    assert not [result.error for result in results.values() if result.error]
    return {key: result.tokens for key, result in results.items()}, held


class RankSteps:
    """One rank's side of every step."""

    depth = 1
    lookahead = False
    sampler: Any = None

    def __init__(self, comms: Comms, spec: EngineSpec, part: ModelPart, plan: PoolPlan) -> None:
        self._comms, self._part, self._size = comms, part, spec.block_size
        register_attention()
        part.loaded.model.set_attn_implementation(ATTENTION_NAME)
        self._layers = []
        for number, layer in zip(part.layers, part.shape.layers, strict=True):
            group = next(i for i, g in enumerate(plan.groups) if number in g.layer_indices)
            rows = (plan.groups[group].num_blocks, self._size, layer.kv_heads)
            self._layers.append(
                LayerKv(
                    group,
                    layer.window,
                    torch.zeros(*rows, layer.k_dim, dtype=part.loaded.dtype, device=comms.device),
                    torch.zeros(*rows, layer.v_dim, dtype=part.loaded.dtype, device=comms.device),
                )
            )
        self._backend = TiledBackend(self._size)
        self._launched: deque[StepLayout] = deque()

    def tell(self, message: bytes) -> None:
        for rank in range(self._comms.place.world):
            if rank != self._comms.place.rank:
                length = torch.tensor([len(message)], device=self._comms.device)
                self._comms.send(length, rank).wait()
                if message:
                    data = torch.from_numpy(np.frombuffer(bytearray(message), dtype=np.uint8))
                    self._comms.send(data.to(self._comms.device), rank).wait()

    def follow(self) -> None:
        """Take part in steps until there are no more."""
        leader = self._comms.place.leader
        while length := int(self._comms.receive((1,), torch.int64, leader)):
            data = self._comms.receive((length,), torch.uint8, leader)
            self._compute(pickle.loads(bytes(data.cpu().numpy())))

    def launch(self, layout: StepLayout) -> None:
        self.tell(pickle.dumps(layout))
        self._launched.append(layout)

    def sample(self, sampling: Any) -> None:
        """All is done by `collect`."""

    def collect(self, sampling: Any) -> Any:
        logits, step, written = self._compute(self._launched.popleft())
        return sample_live(self.sampler, logits, sampling), spoiled(step, written)

    def _compute(self, layout: StepLayout) -> Any:
        place, part = self._comms.place, self._part
        step = to_device(layout, self._size, self._comms.device)
        with torch.inference_mode():
            written = torch.zeros(len(step.token_ids), device=self._comms.device)
            context = StepContext(self._layers, step, self._backend.plan(step), written)
            hidden = None
            if not place.is_first_stage:
                size = (len(step.token_ids), part.whole.hidden_size)
                hidden = self._comms.receive(size, part.loaded.dtype, place.rank - 1)
            answer = part.forward(step, context, hidden)
            if not place.is_last_stage:
                assert answer is not None
                self._comms.send(answer, place.rank + 1).wait()
        return answer, step, written
