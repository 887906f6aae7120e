"""Made-up workloads with published statistics, so that nobody needs a download.

Knows: length and arrival distributions, conversations whose prompts grow, named mixes. Does not
know: files, replicas. Everything follows from the seed alone.

Lengths are log-normal, given by their median and 90th percentile and clipped; sources of the
figures stand beside the mixes. Arrivals of conversations are gamma-spaced (`burstiness` is the
coefficient of variation of the gaps: 1 is Poisson), under a day curve `1 + swing·cos` with its peak
at `peak_hour`, with `bursts` of a factor now and then. A later turn comes when the answer before
it would have been read.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.simulate.workload.requests import UNIT_TOKENS, Request, Workload, workload_of

MOST_REQUESTS = 5_000_000
SECONDS_PER_TOKEN_READ = 0.02
_Z90 = 1.2815515655446004
_SESSION_UNITS = 1 << 24


@dataclass(frozen=True)
class Lengths:
    """Tokens: log-normal with this median and 90th percentile, within `least … most`."""

    median: float
    p90: float
    least: int = 1
    most: int = 120_000

    def __post_init__(self) -> None:
        if not 0 < self.median <= self.p90:
            raise ConfigError("lengths need 0 < median <= p90")
        if not 1 <= self.least <= self.most:
            raise ConfigError("lengths need 1 <= least <= most")

    def draw(self, rng: random.Random) -> int:
        spread = math.log(self.p90 / self.median) / _Z90
        value = self.median * math.exp(spread * rng.gauss(0.0, 1.0))
        return int(min(self.most, max(self.least, round(value))))


@dataclass(frozen=True)
class Kind:
    """One kind of conversation. `share` is of the conversations; `turns` the mean number of turns
    (geometric), `more` the tokens that the user adds in each later one; `system_tokens` open every
    conversation of this kind."""

    name: str
    share: float
    prompt: Lengths
    answer: Lengths
    turns: float = 1.0
    more: Lengths = Lengths(80, 400)
    think_s: float = 20.0
    system_tokens: int = 0


@dataclass(frozen=True)
class Arrivals:
    """When conversations begin. `bursts_per_hour` times the rate is `burst_factor`-fold for
    `burst_s` seconds."""

    burstiness: float = 1.0
    day_swing: float = 0.0
    peak_hour: float = 14.0
    bursts_per_hour: float = 0.0
    burst_factor: float = 4.0
    burst_s: float = 30.0

    def __post_init__(self) -> None:
        if not self.burstiness > 0 or not 0 <= self.day_swing < 1 or self.bursts_per_hour < 0:
            raise ConfigError("arrivals need burstiness > 0, 0 <= day_swing < 1, bursts >= 0")


PATTERNS: Mapping[str, Arrivals] = MappingProxyType(
    {
        "poisson": Arrivals(),
        # ServeGen (2025): coefficients of variation of 1 to 2.5 where requests come in bursts.
        "bursty": Arrivals(burstiness=2.0, bursts_per_hour=6.0),
        # Azure's and Mooncake's days: the busiest hours have some four times the quietest's.
        "day": Arrivals(day_swing=0.6),
    }
)
"""By name, for those who need not say more."""

# Azure LLM inference trace 2023 (Splitwise, ISCA 2024): conversation, code.
_CHAT = Kind("chat", 1.0, Lengths(1020, 2734, 4), Lengths(129, 424))
_CODE = Kind("code", 1.0, Lengths(1930, 4500, 4), Lengths(13, 60))
# Several turns: ShareGPT has 3.5 on average (vLLM's benchmarks).
_TURNS = Kind(
    "turns", 1.0, Lengths(120, 900), Lengths(200, 600), turns=3.5, think_s=30.0, system_tokens=1024
)
# Mooncake, FAST'25: conversation trace; agents of its tool trace grow by what tools return.
_LONG = Kind("long", 1.0, Lengths(6909, 27367, 64), Lengths(350, 597))
_AGENT = Kind(
    "agent",
    1.0,
    Lengths(3000, 8000),
    Lengths(60, 300),
    turns=12.0,
    more=Lengths(400, 2500),
    think_s=3.0,
    system_tokens=4096,
)
_DOCUMENT = Kind("document", 1.0, Lengths(30_000, 80_000, 2048), Lengths(400, 1200))
# ServeGen (2025): deepseek-r1 clients, sampled.
_REASONING = Kind("reasoning", 1.0, Lengths(350, 1800), Lengths(788, 3411, 1, 30_000))


def _of(kind: Kind, share: float) -> Kind:
    return Kind(**{**kind.__dict__, "share": share})


MIXES: Mapping[str, tuple[Kind, ...]] = MappingProxyType(
    {
        "chat": (_CHAT,),
        "turns": (_TURNS,),
        "agents": (_AGENT,),
        "documents": (_DOCUMENT,),
        "reasoning": (_REASONING,),
        "long": (_LONG,),
        "mixed": (
            _of(_CHAT, 0.6),
            _of(_CODE, 0.15),
            _of(_REASONING, 0.15),
            _of(_DOCUMENT, 0.05),
            _of(_AGENT, 0.05),
        ),
    }
)
"""Named mixes for `make_workload`."""


def make_workload(
    mix: str | tuple[Kind, ...],
    *,
    requests_per_s: float,
    duration_s: float,
    seed: int = 0,
    arrivals: Arrivals | None = None,
    start_hour: float = 0.0,
) -> Workload:
    """A workload of a mix at a mean rate of requests (not conversations), by day curve and bursts.

    Raises ConfigError for an unknown mix, an impossible rate or duration.
    """
    name = mix if isinstance(mix, str) else "made"
    if isinstance(mix, str):
        if mix not in MIXES:
            raise ConfigError(f"unknown workload mix {mix}: use one of {', '.join(MIXES)}")
        mix = MIXES[mix]
    if not (requests_per_s > 0 and duration_s > 0):
        raise ConfigError("a workload needs requests_per_s > 0 and duration_s > 0")
    if not requests_per_s * duration_s <= MOST_REQUESTS:
        raise ConfigError(
            f"{requests_per_s:g} requests a second for {duration_s:g} s are more than the "
            f"{MOST_REQUESTS:,} that can be held"
        )
    rng = random.Random(seed)
    total = sum(kind.share for kind in mix)
    per_conversation = sum(kind.share * kind.turns for kind in mix) / total
    rate = requests_per_s / per_conversation
    asked: list[Request] = []
    begins = _begins(rng, rate, duration_s, arrivals or Arrivals(), start_hour)
    for number, begin_s in enumerate(begins):
        place = rng.choices(range(len(mix)), [kind.share for kind in mix])[0]
        asked += _conversation(rng, mix[place], place, number, begin_s, duration_s)
    return workload_of(name, asked)


def _begins(
    rng: random.Random, rate: float, duration_s: float, arrivals: Arrivals, start_hour: float
) -> Iterator[float]:
    """Moments at which conversations begin: gamma-spaced in operational time, which passes as fast
    as the rate of the moment says (the day's mean is 1)."""
    shape = 1.0 / arrivals.burstiness**2
    now_s, burst_until_s = 0.0, -1.0
    next_burst_s = _exponential(rng, arrivals.bursts_per_hour / 3600.0)
    steady = not arrivals.day_swing and not arrivals.bursts_per_hour
    longest_s = math.inf if steady else 10.0
    while True:
        left = rng.gammavariate(shape, 1.0 / shape) / rate
        # The rate changes slowly beside a gap, so that pieces of at most ten seconds follow it.
        while left > 0.0:
            if now_s >= next_burst_s:
                burst_until_s = next_burst_s + arrivals.burst_s
                next_burst_s += _exponential(rng, arrivals.bursts_per_hour / 3600.0)
            hour_angle = 2 * math.pi * ((now_s / 3600.0 + start_hour) - arrivals.peak_hour) / 24.0
            speed = 1.0 + arrivals.day_swing * math.cos(hour_angle)
            if now_s < burst_until_s:
                speed *= arrivals.burst_factor
            piece_s = min(longest_s, left / speed)
            now_s += piece_s
            left = left - piece_s * speed if piece_s == longest_s else 0.0
            if now_s >= duration_s:
                return
        yield now_s


def _exponential(rng: random.Random, rate: float) -> float:
    return rng.expovariate(rate) if rate > 0 else math.inf


def _conversation(
    rng: random.Random, kind: Kind, place: int, number: int, begin_s: float, end_s: float
) -> Iterator[Request]:
    """The turns of one conversation. Each prompt is all that was said before and a little more; its
    leading units are the kind's system prompt, then this conversation's own."""
    shared = kind.system_tokens // UNIT_TOKENS
    base = (number + 1) * _SESSION_UNITS
    prompt = kind.system_tokens + kind.prompt.draw(rng)
    at_s = begin_s
    while at_s < end_s:
        answer = kind.answer.draw(rng)
        if prompt + answer > kind.prompt.most:
            return
        inside = prompt // UNIT_TOKENS
        units = tuple(-(place * 4096 + i + 1) if i < shared else base + i for i in range(inside))
        tail = range(inside, (prompt + answer) // UNIT_TOKENS)
        yield Request(
            at_s,
            prompt,
            answer,
            units,
            tuple(base + i for i in tail),
            client=f"{kind.name}-{number}",
        )
        if rng.random() >= 1.0 - 1.0 / kind.turns:
            return
        at_s += answer * SECONDS_PER_TOKEN_READ + rng.expovariate(1.0 / kind.think_s)
        prompt += answer + kind.more.draw(rng)
