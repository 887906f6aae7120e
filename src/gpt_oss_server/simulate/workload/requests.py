"""Who asks for how much, and when: the requests that a simulation plays.

Knows: one request's facts, a sorted list of them, what was wrong with the input. Does not know:
files (`files`), generators (`made`), replicas.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from gpt_oss_server.errors import ConfigError

UNIT_TOKENS = 512
"""Tokens that one hash stands for, unless the source says otherwise (Mooncake's figure)."""
MOST_FACTOR = 1e12
LONGEST_S = 1e10
"""Three hundred years. Beyond, the last bits of a moment are no longer small beside a step."""


class Request(NamedTuple):
    """One request. `units` are the hashes of its prompt's leading `unit_tokens` stretches, equal
    hashes meaning equal tokens up to there; `tail_units` those that its answer completes.
    `max_output_tokens` is the bound that the client stated; 0: it left it open."""

    arrival_s: float
    input_tokens: int
    output_tokens: int
    units: tuple[int, ...] = ()
    tail_units: tuple[int, ...] = ()
    max_output_tokens: int = 0
    client: str = ""
    priority: int = 5


@dataclass
class Problems:
    """What was wrong with the input, counted by kind, with the first few lines of each."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, example: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        shown = self.examples.setdefault(kind, [])
        if len(shown) < 3:
            shown.append(example)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def lines(self) -> list[str]:
        """One line per kind, for people."""
        return [
            f"{count} × {kind} ({'; '.join(self.examples[kind])})"
            for kind, count in sorted(self.counts.items())
        ]


@dataclass(frozen=True)
class Workload:
    """Requests by arrival, the first at 0 s or later. `problems` is what reading them found."""

    name: str
    requests: tuple[Request, ...]
    unit_tokens: int = UNIT_TOKENS
    problems: Problems = field(default_factory=Problems)

    @property
    def duration_s(self) -> float:
        """From the first arrival to the last."""
        if not self.requests:
            return 0.0
        return self.requests[-1].arrival_s - self.requests[0].arrival_s

    @property
    def requests_per_s(self) -> float:
        return (len(self.requests) - 1) / self.duration_s if self.duration_s > 0 else 0.0

    def at_load(self, factor: float) -> Workload:
        """The same requests, `factor` times as fast. Raises ConfigError."""
        if not 0 < factor < math.inf:
            raise ConfigError(f"a load factor must be above 0, not {factor}")
        last_s = self.requests[-1].arrival_s if self.requests else 0.0
        if factor > MOST_FACTOR or last_s / factor > LONGEST_S:
            raise ConfigError(
                f"{self.name}: played {factor:g} times as fast it would be over in "
                f"{last_s / factor:g} s, which is more, or less, than can be simulated"
            )
        faster = tuple(r._replace(arrival_s=r.arrival_s / factor) for r in self.requests)
        return replace(self, requests=faster)

    def between(self, start_s: float, end_s: float) -> Workload:
        """The requests that arrive in [start, end), from 0 s on."""
        kept = tuple(
            r._replace(arrival_s=r.arrival_s - start_s)
            for r in self.requests
            if start_s <= r.arrival_s < end_s
        )
        return replace(self, requests=kept)

    def first(self, count: int) -> Workload:
        return replace(self, requests=self.requests[:count])


def workload_of(
    name: str,
    requests: Iterable[Request],
    unit_tokens: int = UNIT_TOKENS,
    problems: Problems | None = None,
) -> Workload:
    """A workload of requests in any order. Ties keep the order given."""
    ordered = tuple(sorted(requests, key=lambda r: r.arrival_s))
    return Workload(name, ordered, unit_tokens, problems or Problems())
