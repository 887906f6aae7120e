"""The real engine core over a runner without a model, that takes steps through two stages: the
first computes a step when it is launched, the second when it is collected.

Knows: `Runner`, and what each KV slot must hold. Does not know: torch's modules.

A slot holds the whole prefix of its token, which follows from the slot of the token before: so
whoever reads a block that was given to another too early, or written by a step out of turn, says
something that the job does not say alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np

from gpt_oss_server.engine.core import EngineCore
from gpt_oss_server.engine.guided import Guides
from gpt_oss_server.engine.kv_space import GroupSpec
from gpt_oss_server.engine.outfit import Outfit
from gpt_oss_server.engine.sampler import Sampled, Sampler
from gpt_oss_server.engine.sequence import Sequence
from gpt_oss_server.engine.shortage import Shortage
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.engine.step import StepLayout
from gpt_oss_server.engine.step_cost import StepCost
from gpt_oss_server.types import EngineInfo, Job, KvGroupInfo, SamplingParams, TokenDelta

VOCAB = 5
# A token whose keys are not finite.
POISON = VOCAB - 1
NOWHERE = 10**6


def next_token(prefix: tuple[int, ...]) -> int:
    """The stand-in's model; never the poison."""
    return hash(prefix) % (VOCAB - 1)


def said_alone(prompt: Seq[int], count: int) -> list[int]:
    """What a job of this prompt says."""
    prefix = tuple(prompt)
    for _ in range(count):
        prefix += (next_token(prefix),)
    return list(prefix[len(prompt) :])


class Stage:
    """One stage's KV: for each group, which prefix each slot holds."""

    def __init__(self, windows: Seq[int | None], block_size: int) -> None:
        self._windows = windows
        self._size = block_size
        self._slots: list[dict[int, tuple[int, ...]]] = [{} for _ in windows]

    def compute(self, layout: StepLayout) -> list[tuple[int, ...]]:
        """Write every token of the step, check all that each attends to; the tokens' prefixes."""
        host = layout.host
        prefixes: list[tuple[int, ...]] = []
        for row in range(len(host.seq_lens)):
            begin, end = int(host.query_start[row]), int(host.query_start[row + 1])
            first = int(host.seq_lens[row]) - (end - begin)
            for n in range(begin, end):
                prefixes.append(self._token(layout, row, first + n - begin, n))
        return prefixes

    def _token(self, layout: StepLayout, row: int, position: int, n: int) -> tuple[int, ...]:
        before = self._at(layout, 0, row, position - 1) if position else ()
        prefix = (*before, int(layout.token_ids[n]))
        assert len(prefix) == position + 1, "another sequence's KV was read"
        for g, window in enumerate(self._windows):
            self._slots[g][self._slot(layout, g, row, position)] = prefix
            low = 0 if window is None else max(0, position - window + 1)
            for seen in range(low, position + 1):
                assert self._at(layout, g, row, seen) == prefix[: seen + 1], "another prefix's KV"
        return prefix

    def _at(self, layout: StepLayout, group: int, row: int, position: int) -> tuple[int, ...]:
        return self._slots[group].get(self._slot(layout, group, row, position), ())

    def _slot(self, layout: StepLayout, group: int, row: int, position: int) -> int:
        block = int(layout.host.tables[group][row, position // self._size])
        return block * self._size + position % self._size


class TwoStageRunner:
    """See the module. `sizes` notes every step's (sequences, tokens). Of depth 1, it may have
    `room` for so many tokens only; what is beyond is written and then refused."""

    def __init__(
        self,
        depth: int,
        windows: Seq[int | None],
        block_size: int,
        sampler: Sampler,
        *,
        lookahead: bool = False,
        room: int = NOWHERE,
    ) -> None:
        self.depth = depth
        self.lookahead = lookahead
        self.sampler = sampler
        self.sizes: list[tuple[int, int]] = []
        self.most_in_flight = 0
        self._stages = [Stage(windows, block_size) for _ in range(2)]
        self._flights: deque[StepLayout] = deque()
        self._last = np.zeros(0, dtype=np.int64)
        self.guessed = 0
        self.room = room
        self.shortages = 0

    def _refuse(self, size: int) -> None:
        if size > self.room:
            self.shortages += 1
            raise Shortage("it is too large")

    def launch(self, layout: StepLayout) -> None:
        layout.token_ids[layout.ahead_rows] = self._last[layout.ahead_from]
        self.guessed += len(layout.ahead_rows)
        self._stages[0].compute(layout)
        self._refuse(len(layout.token_ids))
        self._flights.append(layout)
        self.sizes.append((len(layout.host.seq_lens), len(layout.token_ids)))
        self.most_in_flight = max(self.most_in_flight, len(self._flights))
        assert len(self._flights) <= self.depth + self.lookahead

    def sample(self, sampling: Seq[Sequence | None]) -> None:
        """The tokens as the second stage will find them, and wrong ones where told so."""
        try:
            # Needs twice the room that computing does.
            self._refuse(2 * len(sampling) - 1)
        except Shortage:
            self._flights.popleft()
            raise
        tokens = []
        for seq in sampling:
            if seq is not None:
                token = next_token(tuple(seq.tokens.tolist()))
                tokens.append((token + self._wrong(seq)) % (VOCAB - 1))
        self._last = np.array(tokens, dtype=np.int64)

    def _wrong(self, seq: Sequence) -> int:
        """Whether the guess of this sequence's next token is wrong: now and then."""
        return int(self.lookahead and hash((seq.key, seq.length)) % 5 == 0)

    def collect(self, sampling: Seq[Sequence | None]) -> tuple[Sampled, frozenset[int]]:
        layout = self._flights.popleft()
        prefixes = self._stages[1].compute(layout)
        assert len(sampling) == len(layout.sample_rows)
        tokens: list[int] = []
        settled = set()
        for row, seq in zip(layout.sample_rows.tolist(), sampling, strict=True):
            if seq is not None:
                if self._wrong(seq):
                    settled.add(len(tokens))
                assert prefixes[row] == tuple(seq.tokens.tolist()), "a stale result"
                tokens.append(next_token(prefixes[row]))
        bounds = layout.host.query_start
        spoiled = frozenset(
            i
            for i in range(len(layout.host.seq_lens))
            if POISON in layout.token_ids[bounds[i] : bounds[i + 1]]
        )
        count = len(tokens)
        return Sampled(tokens, [True] * count, [None] * count, frozenset(settled)), spoiled


@dataclass(frozen=True)
class CoreConfig:
    """What an engine is built from. `sliding` is a second pool's (window, blocks)."""

    depth: int = 2
    lookahead: bool = False
    room: int = NOWHERE
    blocks: int = 12
    sliding: tuple[int, int] | None = None
    block_size: int = 2
    max_num_seqs: int = 6
    max_batch_tokens: int = 12
    prefix_caching: bool = True
    order: str = "shortest"


@dataclass
class PipelinedCore:
    """An `EngineCore` over a `TwoStageRunner`, and what it has said by job key."""

    config: CoreConfig
    said: dict[int, list[int]] = field(default_factory=dict)
    finished: dict[int, str] = field(default_factory=dict)
    failed: dict[int, Exception] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = self.config
        groups = [GroupSpec("full", None, config.blocks)]
        if config.sliding is not None:
            groups.append(GroupSpec("sliding", *config.sliding))
        windows = [group.window for group in groups]
        spec = EngineSpec(
            folder="nowhere",
            block_size=config.block_size,
            max_num_seqs=config.max_num_seqs,
            prefix_caching=config.prefix_caching,
            prefill_order=config.order,  # type: ignore[arg-type]
        )
        info = EngineInfo(
            vocab_size=VOCAB,
            max_model_len=64,
            eos_token_ids=(),
            block_size=config.block_size,
            kv_groups=tuple(KvGroupInfo(g.name, 1, g.window, g.num_blocks, 1) for g in groups),
            kv_token_capacity=config.blocks * config.block_size,
            max_num_seqs=config.max_num_seqs,
            max_batch_tokens=config.max_batch_tokens,
            dtype="none",
            device="none",
            weights_bytes=0,
            attention_backend="none",
        )

        def make_runner(guides: Guides) -> TwoStageRunner:
            import torch

            sampler = Sampler(VOCAB, torch.device("cpu"), guides)
            self.runner = TwoStageRunner(
                config.depth,
                windows,
                config.block_size,
                sampler,
                lookahead=config.lookahead,
                room=config.room,
            )
            return self.runner

        self.core = EngineCore(spec, outfit=Outfit(info, StepCost(), make_runner))

    def submit(self, key: int, prompt: Seq[int], max_tokens: int) -> None:
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0)
        self.core.submit(key, Job(id=str(key), prompt=list(prompt), sampling=sampling))
        self.said[key] = []

    def step(self) -> None:
        """One step, with all that must hold behind it."""
        events = self.core.step()
        for key, delta in events.deltas:
            self._note(key, delta)
        for key, error in events.failures:
            assert key not in self.finished
            self.failed[key] = error
        self.check()

    def _note(self, key: int, delta: TokenDelta) -> None:
        assert key not in self.finished
        assert key not in self.failed
        self.said[key] += delta.token_ids
        if delta.finish is not None:
            self.finished[key] = delta.finish

    def check(self) -> None:
        """Held blocks are those predicted, nobody else holds any, and nothing in flight yields."""
        core = self.core
        running = core.batcher.running.values()
        for seq in running:
            assert [len(blocks) for blocks in seq.blocks] == core.kv.predicted_blocks(seq)
            assert seq.computed <= seq.launched <= seq.length + seq.ahead
        for seq in core.batcher.waiting.values():
            assert not seq.in_flight
        for g, pool in enumerate(core.kv.pools):
            assert pool.in_use == len({block for seq in running for block in seq.blocks[g]})
        stats = core.stats()
        for name, held in stats.blocks_in_use.items():
            assert held <= stats.blocks_predicted[name]

    def drain(self) -> None:
        """Until nothing is left; fails when that takes more steps than any schedule may."""
        for _ in range(3000):
            if not self.core.has_work:
                break
            self.step()
        assert not self.core.has_work, "jobs do not end"
        assert not any(self.core.stats().blocks_in_use.values())
        assert self.core.kv.free_slots == self.config.max_num_seqs
