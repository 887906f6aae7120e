"""What a real server decided under a real load, decided again by the simulator.

The routing of every request, by the same code, from the simulator's own facts; and what every step
of the engine computed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from recorded_server import Recorded, record

import gpt_oss_server
from gpt_oss_server.facts import Decision, RequestFacts
from gpt_oss_server.routing.decide import TriggerPolicy
from gpt_oss_server.routing.policies.deciding import fleet_view, request_facts
from gpt_oss_server.routing.policies.sizing import Triggers
from gpt_oss_server.routing.policies.view import Ask, Ranked, ReplicaState
from gpt_oss_server.routing.replay import DecisionRecord, replay
from gpt_oss_server.simulate.cost.gpu_types import GpuType
from gpt_oss_server.simulate.cost.layout import EngineSettings, Replica, Shape
from gpt_oss_server.simulate.cost.roofline import Efficiency, ReplicaCost, model_cost
from gpt_oss_server.simulate.cost.step_time import StepTime
from gpt_oss_server.simulate.fleet.cluster import simulate
from gpt_oss_server.simulate.fleet.pools import Fleet, Pool
from gpt_oss_server.simulate.replica.kv_pool import KvPool
from gpt_oss_server.simulate.replica.scheduler import Scheduler
from gpt_oss_server.simulate.replica.sequence import Sequence as Seq
from gpt_oss_server.simulate.workload.files import read_workload
from gpt_oss_server.simulate.workload.requests import Request, workload_of
from gpt_oss_server.types import EngineInfo

TINY = Path(gpt_oss_server.__file__).parent / "models" / "tiny" / "config.json"
THRESHOLDS = (
    *("--large-input-tokens", "200", "--large-kv-mb", "0.8"),
    *("--memory-pressure", "0.001", "--pressure-input-tokens", "100", "--pressure-kv-mb", "0.7"),
)


def completion(rng: random.Random, prompt: int, answer: int, shared: int = 0) -> dict[str, Any]:
    """A completion of exactly so many tokens, the first `shared` of its prompt like others'."""
    ids = [300 + i % 500 for i in range(shared)]
    ids += [rng.randrange(100, 900) for _ in range(prompt - shared)]
    body = {"model": "tiny", "prompt": ids, "max_tokens": answer, "ignore_eos": True}
    return {"path": "/v1/completions", "body": body}


def chat(words: str) -> dict[str, Any]:
    """A chat whose client leaves the bound open."""
    return {
        "path": "/v1/chat/completions",
        "body": {"model": "tiny", "messages": [{"role": "user", "content": words}]},
    }


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """A pool that runs dry: short answers first, so that admission expects such, then long ones."""
    rng = random.Random(7)
    short = [[completion(rng, rng.randint(64, 127), 3) for _ in range(6)] for _ in range(5)]
    long = [
        [completion(rng, rng.randint(64, 127), rng.randint(100, 180)) for _ in range(2)]
        for _ in range(16)
    ]
    large = [[completion(rng, 350, 20)], [completion(rng, 150, 200)], [chat("Hello!")]]
    flags = ("--kv-cache-memory", "5MB", "--no-prefix-caching", "--max-batch-tokens", "96")
    folder = tmp_path_factory.mktemp("tight")
    return record(folder, (*flags, *THRESHOLDS), [short, [*long, *large]])


@pytest.fixture(scope="module")
def caching(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Room enough, and prompts that share their beginnings, some of them at once."""
    rng = random.Random(8)
    clients = [
        [
            completion(
                rng, rng.randint(120, 300), rng.randint(2, 40), rng.choice([0, 32, 64, 64, 112])
            )
            for _ in range(4)
        ]
        for _ in range(10)
    ]
    return record(tmp_path_factory.mktemp("caching"), ("--kv-cache-memory", "64MB"), [clients])


def info_of(recorded: Recorded) -> EngineInfo:
    """The engine's own account of itself."""
    return msgspec.convert(recorded.steps[0]["info"], EngineInfo, strict=False)


def simulated_steps(recorded: Recorded) -> tuple[list[Mapping[int, int]], Scheduler, list[Seq]]:
    """The simulator's scheduler, given each job before the step before which the engine took it."""
    info = info_of(recorded)
    limits = EngineSettings(
        max_num_seqs=info.max_num_seqs,
        max_batch_tokens=info.max_batch_tokens,
        block_size=info.block_size,
    )
    blocks = next(group.num_blocks for group in info.kv_groups if group.window is None)
    answers = {line["over"]: line["output_tokens"] for line in recorded.steps if "over" in line}
    pool = KvPool(blocks, 1)
    scheduler = Scheduler(limits, pool, info.block_size, recorded.steps[0]["even_tokens"])
    seqs: list[Seq] = []
    steps: list[Mapping[int, int]] = []
    for line in recorded.steps:
        if "job" in line:
            arrival = line["arrival"]
            units = tuple(line["hashes"])
            seqs.append(Seq(arrival, 0.0, line["prompt_tokens"], answers[arrival], units))
            scheduler.add(seqs[-1])
        elif "step" in line:
            steps.append(one_step(scheduler))
    assert scheduler.running == len(scheduler.waiting) == pool.referenced == 0
    return steps, scheduler, seqs


def one_step(scheduler: Scheduler) -> dict[int, int]:
    """Plan a step, compute it, take out who is through."""
    grants, decoders = scheduler.plan(), scheduler.decoders
    if not grants:
        scheduler.pool.take(decoders.new_blocks(1))
    step = {seq.arrival: 1 for seq in decoders.members()}
    step |= {seq.arrival: tokens for seq, tokens in grants.items()}
    decoders.advance(1)
    for seq in decoders.pop_done():
        decoders.leave(seq)
        scheduler.forget(seq)
    for seq in scheduler.complete(grants):
        seq.generated += seq.computed == seq.length
        if seq.generated == seq.output_tokens:
            scheduler.forget(seq)
        else:
            decoders.join(seq, 0.0)
    return step


def recorded_steps(recorded: Recorded) -> list[dict[int, int]]:
    """Arrival → tokens, of each step."""
    lines = (line["step"] for line in recorded.steps if "step" in line)
    return [{int(arrival): tokens for arrival, tokens in step.items()} for step in lines]


def test_every_step_of_a_server_that_runs_dry(tight: Recorded) -> None:
    """Who computed how many tokens in each step of a real engine under load, and who was put back,
    is what the simulator decides, given only when jobs came and how long answers were."""
    steps, scheduler, _ = simulated_steps(tight)
    preempted = sum(line.get("preempted", 0) for line in tight.steps)
    assert len(steps) > 200
    assert preempted > 3
    assert steps == recorded_steps(tight)
    assert scheduler.preemptions == preempted


def test_every_step_of_a_server_that_caches(caching: Recorded) -> None:
    """The same where prompts share beginnings: what was found cached, too."""
    steps, scheduler, seqs = simulated_steps(caching)
    assert steps == recorded_steps(caching)
    assert scheduler.preemptions == 0
    found = {line["over"]: line["cached_tokens"] for line in caching.steps if "over" in line}
    assert {seq.arrival: seq.cached_tokens for seq in seqs} == found
    assert sum(found.values()) > 500


class AsRecorded:
    """The trigger policy in a simulation: decides each request from the simulator's own facts, once
    with the simulator's view of the GPUs and once with the one that was recorded."""

    name = "as_recorded"

    def __init__(self, records: Sequence[DecisionRecord]) -> None:
        self.records = records
        self.facts: list[RequestFacts] = []
        self.simulated: list[Decision] = []
        self.seen: list[Decision] = []

    def rank(self, ask: Ask, replicas: Sequence[ReplicaState]) -> list[Ranked]:
        record = self.records[ask.number]
        memory = replicas[0].pool.memory
        assert memory is not None
        memories = {replicas[0].pool.name: memory}
        facts = request_facts(ask, memories)
        view = fleet_view(ask, replicas, memories)
        seen = msgspec.structs.replace(view, gpus=record.fleet.gpus, now_s=record.fleet.now_s)
        self.facts.append(facts)
        self.simulated.append(Triggers(config=record.config).decide(ask, replicas))
        self.seen.append(TriggerPolicy(record.config).decide(facts, seen))
        return Triggers(config=record.config).rank(ask, replicas)


def replica_of(info: EngineInfo, gpu_bytes: int) -> Replica:
    """A simulated replica that is the recorded server."""
    cost = model_cost(json.loads(TINY.read_text()))
    gpu = GpuType("cpu", "this machine", gpu_bytes, 2e10, 1e11, 1e10, "test", 1.0)
    blocks = next(group.num_blocks for group in info.kv_groups if group.window is None)
    return Replica(
        shape=Shape(gpu),
        settings=EngineSettings(
            max_num_seqs=info.max_num_seqs,
            max_batch_tokens=info.max_batch_tokens,
            block_size=info.block_size,
            open_tokens=512,  # generation_config.json's max_new_tokens
        ),
        time=StepTime(ReplicaCost(cost, gpu), Efficiency()),
        kv_blocks=blocks,
        kv_bytes_per_token=1536,
        longest_tokens=blocks * info.block_size,
        info=info,
    )


def test_every_route_of_a_recorded_run(tight: Recorded) -> None:
    """Fed with the run (when requests came, how long they and their answers were, which bounds
    clients gave), the simulation decides each as the server did: exact tokens and KV bytes,
    trigger, reasons, route. The triggers of size with the simulator's own view, that of memory
    pressure with the recorded one, since what else uses this machine is not simulated."""
    ended = {line["request_id"]: line for line in tight.ended()}
    records = sorted(tight.decisions, key=lambda one: one.fleet.now_s)
    assert replay(records).differences == ()
    asked = []
    for one in records:
        facts = one.facts
        explicit = facts.least_kv_bytes is None
        answer = ended[facts.request_id]["metadata"]["output_tokens"]
        bound = facts.max_output_tokens if explicit else 0
        at_s = one.fleet.now_s - records[0].fleet.now_s
        asked.append(Request(at_s, facts.input_tokens, answer, (), (), bound, facts.client_id))
    read = read_workload(tight.log)
    assert sorted(r[1:3] for r in read.requests) == sorted(r[1:3] for r in asked)
    total_bytes = records[0].fleet.gpus[0].total_bytes
    fleet = Fleet((Pool(replica_of(info_of(tight), total_bytes), 1),))
    policy = AsRecorded(records)
    outcome = simulate(workload_of("recorded", asked), fleet, policy)
    assert outcome.counts()["served"] == len(records)
    fired = {"large_input": 0, "large_kv": 0, "memory_pressure": 0, None: 0}
    for one, facts, simulated, seen in zip(
        records, policy.facts, policy.simulated, policy.seen, strict=True
    ):
        old = one.decision
        fired[old.trigger] += 1
        for name in ("input_tokens", "max_output_tokens", "predicted_kv_bytes", "least_kv_bytes"):
            assert getattr(facts, name) == getattr(one.facts, name), name
        for name in ("route", "trigger", "reasons", "pressure", "executed", "notice"):
            assert getattr(seen, name) == getattr(old, name), name
        if old.trigger != "memory_pressure":
            assert (simulated.trigger, simulated.route) == (old.trigger, old.route)
    assert min(fired.values()) > 0
