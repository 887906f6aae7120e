"""Earliest predicted completion over pools of different shapes: this server's own policy.

Knows: how long a request would take on each replica, and what it would cost those already there.
Does not know: how speeds were calibrated or states measured.

A replica's score is how much the request would raise the sum, over everybody there, of
`level^POWER`, where a level is a time as a share of the promised one. Far from its bound nobody
minds much; close to it everybody does, so that load is spread where promises are at stake and
kept apart (long prompts with few decoders, long answers with little prefill) where they are not.

    late   time to the first token: prefill work that is computed before this prompt's, its own
           (less the cached prefix), the decode steps in between, and a wait for KV blocks or a
           sequence slot that grows as they fill up
    slow   time per token: the decode step with this request in it, stretched by the share of its
           time that the replica spends on prefill, and by the prefill work that is computed after
           this prompt's
    harm   its own prefill's share of the time that each decoding answer, and each waiting first
           token, was promised to take, times how much those mind by now (the slope of the power)
    twice  what is cached of the prompt elsewhere but not here would be held twice: it displaces
           as much of what others come back for, whose prefill then does harm again, some time,
           anywhere: as much as it would do now, shared out over all replicas by their speed

Times come from each pool's own speed, so that a replica of four GPUs and one of a single GPU
compare in seconds. No threshold says what is long. What was tried instead is in
docs/adr/0011-simulator.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from gpt_oss_server.routing.policies.view import (
    Ask,
    Ranked,
    ReplicaState,
    Speed,
    able,
    by_score,
)

TTFT_S = 10.0
TPOT_S = 0.05
"""What a request without a promise counts as promised: only the scale of the score."""
POWER = 4
"""How sharply a level counts as it nears 1."""
CAUTION = 1.3
"""The share of prefill to come over the recent one: it varies, and being too slow costs more."""
SHORT_ANSWER = 0.5
"""An answer as short as may well come, over the expected one: prefill work that comes between its
tokens is spread over that few. Whose answer is short is not known, and it is they who suffer."""
DISPLACED = 3.0
"""Prefills that a token held twice costs later, by displacing one that others come back for."""
FULL_POWER = 8
"""How suddenly a filling cache counts: a wait of an eighth of a service time where it is full,
a hundredth of that at 56 %."""
MOST_PREFILL = 0.9


class EarliestCompletion:
    """The replica where the request comes off best and harms least. For any fleet; the more the
    pools or the requests differ, the more it gains. Needs calibrated speeds (`simulate`)."""

    name = "earliest_completion"

    def rank(self, ask: Ask, replicas: Sequence[ReplicaState]) -> list[Ranked]:
        fit = [r for r in replicas if able(ask, r)]
        most = max((r.cached_tokens for r in fit), default=0)
        scored, prices = [], []
        for replica in fit:
            score, price = _score(ask, replica)
            scored.append(Ranked(score, replica.id))
            prices.append(price)
        if most > 0:
            # Summed so that the order of the replicas does not matter, not even in rounding.
            price = DISPLACED * math.fsum(prices)
            pools = sorted(Counter(r.pool.name for r in fit).items())
            speeds = {r.pool.name: r.pool.speed for r in fit}
            shares = [(count, speeds[name]) for name, count in pools]
            scored = [
                Ranked(ranked.score + price * _anywhere_s(shares, replica, most), ranked.id)
                for ranked, replica in zip(scored, fit, strict=True)
            ]
        return by_score(scored)


def _score(ask: Ask, replica: ReplicaState) -> tuple[float, float]:
    """What the request adds to everybody's levels, and what a second of prefill adds there."""
    pool = replica.pool
    speed = pool.speed
    answer = max(1.0, ask.expected_output_tokens)
    ttft_s = ask.ttft_s if ask.ttft_s < math.inf else TTFT_S
    tpot_s = ask.tpot_s if ask.tpot_s < math.inf else TPOT_S
    new = ask.input_tokens - replica.cached_tokens
    own_s = speed.prefill_s(new, replica.cached_tokens)
    ahead_s, behind_s = _waiting_work(replica, new)
    batch = replica.decoding + replica.waiting + 1
    held = replica.context_tokens + replica.waiting_tokens + ask.input_tokens
    step_s = speed.base_s(batch) + speed.sequence_s * batch + speed.kv_s * held
    steps = 1.0 + (ahead_s + own_s) / pool.step_prefill_s
    room_s = answer * step_s * _fullness(replica, new, answer, batch) ** FULL_POWER / 8
    late = (ahead_s + own_s + steps * step_s + room_s) / ttft_s
    stretched_s = step_s / (1.0 - min(MOST_PREFILL, CAUTION * replica.prefill_share))
    slow = (stretched_s + behind_s / (SHORT_ANSWER * answer)) / tpot_s
    waiting_s = ahead_s + behind_s
    slow_there = (stretched_s + waiting_s / answer) / tpot_s
    minding = replica.decoding * slow_there ** (POWER - 1) / (answer * tpot_s)
    minding += replica.waiting * (waiting_s / ttft_s) ** (POWER - 1) / ttft_s
    price = POWER * minding
    return float(late**POWER + slow**POWER + own_s * price), price


def _anywhere_s(
    shares: Sequence[tuple[int, Speed]], replica: ReplicaState, cached_tokens: int
) -> float:
    """Seconds of prefill of what another replica has cached of the prompt and this one has not,
    over the number of replicas, each of which gets as much of it as it is fast."""
    missing = cached_tokens - replica.cached_tokens
    if not missing:
        return 0.0
    each = (speed.prefill_s(missing, replica.cached_tokens) for _, speed in shares)
    return 1.0 / sum(count / seconds for (count, _), seconds in zip(shares, each, strict=True))


def _waiting_work(replica: ReplicaState, tokens: int) -> tuple[float, float]:
    """Seconds of waiting prefill before and after a prompt with `tokens` to compute: half of its
    own size class before it where the shortest come first, all of it in order of arrival."""
    if not replica.waiting:
        return 0.0, 0.0
    work = replica.waiting_work_s
    total = sum(work)
    if not replica.pool.shortest_first:
        return total, 0.0
    place = min(tokens.bit_length(), len(work) - 1)
    ahead = sum(work[:place]) + 0.5 * work[place]
    return ahead, max(0.0, total - ahead)


def _fullness(replica: ReplicaState, new: int, answer: float, batch: int) -> float:
    """Share of the cache, or of the sequence slots, that would be in use: what is held, what
    waiting prompts and this one will take, and half an answer for each. Where admission holds more
    than is in use, that and this request whole: what is reserved is not to be had either."""
    kv = replica.pool.kv_tokens
    used = kv - replica.kv_free_tokens + replica.waiting_tokens + new + 0.5 * answer * batch
    reserved = replica.kv_reserved_tokens + new + answer
    return max(used / kv, reserved / kv, batch / replica.pool.max_num_seqs)
