"""Stages compute different steps at the same time: proved without a clock, by stages that wait for
each other."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from gpt_oss_server.engine.attention.tiled import TiledBackend
from gpt_oss_server.engine.ranks.comms import Comms
from gpt_oss_server.engine.ranks.follower import Follower
from gpt_oss_server.engine.ranks.leading import CrewRunner
from gpt_oss_server.engine.ranks.liveness import Activity
from gpt_oss_server.engine.ranks.messages import Meet
from gpt_oss_server.engine.ranks.rank import Rank
from gpt_oss_server.engine.sampler import Sampled
from gpt_oss_server.engine.sequence import Sequence
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.engine.step import HostLayout, StepLayout
from gpt_oss_server.types import Job, SamplingParams
from rank_processes import stages

WIDTH, VOCAB, STEPS = 4, 8, 7
PATIENCE_S = 60.0


def layout(number: int) -> StepLayout:
    """A step of one token, whose id is the step's number."""
    return StepLayout(
        np.array([number]),
        np.array([0]),
        HostLayout(np.array([0, 1]), np.array([1]), (np.zeros((1, 1), dtype=np.int32),)),
    )


@dataclass
class Lockstep:
    """A part that tells when it begins a step, and does not end one before the other stage has
    begun the step that is `ahead` of it."""

    comms: Comms
    begun: list[Any]
    ahead: int
    steps: int
    loaded: Any = field(init=False)
    shape: Any = field(default_factory=lambda: SimpleNamespace(hidden_size=WIDTH))

    def __post_init__(self) -> None:
        model = SimpleNamespace(set_attn_implementation=lambda name: None)
        self.loaded = SimpleNamespace(
            model=model, dtype=torch.float32, device=torch.device("cpu"), vocab_size=VOCAB
        )

    def forward(self, step: Any, context: Any, hidden: torch.Tensor | None) -> torch.Tensor:
        number = int(step.token_ids[0])
        if hidden is None:
            self.begun[number].set()
            return torch.full((1, WIDTH), float(number))
        assert hidden.tolist() == [[float(number)] * WIDTH]
        other = number + self.ahead
        if other < self.steps and not self.begun[other].wait(PATIENCE_S):
            raise RuntimeError(f"nobody computes step {other} while step {number} is here")
        return torch.nn.functional.one_hot(torch.tensor([number % VOCAB]), VOCAB).float()


class Greedy:
    """A sampler that takes the best."""

    def sample(self, logits: torch.Tensor, seqs: list[Sequence]) -> Sampled:
        best = logits.argmax(-1).tolist()
        return Sampled(best, [True] * len(best), [None] * len(best))


def take_part(comms: Comms, orders: Any, begun: list[Any], depth: int) -> list[int]:
    """One stage's side. The leader has as many steps in flight as `depth` allows."""
    spec = EngineSpec(folder="", gpu_mode="pipeline", gpus=2, micro_batches=depth)
    activity = Activity()
    part: Any = Lockstep(comms, begun, depth - 1, STEPS)
    rank = Rank(part, [], TiledBackend(spec.block_size), comms, activity, spec)
    if not comms.place.is_leader:
        lifeline: Any = SimpleNamespace(orders=orders)
        link: Any = None
        with pytest.raises(RuntimeError, match="expected Step, got Meet"):
            Follower(link, lifeline, activity).work(rank)
        return []
    crew: Any = SimpleNamespace(spec=spec, activity=activity, tell=orders.put)
    sampler: Any = Greedy()
    runner = CrewRunner(crew, rank, sampler)
    job = Job(id="", prompt=[1], sampling=SamplingParams(max_tokens=1))
    seq = Sequence.create(
        0, job, arrival=0, max_tokens=1, groups=1, block_size=1, stop_ids=frozenset()
    )
    said: list[int] = []
    launched = 0
    while len(said) < STEPS:
        while launched < min(STEPS, len(said) + runner.depth):
            runner.launch(layout(launched))
            launched += 1
        sampled, spoiled = runner.collect([seq])
        assert not spoiled
        said += sampled.tokens
    assert activity.idle
    orders.put(Meet(0))
    return said


@pytest.mark.parametrize("depth", [2, 3])
def test_a_stage_computes_while_the_next_one_does(depth: int) -> None:
    """The leader ends no step before the first stage has begun the last one in flight: were they
    ever to take turns, this would not end. Steps come out in order."""
    context = multiprocessing.get_context("forkserver")
    begun = [context.Event() for _ in range(STEPS)]
    orders = context.SimpleQueue()
    _, said = stages(2, take_part, orders, begun, depth)
    assert said == list(range(STEPS))
