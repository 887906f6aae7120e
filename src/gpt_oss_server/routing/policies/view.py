"""What a ranking policy is told, and what it answers.

Knows: one request's size and promise, one replica's state and speed, a ranking. Does not know: how
either was measured, or any policy. The same types are filled by the live dispatcher and by the
simulator, so that a policy cannot tell them apart. Units: `_tokens`, `_s`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

from gpt_oss_server.memory.kv import KvEstimator


class Speed(Protocol):
    """How fast a pool's replicas are. Calibrated; see `simulate.cost.step_time.StepTime`."""

    def base_s(self, tokens: int) -> float:
        """A step of so many tokens, without KV, prefill operations and its sequences' share."""
        ...

    @property
    def sequence_s(self) -> float:
        """What each sequence adds to a step."""
        ...

    @property
    def kv_s(self) -> float:
        """What each token in the KV cache of a decoding sequence adds to a step."""
        ...

    def prefill_s(self, tokens: int, context: int) -> float:
        """Prefill operations of `tokens` tokens after `context` others."""
        ...


class DeviceMemory(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one GPU of a replica holds, in bytes: all of it, weights, the activations' peak, its
    part of the KV pools; of these each token of a sequence takes `token_bytes`, and each sequence,
    in layers with a window, up to `sequence_bytes`."""

    total_bytes: int
    weights_bytes: int = 0
    activations_peak_bytes: int = 0
    kv_pool_bytes: int = 0
    token_bytes: int
    sequence_bytes: int = 0


class PoolMemory(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What replicas of a pool say of their memory. `kv` estimates a request's KV over all ranks, of
    `kv_capacity_bytes`; `context_tokens` is the longest prompt and answer that the API lets in,
    `open_tokens` the longest answer where the client leaves that open (None: what the context has
    room for)."""

    kv: KvEstimator
    kv_capacity_bytes: int
    context_tokens: int
    open_tokens: int | None = None
    devices: tuple[DeviceMemory, ...]


class PoolFacts(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Replicas of one shape. `kv_tokens` is what one's cache holds, `longest_tokens` the longest
    sequence; `step_prefill_s` is the pure prefill time of a step full of it; `shortest_first`
    whether waiting prompts are computed shortest first; `memory`, where it is known, how bytes
    follow from tokens."""

    name: str
    gpus: int
    speed: Speed
    kv_tokens: int
    longest_tokens: int
    step_prefill_s: float
    max_num_seqs: int
    shortest_first: bool = True
    memory: PoolMemory | None = None


class Ask(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request. `number` counts requests from 0 (rotation and seeded choice use it);
    `expected_output_tokens` is what answers to such prompts have come to. `ttft_s` and `tpot_s`
    are what its class is promised."""

    number: int
    input_tokens: int
    expected_output_tokens: float
    max_output_tokens: int = 0
    ttft_s: float = float("inf")
    tpot_s: float = float("inf")
    now_s: float = 0.0


class ReplicaState(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One replica at one moment.

    `decoding` sequences hold `context_tokens`; `waiting` others have `waiting_tokens` of prompt
    left to compute, which takes `waiting_work_s[c]` seconds of pure prefill for those that had
    2^(c−1) … 2^c − 1 tokens to compute; `prefill_share` is the share of the last ten seconds or so
    that prefill added to its steps. `kv_reserved_tokens` is what its admission holds, in use or
    not. `in_flight` and `assigned_tokens` count requests, and
    prompt plus expected output, of all that was sent there and is not over. `cached_tokens` is
    how much of the asking prompt is in its prefix cache.
    """

    id: str
    pool: PoolFacts
    decoding: int = 0
    context_tokens: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
    waiting_work_s: Sequence[float] = ()
    kv_free_tokens: int = 0
    kv_reserved_tokens: int = 0
    prefill_share: float = 0.0
    in_flight: int = 0
    assigned_tokens: float = 0.0
    cached_tokens: int = 0
    ready: bool = True


class Ranked(NamedTuple):
    """A replica and what put it at its place: the lower the better, ties by id."""

    score: float
    id: str


class RankingPolicy(Protocol):
    """A rule that orders replicas for a request: synchronous, pure, same input same ranking."""

    @property
    def name(self) -> str: ...

    def rank(self, ask: Ask, replicas: Sequence[ReplicaState]) -> list[Ranked]:
        """The replicas that can ever take the request, best first."""
        ...


def able(ask: Ask, replica: ReplicaState) -> bool:
    """Whether a replica is up and its cache holds the request's prompt and stated bound. With the
    bound left open the prompt and a token are the least."""
    need = ask.input_tokens + max(1, ask.max_output_tokens)
    return replica.ready and need <= replica.pool.longest_tokens


def by_score(scored: list[Ranked]) -> list[Ranked]:
    """In order of score, ties by id. Sorts in place and returns its argument."""
    scored.sort()
    return scored
