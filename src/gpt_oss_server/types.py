"""The frozen nouns that cross rooms and processes.

Knows: the shape of a generation job and of what the engine says back. Does not know: text, HTTP,
torch, or how anything is computed. Every type is a `msgspec.Struct`, so that it travels between
the front process and the engine worker as msgpack without a second definition.

Units: tokens are counts of token ids; logprobs are natural logarithms; `_s` is seconds.
"""

from __future__ import annotations

from typing import Literal

import msgspec

FinishReason = Literal["stop", "length", "cancelled"]


GrammarKind = Literal["json_object", "json_schema", "regex", "grammar", "choice"]

GUIDE_END = -1
"""The state in which a guided output is complete."""


class Grammar(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a stretch of output must be. Text, not yet compiled and not yet found valid.

    `source` is the JSON text of the schema, the regular expression, the Lark or GBNF grammar, or
    a JSON list of strings to choose from; empty for `json_object`. `lenient` leaves out what a
    schema asks for and the compiler cannot enforce, where it would be refused otherwise. `param`
    is the request's field that an error names.
    """

    kind: GrammarKind
    source: str = ""
    lenient: bool = False
    param: str = "response_format"


class FreeText(msgspec.Struct, frozen=True, tag="free"):
    """Any text, no special token but those in `exits` (token id → next state).

    With a `share`, of the job's output bound, the state must be left: the text may be as long as
    that share, and the tokens that the rest of the guide needs are kept free. Without one it
    may be cut off by the bound like any other text.
    """

    exits: dict[int, int]
    share: float | None = None


class FixedText(msgspec.Struct, frozen=True, tag="fixed"):
    """One of several token sequences, each with its next state. No sequence is a prefix of
    another."""

    paths: tuple[tuple[tuple[int, ...], int], ...]


class GrammarText(msgspec.Struct, frozen=True, tag="grammar"):
    """Text of the guide's grammar number `grammar`. Where it is complete, the tokens in `exits`
    (token id → next state) are allowed as well; without exits, the model's own end tokens end the
    output."""

    grammar: int
    exits: dict[int, int] = {}


class GuidedSpec(msgspec.Struct, frozen=True):
    """What a guided job may say: a small machine over tokens that starts in state 0.

    `states` refer to each other and to `grammars` by index; `GUIDE_END` ends the job.
    """

    grammars: tuple[Grammar, ...]
    states: tuple[FreeText | FixedText | GrammarText, ...]

    @classmethod
    def whole(cls, grammar: Grammar) -> GuidedSpec:
        """The output, from its first token, is one text of the grammar."""
        return cls((grammar,), (GrammarText(0),))


class SamplingParams(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """How one job picks its tokens. Already validated: the engine trusts the ranges.

    `temperature == 0` is greedy. `top_k == 0` and `top_p == 1.0` mean "off". `seed` is always a
    number here: the front draws one when the client gives none, so that a preempted job repeats
    its own choices. `logprobs is None` means none are wanted; `0` only the chosen token's.
    `guided` restricts the output; None leaves it free.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    guided: GuidedSpec | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence to generate. `n > 1` in a request becomes n jobs with n seeds.

    `max_tokens_explicit` is False when the client left the bound open: the engine may then lower
    it to what the KV pool can hold; an explicit bound that can never fit is refused instead.
    `session` owns the prefix blocks that the job leaves in the cache.
    """

    id: str
    prompt: list[int]
    sampling: SamplingParams
    max_tokens_explicit: bool = True
    session: str | None = None


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Log-probability of one produced token, from the model's raw distribution (before
    temperature, penalties and filters), and of the most likely alternatives, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class TokenDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one engine step produced for one job.

    `token_ids` may be empty only in a finishing delta. The stop token itself (eos or a stop id)
    is delivered in `token_ids`, as the parser needs it. `cached_tokens`, on the first delta, is
    the number of prompt tokens whose KV was found in the prefix cache. `preemptions` counts how
    often the job had to be put back since the delta before.
    """

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish: FinishReason | None = None
    cached_tokens: int | None = None
    preemptions: int = 0


class KvGroupInfo(msgspec.Struct, frozen=True):
    """One block pool: all layers of one attention type. `window` is None for full attention."""

    name: str
    layers: int
    window: int | None
    num_blocks: int
    block_bytes: int


class RankInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What one process or device of an engine holds: the layers `first_layer ..` of them, with
    their weights and their part of the KV pools. `block_bytes` are what a block takes here, in the
    order of the engine's `kv_groups` (empty: all of it). `pid` is None where it is not a process of
    its own."""

    rank: int
    device: str
    pid: int | None = None
    stage: int = 0
    tp_rank: int = 0
    first_layer: int = 0
    layers: int
    weights_bytes: int
    kv_bytes: int
    block_bytes: tuple[int, ...] = ()


class StartPhase(msgspec.Struct, frozen=True, array_like=True):
    """One phase of an engine's start (`engine.phases`). `seconds` is None for one that was skipped,
    and `why` then says why."""

    name: str
    seconds: float | None
    why: str = ""


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a started engine is. `max_model_len` counts prompt and output together. Bytes of
    weights, and of a block in each pool, are sums over the ranks. `micro_batches` steps may be in
    flight, `max_batch_tokens` is for all of them.

    Of each rank, `activations_peak_bytes` are set aside for a step beside weights and KV: as
    measured, where that was done, else `activations_bound_bytes`, which the config predicts.
    `activations_measured_bytes` is what the largest step held at once, to be compared with that
    bound; None where it was not measured. `graphs_bytes` is what recorded steps took, as measured.
    """

    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    block_size: int
    kv_groups: tuple[KvGroupInfo, ...]
    kv_token_capacity: int
    max_num_seqs: int
    max_batch_tokens: int = 2048
    dtype: str
    device: str
    weights_bytes: int
    activations_peak_bytes: int = 0
    activations_bound_bytes: int = 0
    activations_measured_bytes: int | None = None
    graphs_bytes: int | None = None
    attention_backend: str
    ranks: tuple[RankInfo, ...] = ()
    micro_batches: int = 1
    startup: tuple[StartPhase, ...] = ()


StepKind = Literal["prefill", "decode", "mixed"]

STEP_SECONDS_BOUNDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0),
    *(2.5, 5.0),
)
STEP_TOKENS_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class Tally(msgspec.Struct, frozen=True, array_like=True):
    """How often values fell between bounds: `counts[i]` those at most the i-th bound and above
    the one before, the last entry those above all; `total` is their sum."""

    counts: tuple[int, ...]
    total: float


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of the engine, taken after a step. Counters only grow within one worker.

    `blocks_predicted` is what the running sequences should hold by arithmetic if they shared
    nothing: equal to `blocks_in_use` then, and above it by exactly what is shared.
    `step_seconds` and `step_tokens` tell, by what a step did, how long it took and how many
    tokens it computed, within `STEP_SECONDS_BOUNDS` and `STEP_TOKENS_BOUNDS`.

    `shortages` counts steps that the device had no memory for and that were computed again in
    smaller ones, `jobs_too_large` jobs (among `jobs_failed`) for which there was none even a token
    at a time. `step_budget_tokens` is what a step may compute now: less than the settings say for a
    while after a shortage.
    """

    running: int = 0
    waiting: int = 0
    blocks_in_use: dict[str, int] = {}
    blocks_predicted: dict[str, int] = {}
    blocks_cached: dict[str, int] = {}
    blocks_total: dict[str, int] = {}
    steps: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    preemptions: int = 0
    prefix_queries_tokens: int = 0
    prefix_hit_tokens: int = 0
    jobs_finished: int = 0
    jobs_failed: int = 0
    jobs_cancelled: int = 0
    shortages: int = 0
    jobs_too_large: int = 0
    step_budget_tokens: int | None = None
    step_seconds: dict[StepKind, Tally] = {}
    step_tokens: dict[StepKind, Tally] = {}


class EngineState(msgspec.Struct, frozen=True):
    """Whether the engine can take work, why not, and how often its worker was restarted."""

    ready: bool
    reason: str
    restarts: int = 0
