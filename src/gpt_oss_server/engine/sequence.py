"""One job inside the engine: its tokens, how far they are computed, and what it holds.

Knows: token ids and block ids of one sequence. Does not know: pools, tensors, other sequences.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from gpt_oss_server.engine.blocks import PrefixHasher
from gpt_oss_server.types import FinishReason, Job

NO_SLOT = -1


@dataclass(slots=True, eq=False)
class Sequence:
    """A job's life in the engine. `arrival` is its rank for fairness and preemption and never
    changes; `computed` counts tokens whose KV is in the pool, `launched` those and the ones that
    steps in flight compute; `turn` numbers the last step that it was in: where not all decode in
    one, those go first for whom it is longest ago. `ahead` is 1 while its next token is sampled but
    not known here, from row `ahead_row` of what was sampled; steps may be launched with it all the
    same. `slot` is its row in the persistent step arrays while it runs. `blocks[g]` are the block
    ids it holds in group g, for the logical blocks `first_block[g] ..`. Up to `parting_block` its
    beginning was found in the full-attention pools when it was last looked up.
    """

    key: int
    job: Job
    arrival: int
    max_tokens: int
    _buffer: npt.NDArray[np.int32]
    length: int
    hasher: PrefixHasher
    blocks: list[list[int]]
    first_block: list[int]
    computed: int = 0
    launched: int = 0
    ahead: int = 0
    ahead_row: int = 0
    turn: int = 0
    registered_blocks: int = 0
    parting_block: int = 0
    slot: int = NO_SLOT
    cached_tokens: int | None = None
    untold_preemptions: int = 0
    finish: FinishReason | None = None
    stop_ids: frozenset[int] = field(default_factory=frozenset)

    @classmethod
    def create(
        cls,
        key: int,
        job: Job,
        *,
        arrival: int,
        max_tokens: int,
        groups: int,
        block_size: int,
        stop_ids: frozenset[int],
    ) -> Sequence:
        """A sequence that has computed nothing and holds nothing."""
        prompt = np.asarray(job.prompt, dtype=np.int32)
        return cls(
            key=key,
            job=job,
            arrival=arrival,
            max_tokens=max_tokens,
            _buffer=prompt,
            length=len(prompt),
            hasher=PrefixHasher(block_size),
            blocks=[[] for _ in range(groups)],
            first_block=[0] * groups,
            stop_ids=stop_ids,
        )

    @property
    def tokens(self) -> npt.NDArray[np.int32]:
        """Prompt and output so far, a view of shape [length]."""
        return self._buffer[: self.length]

    @property
    def prompt_len(self) -> int:
        return len(self.job.prompt)

    @property
    def output_len(self) -> int:
        return self.length - self.prompt_len

    @property
    def remaining(self) -> int:
        """Tokens that must still be launched before the next one can be sampled."""
        return self.length + self.ahead - self.launched

    @property
    def in_flight(self) -> bool:
        """Some step that has not come back computes tokens of it."""
        return self.launched > self.computed

    @property
    def decoding(self) -> bool:
        """Only the last sampled token is left to compute."""
        return self.remaining == 1 and self.output_len + self.ahead > 0

    @property
    def generating(self) -> bool:
        """It decodes, or its last sampled token is in flight."""
        return self.remaining <= 1 and self.output_len + self.ahead > 0

    @property
    def exhausted(self) -> bool:
        """With the token that is not known yet it has all that it may produce."""
        return self.output_len + self.ahead >= self.max_tokens

    def append(self, token_id: int) -> None:
        if self.length == len(self._buffer):
            grown = np.empty(max(32, self.length * 3 // 2), dtype=np.int32)
            grown[: self.length] = self._buffer
            self._buffer = grown
        self._buffer[self.length] = token_id
        self.length += 1
