"""The least of some GPUs that would serve a workload at its own pace.

Knows: parts of an inventory by their price or size, the fleets on each. Does not know: where a
guess or a price comes from. From the smallest part upwards the likeliest fleets are played at that
pace until one keeps the promises; parts that are guessed to bear far too little are not played.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpt_oss_server.simulate.cost.layout import Replica
from gpt_oss_server.simulate.fleet.pools import Fleet, Pool
from gpt_oss_server.simulate.plan.found import plainness
from gpt_oss_server.simulate.plan.inventory import Inventory, fleets
from gpt_oss_server.simulate.plan.knee import Explorer
from gpt_oss_server.simulate.plan.rules import Rule
from gpt_oss_server.simulate.plan.trials import Candidate, Trial, Verdict

MOST_TRIED = 6
MIXING = 1.5
"""Kinds of replica that share the work by length bear less than so many times their sum."""
FAR_TOO_LITTLE = 0.65
"""Guesses are off by less than this."""


@dataclass(frozen=True)
class Fewest:
    """A candidate that keeps the promises at that pace; of the smaller parts none was found to."""

    candidate: Candidate
    verdict: Verdict


def fewest(
    inventory: Inventory,
    replicas: Sequence[Replica],
    rule: Rule,
    explorer: Explorer,
    *,
    traffic: str,
    factor: float,
    needed_per_s: float,
    guess: Callable[[Fleet], float],
    price: Callable[[Inventory], float | None],
) -> Fewest | None:
    """The cheapest part of the inventory (by price where all have one, else by GPUs) with a fleet
    that serves `traffic`, played `factor` times as fast, as promised; None if none is found, or
    time is over."""
    each = {gpu.name: 0.0 for gpu, _ in inventory.stock}
    for replica in replicas:
        name, alone = replica.shape.gpu.name, guess(Fleet((Pool(replica, 1),)))
        each[name] = max(each[name], alone / replica.shape.gpus)
    for part in _in_order(inventory, price):
        if explorer.expired():
            return None
        # Of many GPUs there are very many layouts: what is hopeless is not laid out.
        most = [each[gpu.name] * count for gpu, count in part.stock]
        if not all(most) or MIXING * sum(most) < FAR_TOO_LITTLE * needed_per_s:
            continue
        able = sorted(fleets(part, replicas), key=lambda fleet: -guess(fleet))[:MOST_TRIED]
        if not able or guess(able[0]) < FAR_TOO_LITTLE * needed_per_s:
            continue
        trials = [
            Trial(Candidate(fleet, rule), traffic, factor)
            for fleet in able
            if fleet.gpus <= part.gpus
        ]
        made = explorer.play(trials)
        kept = [(trial, verdict) for trial, verdict in made if verdict.met]
        if kept:
            trial, verdict = min(kept, key=lambda one: plainness(one[0].candidate))
            return Fewest(trial.candidate, verdict)
        if len(made) < len(trials):
            return None
    return None


def _in_order(inventory: Inventory, price: Callable[[Inventory], float | None]) -> list[Inventory]:
    """The parts of it, the cheapest first: by price, and by GPUs where not all have one."""
    priced = price(inventory) is not None
    return sorted(
        inventory.smaller(),
        key=lambda part: ((price(part) or 0.0) if priced else 0.0, part.gpus, part.name),
    )
