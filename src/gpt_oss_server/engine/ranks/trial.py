"""The largest steps, run by all ranks together before their pools are there, measured on each.

Knows: that a rank over pools of one block computes as one over real ones. Does not know: which
steps are largest and how memory is counted (`engine.profile`, `engine.meter`), pools.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Seq

from gpt_oss_server.engine import profile
from gpt_oss_server.engine.attention.interface import AttentionBackend
from gpt_oss_server.engine.meter import Meter
from gpt_oss_server.engine.outfit import Bounds
from gpt_oss_server.engine.profile import Limits, Profile, tiny_pools
from gpt_oss_server.engine.ranks.comms import Comms
from gpt_oss_server.engine.ranks.liveness import Activity
from gpt_oss_server.engine.ranks.part import ModelPart
from gpt_oss_server.engine.ranks.place import Place
from gpt_oss_server.engine.ranks.rank import Expected, Rank
from gpt_oss_server.engine.runner import NOTHING, sample_live, spoiled
from gpt_oss_server.engine.sampler import Sampled, Sampler
from gpt_oss_server.engine.sequence import Sequence
from gpt_oss_server.engine.shortage import shortage_of
from gpt_oss_server.engine.single import sampler_of
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.engine.step import StepLayout
from gpt_oss_server.memory.kv import cache_groups


class TrialRunner:
    """A `Runner` of which every rank has one: all are given the same steps in the same order. Only
    the leader has logits to sample from."""

    depth = 1
    lookahead = False

    def __init__(self, rank: Rank, sampler: Sampler) -> None:
        self.sampler = sampler
        self._rank = rank
        self._launched: deque[Expected] = deque()

    def launch(self, layout: StepLayout) -> None:
        self._launched.append(self._rank.expect(layout))

    def sample(self, sampling: Seq[Sequence | None]) -> None:
        """All is done by `collect`."""

    def collect(self, sampling: Seq[Sequence | None]) -> tuple[Sampled, frozenset[int]]:
        try:
            return self._computed(sampling)
        except (RuntimeError, MemoryError) as error:
            shortage = shortage_of(error)
            if shortage is None:
                raise
        raise shortage

    def _computed(self, sampling: Seq[Sequence | None]) -> tuple[Sampled, frozenset[int]]:
        step, logits, written = self._rank.compute(self._launched.popleft())
        self._rank.settle()
        if logits is None:
            return NOTHING, frozenset()
        return sample_live(self.sampler, logits, sampling), spoiled(step, written)


class Trial:
    """This rank over pools of one block. All ranks make one and call the same methods together."""

    def __init__(
        self,
        spec: EngineSpec,
        part: ModelPart,
        backend: AttentionBackend,
        comms: Comms,
        bounds: Bounds,
    ) -> None:
        loaded, shape = part.loaded, part.shape
        layers = tiny_pools(shape, spec.block_size, loaded.dtype, loaded.device)
        self._loaded = loaded
        self._rank = Rank(part, layers, backend, comms, Activity(), spec)
        self._limits = Limits(
            batch_tokens=_step_tokens(spec, bounds),
            max_num_seqs=spec.max_num_seqs,
            max_len=bounds.max_len,
            block_size=spec.block_size,
            vocab_size=loaded.vocab_size,
            groups=len(cache_groups(shape, loaded.dtype.itemsize)),
        )

    def profiled(self, meter: Meter) -> Profile:
        """What the largest steps take of this rank's device. Raises StartupError where they have no
        room."""
        return profile.profiled(self._runner, self._limits, meter, self._loaded.device)

    def warm(self) -> None:
        """Steps of the other classes of sizes: what compiles at its first use has, before any
        request waits for it, and before a rank that is still for long counts as stuck."""
        profile.warm(self._runner(), self._limits)

    def _runner(self) -> TrialRunner:
        return TrialRunner(self._rank, sampler_of(self._loaded, None))


def in_flight_bytes(spec: EngineSpec, part: ModelPart, place: Place, bounds: Bounds) -> int:
    """What a stage holds of steps in flight besides the one that was measured: their hidden states,
    on the way in and on the way out."""
    row_bytes = (part.shape.hidden_size + 1) * part.loaded.dtype.itemsize
    ways = (not place.is_first_stage) + (not place.is_last_stage)
    return (spec.depth - 1) * ways * _step_tokens(spec, bounds) * row_bytes


def _step_tokens(spec: EngineSpec, bounds: Bounds) -> int:
    """The most tokens of one of the steps in flight."""
    return -(-bounds.batch_tokens // spec.depth)
