"""Pipeline stages with several steps in flight: how much of their time overlaps.

Knows: one replica's step time, how many steps are in flight, the slowest stage's share. Does not
know: which sequences are in which step. The engine keeps M steps (*micro-batches*) in flight, each
over its own sequences; a stage takes them in order, and a sequence's next token waits for its last
one to come out of the last stage. So in a *round*, in which every sequence gets a token,

    L_m    step m through all stages, one after the other: what `StepTime` says of its tokens
    round  max(largest L_m, share · sum of L_m), share being the slowest stage's part of L

(doctor's `pace` for one kind of step; GPipe's bubble without the flush). With M equal to the number
of equal stages both are the same, and P stages serve P times what they do one after another. The
simulator schedules rounds as if they were steps: k = min(M, sequences) steps of equal shares of the
decoding sequences, prefills in as few of them as their budgets allow. What is still in the stages
when a round ends holds up the next one (`Pipe`), and a prompt's first token comes with the step
that it is in.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

from gpt_oss_server.memory.weights import STAGE_TOKENS, ModelWeights
from gpt_oss_server.simulate.cost.step_time import StepTime


def stage_share(weights: ModelWeights, tp: int, pp: int) -> float:
    """The slowest of `pp` stages' part of a step, by the weights that a decode step of
    `STAGE_TOKENS` tokens reads there: what stages are balanced by. Raises `ImpossibleSplit`."""
    loads = [
        float(sum(size * (1 - (1 - used) ** STAGE_TOKENS) for used, size in profile.items()))
        for profile in weights.read_profile(tp, pp)
    ]
    return max(loads) / sum(loads) if sum(loads) else float(Fraction(1, pp))


class Round(NamedTuple):
    """One round of `groups` steps, prefills in `filled` of them. `seconds` from its start until its
    first step is through, or the next round's may follow; `step_s` its heaviest step in the slowest
    stage; `spread_s` how much later than its first step its last one is through."""

    seconds: float
    step_s: float
    spread_s: float
    groups: int
    filled: int


class StageTime:
    """Rounds of up to `micro_batches` steps, in seconds; `speed` is that of full rounds, as a
    dispatcher compares pools by."""

    __slots__ = ("_share", "_step_tokens", "_time", "micro_batches", "speed")

    def __init__(
        self, time: StepTime, micro_batches: int, share: float, max_batch_tokens: int
    ) -> None:
        self.micro_batches = micro_batches
        self._time = time
        self._share = share
        self._step_tokens = -(-max_batch_tokens // micro_batches)
        self.speed = RoundSpeed(time, micro_batches, self._stretch(micro_batches))

    def decode_run_s(self, rounds: int, sequences: int, kv_sum_s: float) -> float:
        """As `StepTime.decode_run_s`, of rounds."""
        scale, more_s = self._decoding(sequences)
        return scale * self._time.decode_run_s(rounds, sequences, kv_sum_s + more_s)

    def decode_steps_within(self, seconds: float, sequences: int, kv_sum_s: float) -> int:
        """The most whole rounds that end within `seconds`."""
        scale, more_s = self._decoding(sequences)
        return self._time.decode_steps_within(seconds / scale, sequences, kv_sum_s + more_s)

    def decode_round(self, sequences: int, kv_sum_s: float) -> Round:
        """One round of decoding alone."""
        groups = min(self.micro_batches, max(1, sequences))
        seconds = self.decode_run_s(1, sequences, kv_sum_s)
        step_s = self._share * seconds / self._stretch(groups)
        return Round(seconds, step_s, (groups - 1) * step_s, groups, 0)

    def mixed_round(
        self, decoding: int, kv_sum_s: float, prompts: int, tokens: int, work_s: float
    ) -> Round:
        """A round of `decoding` sequences, whose cached tokens take `kv_sum_s` to read, and
        `tokens` prefill tokens of `prompts` prompts that take `work_s`."""
        time = self._time
        groups = min(self.micro_batches, decoding)
        room = self._step_tokens - -(-decoding // max(1, groups))
        full_s = time.prefill_s(max(1, room), 0)
        filled = min(self.micro_batches, max(1, math.ceil(work_s / full_s - 1e-9)))
        groups = max(groups, filled)
        each = -(-decoding // groups)
        shared_s = (decoding * time.sequence_s + kv_sum_s) / groups
        light_s = time.base_s(each) + shared_s
        heavy_s = time.base_s(each + -(-tokens // filled)) + shared_s
        heavy_s += (prompts * time.sequence_s + work_s) / filled
        whole_s = self._share * (filled * heavy_s + (groups - filled) * light_s)
        step_s = self._share * heavy_s
        return Round(max(heavy_s, whole_s), step_s, whole_s - step_s, groups, filled)

    def _stretch(self, groups: int) -> float:
        """A round of equal steps over one of them."""
        return max(1.0, self._share * groups)

    def _decoding(self, sequences: int) -> tuple[float, float]:
        """What a step of all sequences at once must be multiplied with to be a round, and what must
        be added to it before: each of the round's steps has its own base."""
        groups = min(self.micro_batches, max(1, sequences))
        time = self._time
        more_s = groups * time.base_s(-(-sequences // groups)) - time.base_s(sequences)
        return self._stretch(groups) / groups, more_s


class Pipe:
    """Where one replica's rounds stand in time: what was launched and is not through yet.

    `begin` a round, then `end` it; the engine's clock moves between. Moments in seconds.
    """

    __slots__ = ("_apart_s", "_began_s", "_ended_s", "_groups", "_through_s")

    def __init__(self) -> None:
        self._through_s = 0.0
        self._began_s = 0.0
        self._ended_s = 0.0
        self._apart_s = 0.0
        self._groups = 1

    def delay_s(self, now_s: float, following: Round) -> float:
        """How much longer a round that begins now takes, behind what is in the stages."""
        return max(0.0, self._through_s + following.step_s - now_s - following.seconds)

    def lead_s(self, queued_s: float, now_s: float) -> float:
        """By how much a step that took a prompt queued at `queued_s` precedes the round that
        begins now: it could join each step of the round before, not only its end."""
        if self._apart_s <= 0.0 or queued_s <= self._began_s or self._ended_s < now_s:
            return 0.0
        steps = math.ceil((queued_s - self._began_s) / self._apart_s)
        if steps >= self._groups:
            return 0.0
        return max(0.0, now_s - (self._began_s + steps * self._apart_s))

    def end(self, now_s: float, done: Round) -> None:
        """A round, the last of its run, is over."""
        self._through_s = now_s + done.spread_s
        self._began_s, self._ended_s = now_s - done.seconds, now_s
        self._groups = done.groups
        self._apart_s = done.spread_s / (done.groups - 1) if done.groups > 1 else 0.0


class RoundSpeed:
    """`routing.policies.view.Speed` of full rounds."""

    __slots__ = ("_groups", "_stretch", "_time", "kv_s", "sequence_s")

    def __init__(self, time: StepTime, groups: int, stretch: float) -> None:
        self._time = time
        self._groups = groups
        self._stretch = stretch
        self.sequence_s = time.sequence_s * stretch / groups
        self.kv_s = time.kv_s * stretch / groups

    def base_s(self, tokens: int) -> float:
        """A round of so many tokens, without KV, prefill operations and its sequences' share."""
        return self._stretch * self._time.base_s(-(-tokens // self._groups))

    def prefill_s(self, tokens: int, context: int) -> float:
        """What prefill operations of `tokens` tokens after `context` others add to rounds."""
        return self._time.prefill_s(tokens, context) * self._stretch / self._groups
