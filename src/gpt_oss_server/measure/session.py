"""One measuring session: look at the server, settle how to ask, warm it up, play the loops.

Knows: the order of things, what a session costs the server, when it must stop. Does not know:
fits, files.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from gpt_oss_server.measure.asking import Asker, Endpoint
from gpt_oss_server.measure.connection import Address, Connection
from gpt_oss_server.measure.loops import Refused, pace, play
from gpt_oss_server.measure.prompts import Prompts
from gpt_oss_server.measure.server import look
from gpt_oss_server.simulate.calibrate.served import Served
from gpt_oss_server.simulate.calibrate.trial import Measured, Trial, grid, within

PASSES = 3
WARM_UP_SHARE = 0.05
_LONGEST = 32_768
"""Longest prompt and answer that are asked for: calibration need not fill a whole context."""
_SLOTS = 64


@dataclass(frozen=True)
class Wanted:
    """What is to be measured. `most_clients` None: as many as the grid has."""

    address: Address
    model: str | None = None
    admin_key: str | None = None
    endpoint: Endpoint = "completions"
    seconds: float = 180.0
    passes: int = PASSES
    most_clients: int | None = None
    seed: int = 0
    timeout_s: float = 120.0


@dataclass
class Found:
    """What came of it: the server, its loops, and what there is to say of them."""

    served: Served
    loops: list[Measured] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


async def measure(
    wanted: Wanted,
    say: Callable[[str], None],
    progress: Callable[[int, int], None] = lambda done, total: None,
    accept: Callable[[Served], None] = lambda served: None,
) -> Found:
    """The whole session. `accept` is told what the server says of itself before it is asked for
    anything, and raises where that is of no use.

    Raises:
        StartupError: the server is not there, answers with errors, or turns a single client away.
    """
    served, remark = await look(wanted.address, wanted.model, wanted.admin_key)
    accept(served)
    found = Found(served, remarks=[remark] if remark else [])
    if served.busy:
        found.remarks.append(
            f"others had {served.busy} requests there: what was measured is what they left"
        )
    prompts = _prompts(wanted.seed)
    asker = Asker(wanted.address, served.model, wanted.endpoint, prompts, wanted.timeout_s)
    connection = Connection(wanted.address)
    try:
        await asker.settle(connection)
    finally:
        connection.close()
    found.remarks += asker.notes
    trials = await _trials(wanted, served, asker)
    each_s = wanted.seconds * (1 - WARM_UP_SHARE) / (wanted.passes * len(trials))
    say(_told(trials, wanted, each_s))
    loops: dict[Trial, Measured] = {}
    done, total = 0, wanted.passes * len(trials)
    most = max(trial.concurrency for trial in trials)
    for _ in range(wanted.passes):
        for trial in trials:
            if trial.concurrency <= most:
                try:
                    loop = await play(trial, asker, each_s)
                    loops[trial] = loops[trial].joined(loop) if trial in loops else loop
                except Refused as refused:
                    if trial.concurrency == 1:
                        raise
                    most = trial.concurrency - 1
                    found.remarks.append(f"{refused}: no loops of as many or more from there on")
            done += 1
            progress(done, total)
    found.loops = [loops[trial] for trial in trials if trial in loops]
    return found


def _prompts(seed: int) -> Prompts:
    return Prompts(random.Random(seed))


async def _trials(wanted: Wanted, served: Served, asker: Asker) -> list[Trial]:
    """The grid, as far as the server's limits and the time allow."""
    longest = min(served.max_model_len or _LONGEST, _LONGEST)
    if served.kv_blocks and served.block_size:
        longest = min(longest, served.kv_blocks * served.block_size)
    slots = min(served.max_num_seqs or _SLOTS, wanted.most_clients or _SLOTS)
    trials = grid(longest, slots)
    speed = await pace(asker, WARM_UP_SHARE * wanted.seconds)
    each_s = wanted.seconds * (1 - WARM_UP_SHARE) / (wanted.passes * len(trials))
    return list(dict.fromkeys(within(trial, speed, each_s) for trial in trials))


def _told(trials: list[Trial], wanted: Wanted, each_s: float) -> str:
    """What will be sent, before it is."""
    clients = max(trial.concurrency for trial in trials)
    prompt = max(trial.input_tokens for trial in trials)
    times = f"{wanted.passes} times" if wanted.passes > 1 else "once"
    return (
        f"sending {len(trials)} loops of {each_s:.1f} s, {times} each: up to {clients} clients, "
        f"random prompts of up to {prompt} tokens; stops when the server turns one away"
    )
