"""One request inside a simulated engine: how far it is, what it holds, when what happened.

Knows: counts and moments of one sequence. Does not know: others, pools, policies.
"""

from __future__ import annotations

WAITING, PREFILLING, DECODING, GONE = range(4)


class Sequence:
    """`length` is prompt and output so far, `computed` the tokens whose KV is held, in `held`
    blocks of which those of the units in `shares` may be shared.

    While it decodes, after `d` decode steps of its engine, it holds `phase + d` tokens and is done
    when `d` reaches `done_at`: nothing needs to be counted per token.
    """

    __slots__ = (
        "arrival",
        "arrived_s",
        "attempts",
        "cached_tokens",
        "computed",
        "done_at",
        "expected_tokens",
        "finish_s",
        "first_token_s",
        "generated",
        "held",
        "index",
        "input_tokens",
        "key",
        "lag_s",
        "length",
        "output_tokens",
        "phase",
        "preemptions",
        "published",
        "queued_s",
        "shares",
        "size_class",
        "state",
        "tail_units",
        "ticket",
        "told_preemptions",
        "units",
        "waits_tokens",
        "waits_work_s",
        "window_s",
    )

    def __init__(
        self,
        index: int,
        arrived_s: float,
        input_tokens: int,
        output_tokens: int,
        units: tuple[int, ...] = (),
        tail_units: tuple[int, ...] = (),
    ) -> None:
        self.index = index
        self.arrived_s = arrived_s
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens
        self.units = units
        self.tail_units = tail_units
        self.length = input_tokens
        self.generated = 0
        self.computed = 0
        self.held = 0
        self.shares: list[int] = []
        self.published = 0
        self.state = WAITING
        self.arrival = 0
        self.key = 0
        self.phase = 0
        self.done_at = 0
        self.window_s = 0.0
        self.size_class = 0
        self.waits_tokens = 0
        self.waits_work_s = 0.0
        self.cached_tokens = -1
        self.preemptions = 0
        # In a pipeline: when it came to the engine, how much later than others its step is.
        self.queued_s = 0.0
        self.lag_s = 0.0
        # Of its admission: under which number, output that counts as reserved, what was told.
        self.ticket = 0
        self.expected_tokens = 0
        self.told_preemptions = 0
        self.attempts = 0
        self.first_token_s = -1.0
        self.finish_s = -1.0
