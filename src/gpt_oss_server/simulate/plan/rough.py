"""A guess at the load that a fleet bears, in no time: where a search begins, and what it skips.

Knows: a sample of the workload, replicas, promises. Does not know: queues, policies, chance; no
figure of these is ever shown as a result.

A replica that decodes B sequences in steps of s(B) seconds while prompts of p seconds each come in
λ times a second spends the share λp of its time on them, so that answers of o tokens end at

    λ = B / (o · s(B) + B · p)

with B bounded by slots and KV, and s(B) / (1 − λp), the time per token, by the promise. Over pools
that differ the sample is cut by prompt length between smaller and larger replicas wherever the
slower side is fastest, or not cut at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from gpt_oss_server.simulate.cost.layout import Replica
from gpt_oss_server.simulate.fleet.pools import Fleet
from gpt_oss_server.simulate.results.slo import Slo
from gpt_oss_server.simulate.workload.requests import Request, Workload

SAMPLE = 1000
PIPELINE_GAIN = 1.1
_MOST_PREFILL = 0.95
_CUTS = 12
_BATCHES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class Sampled:
    """One request of the sample: tokens, and of its prompt those that came before in the workload,
    the most that any cache could have of it."""

    request: Request
    seen_tokens: int


def sample(workload: Workload, most: int = SAMPLE) -> tuple[Sampled, ...]:
    """Evenly spread over the workload."""
    seen: set[int] = set()
    found: list[Sampled] = []
    every = max(1, -(-len(workload.requests) // most))
    for number, request in enumerate(workload.requests):
        known = 0
        for unit in request.units:
            if unit not in seen:
                break
            known += 1
        if number % every == 0:
            tokens = min(known * workload.unit_tokens, request.input_tokens - 1)
            found.append(Sampled(request, max(0, tokens)))
        seen.update(request.units)
        seen.update(request.tail_units)
    return tuple(found)


class Rough:
    """Guesses for one workload's sample and one promise. Replicas are told apart by their shape."""

    def __init__(self, sampled: Sequence[Sampled], slo: Slo) -> None:
        self._sampled = tuple(sorted(sampled, key=lambda one: one.request.input_tokens))
        self._slo = slo
        self._rate = lru_cache(maxsize=None)(self._replica_rate)
        count = len(self._sampled)
        self._cuts = sorted({count * cut // _CUTS for cut in range(1, _CUTS)} - {0, count})
        self._replicas: dict[str, Replica] = {}

    def work_s(self, replica: Replica, request: Request) -> float:
        """What one request costs a replica: its prefill, and its share of busy decode steps."""
        time = replica.time
        batch = min(64, replica.settings.max_num_seqs)
        step_s = time.decode_run_s(1, batch, 0.0) / batch
        return time.prefill_s(request.input_tokens, 0) + request.output_tokens * step_s

    def promising(self, replicas: Sequence[Replica]) -> tuple[Replica, ...]:
        """Without pipelines where a tensor replica of as many of the same GPUs might bear as much:
        both rarely matter, and each doubles the number of fleets."""
        tensor = {
            (one.shape.gpu.name, one.shape.gpus): self._alone_rate(one)
            for one in replicas
            if one.shape.pp == 1
        }
        return tuple(
            one
            for one in replicas
            if one.shape.pp == 1
            or self._alone_rate(one)
            > PIPELINE_GAIN * tensor.get((one.shape.gpu.name, one.shape.gpus), 0.0)
        )

    def _alone_rate(self, replica: Replica) -> float:
        return self._rate(self._kept(replica), 0, len(self._sampled))

    def fleet_rate(self, fleet: Fleet) -> float:
        """Requests per second that the fleet might bear."""
        pools = sorted(
            ((self._kept(pool.replica), pool.count) for pool in fleet.pools),
            key=lambda pair: self._rate(pair[0], 0, len(self._sampled)),
        )
        whole = sum(count * self._rate(name, 0, len(self._sampled)) for name, count in pools)
        return max([whole, *(self._cut_rate(pools, place) for place in range(1, len(pools)))])

    def keepable(self, replica: Replica) -> tuple[float, ...]:
        """By class of the promise, the share of requests that an idle replica would serve as
        promised with all of their prompts' known prefixes cached: more than any load can."""
        met = [0] * len(self._slo.classes)
        came = [0] * len(self._slo.classes)
        for one in self._sampled:
            promise = self._slo.class_of(one.request.input_tokens)
            place = self._slo.classes.index(promise)
            came[place] += 1
            met[place] += self._alone(replica, one, promise.ttft_s, promise.tpot_s)
        return tuple(m / c if c else 1.0 for m, c in zip(met, came, strict=True))

    def _alone(self, replica: Replica, one: Sampled, ttft_s: float, tpot_s: float) -> bool:
        request, time = one.request, replica.time
        if request.input_tokens + request.output_tokens > replica.longest_tokens:
            return False
        new = request.input_tokens - one.seen_tokens
        first_s = time.prefill_s(new, one.seen_tokens) + time.base_s(min(new, 1024))
        runs = replica.stages or time
        kv_s = request.input_tokens * time.kv_s
        late = first_s + time.first_token_s > ttft_s
        return not late and (request.output_tokens < 2 or runs.decode_run_s(1, 1, kv_s) <= tpot_s)

    def _kept(self, replica: Replica) -> str:
        self._replicas[replica.shape.name] = replica
        return replica.shape.name

    def _cut_rate(self, pools: Sequence[tuple[str, int]], place: int) -> float:
        """With short prompts on the pools before `place` and long ones on the others."""
        total = len(self._sampled)
        best = 0.0
        for cut in self._cuts:
            low = sum(count * self._rate(name, 0, cut) for name, count in pools[:place])
            high = sum(count * self._rate(name, cut, total) for name, count in pools[place:])
            best = max(best, min(low * total / cut, high * total / (total - cut)))
        return best

    def _replica_rate(self, name: str, start: int, end: int) -> float:
        """λ for the sample's requests from `start` to `end`, by length of prompt."""
        replica = self._replicas[name]
        mine = self._sampled[start:end]
        time, settings = replica.time, replica.settings
        runs = replica.stages or time
        prefill_s = sum(self._prefill_s(replica, one) for one in mine) / len(mine)
        answers = [one.request.output_tokens for one in mine]
        mean = sum(answers) / len(mine)
        held = sum(
            (one.request.input_tokens + tokens / 2) * tokens
            for one, tokens in zip(mine, answers, strict=True)
        ) / sum(answers)
        most = min(settings.max_num_seqs, int(replica.kv_tokens / held))
        tpot_s = max(one.tpot_s for one in self._slo.classes)
        best = 0.0
        for batch in (*(b for b in _BATCHES if b < most), max(1, most)):
            kv_s = batch * (held * time.kv_s + time.window_s(int(held)))
            step_s = runs.decode_run_s(1, batch, kv_s)
            rate = batch / (mean * step_s + batch * prefill_s)
            # At a slower pace of arrivals the step of this batch may yet be within the promise.
            within = max(0.0, 1.0 - step_s / tpot_s) / prefill_s
            best = max(best, min(rate, within, _MOST_PREFILL / prefill_s))
        return best

    def _prefill_s(self, replica: Replica, one: Sampled) -> float:
        new = one.request.input_tokens - one.seen_tokens
        speed = replica.stages.speed if replica.stages else replica.time
        steps = new / replica.settings.max_batch_tokens
        return speed.prefill_s(new, one.seen_tokens) + steps * speed.base_s(1024)
