"""The memory guard: what a request must reserve, and whether that fits.

Knows: reservation modes, shrinking, when a request can never fit. Does not know: who else waits
(the queue) or what is held (the ledger). Reserving never counts on shared prefixes, so the real
use is at most what is reserved for the tokens that are really produced.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gpt_oss_server.admission.capacity import Blocks, Capacity, fits
from gpt_oss_server.admission.config import AdmissionConfig
from gpt_oss_server.admission.offers import AdmissionRequest, Plan
from gpt_oss_server.admission.outputs import OutputLengths


class Bounds(msgspec.Struct, frozen=True):
    """The output bound a request may run with on an empty pool, and the least it may have."""

    most_tokens: int
    least_tokens: int


class NeverFits(msgspec.Struct, frozen=True):
    """The request is larger than the whole pool; `message` has the numbers."""

    message: str


class Guard:
    """Pure arithmetic over one pool. `outputs` is fed elsewhere and only read here."""

    def __init__(self, capacity: Capacity, config: AdmissionConfig, outputs: OutputLengths) -> None:
        self.capacity = capacity
        self._config = config
        self._outputs = outputs
        self._total = capacity.total

    def bounds(self, request: AdmissionRequest) -> Bounds | NeverFits:
        """Whether the request could run with the pool to itself, and with which bounds.

        An explicit bound must fit whole, in either mode: a request that could outgrow the pool
        might never finish. An open one is lowered to what the pool holds.
        """
        least = request.max_tokens
        most = request.max_tokens
        if not request.explicit:
            least = min(least, self._config.min_open_output_tokens)
            if self._config.mode == "worst_case":
                most = min(most, self._config.open_output_tokens)
        longest = self.capacity.longest_tokens(self._total, request.sequences)
        if longest is None:
            return Bounds(most, least)
        room = longest - request.prompt_tokens
        if room < least:
            return NeverFits(self._too_large(request, least))
        return Bounds(min(most, room), least)

    def plan(self, request: AdmissionRequest, bounds: Bounds, free: Sequence[int]) -> Plan | None:
        """What to reserve out of `free` to start now, or None when there is no room.

        In worst-case mode an open bound shrinks to the room there is, down to its least.
        """
        bound = bounds.most_tokens
        expected = self._expected(request, bound)
        need = self._need(request, expected)
        if not fits(need, free):
            if request.explicit or self._config.mode == "optimistic":
                return None
            longest = self.capacity.longest_tokens(free, request.sequences)
            if longest is None or longest - request.prompt_tokens < bounds.least_tokens:
                return None
            bound = expected = min(bound, longest - request.prompt_tokens)
            need = self._need(request, expected)
            # No limit by length does not mean room for one more sequence.
            if not fits(need, free):
                return None
        return Plan(need, bound, expected, bound < request.max_tokens)

    def expected_tokens(self, request: AdmissionRequest, bounds: Bounds) -> int:
        """Prompt and expected output of all its sequences: the cost that fairness counts."""
        output = min(bounds.most_tokens, self._predicted(request))
        return request.prompt_tokens + output * request.sequences

    def need_on_empty_pool(self, request: AdmissionRequest, bounds: Bounds) -> Blocks:
        """What it would reserve with the pool to itself."""
        return self._need(request, self._expected(request, bounds.most_tokens))

    def need_for(self, request: AdmissionRequest, output_tokens: int) -> Blocks:
        """Blocks in use once each sequence has `output_tokens` tokens of output."""
        return self._need(request, output_tokens)

    def _expected(self, request: AdmissionRequest, bound: int) -> int:
        if self._config.mode == "worst_case":
            return bound
        return min(bound, self._predicted(request))

    def _predicted(self, request: AdmissionRequest) -> int:
        seen = self._outputs.predict(request.prompt_tokens)
        return self._config.assumed_output_tokens if seen is None else seen

    def _need(self, request: AdmissionRequest, output_tokens: int) -> Blocks:
        return self.capacity.need(request.prompt_tokens + output_tokens, request.sequences)

    def _too_large(self, request: AdmissionRequest, least_tokens: int) -> str:
        need = self._need(request, least_tokens)
        short = [
            f"{group.name}: {wanted} of {group.blocks} blocks"
            for group, wanted in zip(self.capacity.groups, need, strict=True)
            if wanted > group.blocks
        ]
        times = "" if request.sequences == 1 else f", {request.sequences} times (n)"
        return (
            f"the request needs {request.prompt_tokens + least_tokens} tokens of KV cache "
            f"({request.prompt_tokens} of input and {least_tokens} of output{times}), "
            f"more than there is ({'; '.join(short)})"
        )
