"""Measured loops as a server of known speed would have given them."""

from __future__ import annotations

import random
from dataclasses import replace

from gpt_oss_server.doctor.models import model_facts
from gpt_oss_server.routing.policies import policy
from gpt_oss_server.simulate.calibrate.likeness import replica_like, unknown_hardware
from gpt_oss_server.simulate.calibrate.served import OWN, Served
from gpt_oss_server.simulate.calibrate.trial import Measured, Row, Trial
from gpt_oss_server.simulate.cost.layout import Replica, Shape
from gpt_oss_server.simulate.cost.roofline import Efficiency, model_cost
from gpt_oss_server.simulate.fleet.cluster import simulate
from gpt_oss_server.simulate.fleet.pools import Fleet, Pool
from gpt_oss_server.simulate.workload.requests import Request, workload_of

TINY = model_facts("tiny", {}).config
TINY_COST = model_cost(TINY)
SERVED = Served(
    OWN,
    "0.1.0",
    "tiny",
    max_model_len=16_384,
    block_size=16,
    kv_blocks=4000,
    max_num_seqs=32,
    max_batch_tokens=256,
    prefill_order="shortest",
    admission="reserve",
    device="cpu",
    pools={"full": 4000, "sliding": 400},
)
HARDWARE = Shape(unknown_hardware())
TRUE = Efficiency(
    overhead=2.0,
    sequence_s=150e-6,
    chunk_s=1.5e-3,
    first_token_s=4e-3,
    link=1.0,
    memory=0.2,
    compute=0.4,
    cache=0.25,
    attention=0.3,
)
"""A CPU server of a few milliseconds a step."""
TRIALS = (
    Trial(1, 64, 64),
    Trial(16, 96, 48),
    Trial(8, 512, 24),
    Trial(1, 1500, 8),
    Trial(4, 256, 64),
    Trial(32, 48, 24),
    Trial(1, 4000, 24),
    Trial(2, 1000, 64),
    Trial(8, 48, 96),
)


def tiny_like(efficiency: Efficiency) -> Replica:
    """A replica of the served tiny model at this speed."""
    return replica_like(SERVED, TINY, TINY_COST, HARDWARE, efficiency)


def measured(trial: Trial, replica: Replica, seed: int = 0, rounds: int = 4) -> Measured:
    """What the trial's clients would have seen of this replica."""
    rng = random.Random(seed)

    def near(tokens: int) -> int:
        return max(1, round(tokens * rng.uniform(0.8, 1.2)))

    requests = [
        Request(0.0, near(trial.input_tokens), near(trial.output_tokens))
        for _ in range(max(8, rounds * trial.concurrency))
    ]
    found = simulate(
        workload_of("truth", requests),
        Fleet((Pool(replica, 1),)),
        policy("round_robin"),
        clients=trial.concurrency,
    )
    rows = zip(
        found.arrival_s.tolist(),
        found.input_tokens.tolist(),
        found.output_tokens.tolist(),
        found.ttft_s.tolist(),
        found.e2e_s.tolist(),
        strict=True,
    )
    sent = sorted((Row(*row) for row in rows), key=lambda row: row.at_s)
    return Measured(trial, (tuple(sent),))


def loops(efficiency: Efficiency = TRUE) -> list[Measured]:
    """All trials on a tiny server of this speed."""
    replica = tiny_like(efficiency)
    return [measured(trial, replica, seed) for seed, trial in enumerate(TRIALS)]


def slower(loop: Measured, factor: float) -> Measured:
    """The loop on a machine that was disturbed all the time."""
    rows = [row._replace(ttft_s=row.ttft_s * factor, e2e_s=row.e2e_s * factor) for row in loop.rows]
    return replace(loop, passes=(tuple(rows),))
