"""Where one rank stands among the others.

Knows: ranks, tensor ranks, pipeline stages, which rank leads. Does not know: processes, devices.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpt_oss_server.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Place:
    """Rank `rank` of `tp` tensor ranks or of `pp` pipeline stages; only one may be above 1.

    Raises ConfigError for a rank that is not there, or a layout of both kinds.
    """

    rank: int = 0
    tp: int = 1
    pp: int = 1

    def __post_init__(self) -> None:
        if self.tp < 1 or self.pp < 1 or (self.tp > 1 and self.pp > 1):
            raise ConfigError(
                f"{self.tp} tensor ranks and {self.pp} pipeline stages: only one of them may be "
                "above 1, and none below"
            )
        if not 0 <= self.rank < self.world:
            raise ConfigError(f"rank {self.rank} does not exist among {self.world}")

    @property
    def world(self) -> int:
        """How many ranks there are."""
        return self.tp * self.pp

    @property
    def stage(self) -> int:
        """The pipeline stage, from 0; 0 in tensor mode."""
        return self.rank if self.pp > 1 else 0

    @property
    def tp_rank(self) -> int:
        """Which share of each matrix this rank holds; 0 in pipeline mode."""
        return self.rank if self.tp > 1 else 0

    @property
    def leader(self) -> int:
        """The rank that has the logits: the first of tensor ranks, the last of stages."""
        return self.pp - 1

    @property
    def is_leader(self) -> bool:
        return self.rank == self.leader

    @property
    def is_first_stage(self) -> bool:
        return self.stage == 0

    @property
    def is_last_stage(self) -> bool:
        return self.stage == self.pp - 1
