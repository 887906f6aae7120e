"""The measurements, one function each: which rounds are played, in what order, by whom.

Knows: scales, interleaving. Does not know: processes, formats. Rounds of the systems alternate
(A B, B A, …), so that what else the machine does hits all of them; no prompt is ever sent to one
system twice, except where a section is about exactly that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from engine_bench import figures, play
from engine_bench.figures import Round
from engine_bench.systems import HttpSystem, LineSystem
from engine_bench.vocabulary import prompts

PROMPT_TOKENS = 130
OUTPUT_TOKENS = 64
CONCURRENCY = (1, 8, 32)
BOUNDARY_CONCURRENCY = 8
SHARED_TOKENS = 2048
SUFFIX_TOKENS = 32
HITS = 3
LONG_TOKENS = 4096
LONG_OUTPUT_TOKENS = 8

Say = Callable[[str], None]


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    rounds: int = 3
    requests: tuple[int, ...] = (8, 48, 96)
    boundary_rounds: int = 5
    boundary_requests: int = 48
    prefix_rounds: int = 5
    mixed_rounds: int = 2
    mixed_s: float = 20.0
    leak_requests: int = 2000


QUICK = Scale(
    rounds=1,
    requests=(3, 16, 32),
    boundary_rounds=1,
    boundary_requests=16,
    prefix_rounds=1,
    mixed_rounds=1,
    mixed_s=6.0,
    leak_requests=100,
)


def warm_up(systems: Sequence[play.System], say: Say) -> None:
    """First requests are not measured: allocation, and the peer's set-up on the first one."""
    for system in systems:
        say(f"warm-up: {system.name}")
        play.closed(system, prompts("warm-1", 2, PROMPT_TOKENS), 8, 1)
        play.closed(system, prompts("warm-32", 32, PROMPT_TOKENS), 4, 32)


def throughput(systems: Sequence[play.System], scale: Scale, say: Say) -> dict[str, Any]:
    """Closed loops at each concurrency. Returns {concurrency: {system: [Round, …]}}."""
    found: dict[int, dict[str, list[Round]]] = {
        c: {system.name: [] for system in systems} for c in CONCURRENCY
    }
    for n in range(scale.rounds):
        for concurrency, count in zip(CONCURRENCY, scale.requests, strict=True):
            batch = prompts(f"closed-{n}-{concurrency}", count, PROMPT_TOKENS)
            for system in _turn(systems, n):
                one = play.closed(system, batch, OUTPUT_TOKENS, concurrency)
                found[concurrency][system.name].append(one)
                say(
                    f"round {n + 1}/{scale.rounds}, concurrency {concurrency}, {system.name}: "
                    f"{one.tokens_per_s:.0f} tok/s"
                )
    return {str(c): by_name for c, by_name in found.items()}


def boundary(server: HttpSystem, core: LineSystem, scale: Scale, say: Say) -> dict[str, Any]:
    """The same prompts over HTTP and straight into the engine's core."""
    over_http: list[Round] = []
    direct: list[Round] = []
    for n in range(scale.boundary_rounds):
        batch = prompts(f"boundary-{n}", scale.boundary_requests, PROMPT_TOKENS)
        for system in _turn((server, core), n):
            one = play.closed(system, batch, OUTPUT_TOKENS, BOUNDARY_CONCURRENCY)
            (over_http if system is server else direct).append(one)
        say(
            f"boundary {n + 1}/{scale.boundary_rounds}: HTTP {over_http[-1].tokens_per_s:.0f}, "
            f"in-process {direct[-1].tokens_per_s:.0f} tok/s"
        )
    return {
        "http": figures.summary(over_http),
        "in_process": figures.summary(direct),
        "ratio": figures.rate_ratio(over_http, direct),
        "ratio_per_cpu_s": figures.cpu_rate_ratio(over_http, direct),
    }


def prefix(systems: Sequence[HttpSystem], scale: Scale, say: Say) -> dict[str, Any]:
    """One request with a new long beginning, then others that share it; one at a time."""
    found: dict[str, Any] = {}
    cold: dict[str, list[float]] = {system.name: [] for system in systems}
    hit: dict[str, list[float]] = {system.name: [] for system in systems}
    for n in range(scale.prefix_rounds):
        (shared,) = prompts(f"prefix-{n}", 1, SHARED_TOKENS)
        tails = prompts(f"tails-{n}", 1 + HITS, SUFFIX_TOKENS)
        for system in _turn(systems, n):
            one = play.closed(system, [shared + tail for tail in tails], 4, 1)
            times_s = figures.times_to_first_s(one.requests)
            cold[system.name] += times_s[:1]
            hit[system.name] += times_s[1:]
        say(f"prefix {n + 1}/{scale.prefix_rounds}")
    for system in systems:
        cold_s, hit_s = figures.median(cold[system.name]), figures.median(hit[system.name])
        found[system.name] = {
            "cold_ttft_ms": round(cold_s * 1000, 1) if cold_s else None,
            "hit_ttft_ms": round(hit_s * 1000, 1) if hit_s else None,
            "ratio": hit_s / cold_s if cold_s and hit_s else None,
        }
    return found


def mixed(systems: Sequence[HttpSystem], scale: Scale, say: Say) -> dict[str, Any]:
    """Eight chats in a closed loop and a long prompt every second."""
    found: dict[str, list[Round]] = {system.name: [] for system in systems}
    for n in range(scale.mixed_rounds):
        for system in _turn(systems, n):
            say(f"mixed load {n + 1}/{scale.mixed_rounds}: {system.name}")
            found[system.name].append(
                play.mixed(
                    system,
                    chats=prompts(f"chats-{n}", 2000, PROMPT_TOKENS),
                    chat_tokens=OUTPUT_TOKENS,
                    concurrency=BOUNDARY_CONCURRENCY,
                    long=prompts(f"long-{n}", int(scale.mixed_s), LONG_TOKENS),
                    long_tokens=LONG_OUTPUT_TOKENS,
                    period_s=1.0,
                    duration_s=scale.mixed_s,
                )
            )
            if n + 1 < scale.mixed_rounds and not play.settle(system):
                say(f"{system.name} still works on abandoned requests: restarting it")
                system.stop()
                system.start()
                warm_up([system], say)
    return {name: figures.mixed_summary(rounds) for name, rounds in found.items()}


def _turn(systems: Sequence[Any], n: int) -> list[Any]:
    return list(systems) if n % 2 == 0 else list(reversed(systems))
