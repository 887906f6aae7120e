"""A replica's step time with its efficiencies folded in, made to be asked millions of times.

Knows: one `ReplicaCost` and one `Efficiency`. Does not know: requests or schedules. All in seconds;
exact sums of what `cost` states, but that in decode runs the windowed layers' KV counts as it is
when decoding starts (at most a window's rows, a thousandth of a step).
"""

from __future__ import annotations

import math

from gpt_oss_server.simulate.cost.roofline import TABLE_TOKENS, Efficiency, ReplicaCost, Terms


class StepTime:
    """`base[T]` for T ≤ `TABLE_TOKENS`, else `far_s + T · far_s_per_token`; `sequence_s` per
    sequence, `kv_s` per cached token, `chunk_s` per chunk of a prompt; the rest by method.
    `efficiency` is what was folded in."""

    __slots__ = (
        "base",
        "chunk_s",
        "efficiency",
        "even_tokens",
        "far_s",
        "far_s_per_token",
        "first_token_s",
        "kv_s",
        "linear_s",
        "pair_s",
        "pair_windows",
        "sequence_s",
        "windows",
    )

    def __init__(self, cost: ReplicaCost, efficiency: Efficiency) -> None:
        self.efficiency = efficiency
        gpu = cost.gpu
        cache = efficiency.seconds(Terms(cache_s=1.0), gpu)
        compute = efficiency.seconds(Terms(compute_s=1.0), gpu)
        attention = efficiency.seconds(Terms(attention_s=1.0), gpu)
        self.base = [
            efficiency.seconds(cost.base(tokens, 0), gpu) for tokens in range(TABLE_TOKENS + 1)
        ]
        self.far_s_per_token = efficiency.seconds(Terms(link_s=cost.link_s_per_token), gpu)
        self.sequence_s = efficiency.sequence_s
        self.far_s = self.base[TABLE_TOKENS] - TABLE_TOKENS * self.far_s_per_token
        self.kv_s = cost.kv_s_per_token * cache
        self.windows = tuple((window, s * cache) for window, s in cost.kv_windows)
        self.chunk_s = efficiency.chunk_s
        self.linear_s = cost.linear_s * compute
        self.pair_s = cost.pair_s * attention
        self.pair_windows = tuple((window, s * attention) for window, s in cost.pair_windows)
        self.first_token_s = efficiency.first_token_s
        self.even_tokens = cost.model.even_tokens()

    def base_s(self, tokens: int) -> float:
        """A step of `tokens` tokens without KV, prefill operations and its sequences' share."""
        if tokens <= TABLE_TOKENS:
            return self.base[tokens]
        return self.far_s + tokens * self.far_s_per_token

    def window_s(self, context: int) -> float:
        """Reading one sequence's windowed KV once."""
        total = 0.0
        for window, seconds in self.windows:
            total += seconds * (context if context < window else window)
        return total

    def prefill_s(self, tokens: int, context: int) -> float:
        """A chunk of `tokens` prompt tokens after `context` others: its operations, and what any
        chunk adds."""
        seconds = self.chunk_s + tokens * (self.linear_s + self.pair_s * (context + 0.5 * tokens))
        end = context + tokens
        for window, pair_s in self.pair_windows:
            if context >= window:
                seconds += pair_s * window * tokens
            else:
                high = end if end < window else window
                within = 0.5 * (high * high - context * context)
                seconds += pair_s * (within + window * (end - high))
        return seconds

    def decode_run_s(self, steps: int, sequences: int, kv_sum_s: float) -> float:
        """`steps` decode steps of `sequences` sequences whose cached tokens take `kv_sum_s` to
        read in the first of them; each step adds a token to every sequence."""
        growth = sequences * self.kv_s
        first = self.base_s(sequences) + sequences * self.sequence_s + kv_sum_s
        return steps * first + growth * (steps * (steps - 1) // 2)

    def decode_steps_within(self, seconds: float, sequences: int, kv_sum_s: float) -> int:
        """The most whole decode steps that end within `seconds`: the inverse of `decode_run_s`."""
        first = self.base_s(sequences) + sequences * self.sequence_s + kv_sum_s
        growth = sequences * self.kv_s
        if seconds <= 0.0 or first <= 0.0:
            return 0
        # first·k + growth·k(k−1)/2 = seconds, solved so that nothing cancels.
        linear = first - 0.5 * growth
        root = linear + math.sqrt(linear * linear + 2.0 * growth * seconds)
        steps = int(2.0 * seconds / root) if root > 0.0 else 0
        # The root is off by at most one where floating point falls on a boundary.
        if self.decode_run_s(steps + 1, sequences, kv_sum_s) <= seconds:
            return steps + 1
        if steps and self.decode_run_s(steps, sequences, kv_sum_s) > seconds:
            return steps - 1
        return steps
