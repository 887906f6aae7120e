"""A whole model in one process, from loaded weights to a runner: profiled, recorded, warmed.

Knows: in which order these follow, and what each needs of the others. Does not know: how weights
are loaded, how large the pools are made (`outfit`), how memory is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from gpt_oss_server.engine.attention.interface import AttentionBackend, LayerKv
from gpt_oss_server.engine.forward import Forward
from gpt_oss_server.engine.graphs import DecodeGraphs, Room, make_recorder, predicted_bytes
from gpt_oss_server.engine.guided import Guides
from gpt_oss_server.engine.loader import LoadedModel
from gpt_oss_server.engine.meter import Meter
from gpt_oss_server.engine.nucleus import make_nucleus
from gpt_oss_server.engine.phases import Phases, summary
from gpt_oss_server.engine.profile import Limits, Profile, profiled, tiny_pools, warm
from gpt_oss_server.engine.runner import ModelRunner, Runner
from gpt_oss_server.engine.sampler import Sampler
from gpt_oss_server.engine.shortage import Shortage
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.errors import StartupError
from gpt_oss_server.memory.architecture import ModelShape
from gpt_oss_server.types import EngineInfo

MIB = 1 << 20


@dataclass(frozen=True)
class Single:
    """What is there once the weights are."""

    spec: EngineSpec
    loaded: LoadedModel
    shape: ModelShape
    limits: Limits
    backend: AttentionBackend
    forward: Forward

    @property
    def capturable(self) -> bool:
        return self.forward.capturable and self.backend.capturable

    @property
    def room(self) -> Room:
        """What recorded steps must have place for."""
        columns = -(-self.limits.max_len // self.spec.block_size)
        return Room(self.spec.max_num_seqs, columns, self.limits.groups, self.spec.block_size)

    def runner(
        self,
        layers: Sequence[LayerKv],
        guides: Guides | None,
        graphs: DecodeGraphs | None = None,
    ) -> ModelRunner:
        device, spec = self.loaded.device, self.spec
        # On a CPU there is nothing to overlap: a step that is for nothing would cost its time.
        ahead = device.type == "cuda" if spec.lookahead is None else spec.lookahead
        return ModelRunner(
            self.forward,
            layers,
            self.backend,
            sampler_of(self.loaded, guides),
            spec.block_size,
            spec.max_num_seqs,
            lookahead=ahead,
            graphs=graphs,
        )

    def profiled(self, meter: Meter) -> Profile:
        """Run the largest steps. Raises StartupError where they do not fit beside the weights."""
        loaded, limits = self.loaded, self.limits
        layers = tiny_pools(self.shape, limits.block_size, loaded.dtype, loaded.device)
        return profiled(lambda: self.runner(layers, None), limits, meter, loaded.device)

    def set_aside_bytes(self, profile: Profile) -> int:
        """What the pools must leave: the largest step, and recorded steps, which come later."""
        if not self.capturable or self.spec.eager:
            return profile.set_aside_bytes
        itemsize = self.loaded.dtype.itemsize
        decode_bytes = profile.decode.reserved_bytes
        graphs = predicted_bytes(self.room, self.loaded.vocab_size, itemsize, decode_bytes)
        return profile.set_aside_bytes + graphs


def sampler_of(loaded: LoadedModel, guides: Guides | None) -> Sampler:
    """What draws the tokens of a loaded model, where its logits are."""
    device = loaded.device
    return Sampler(loaded.vocab_size, device, guides, make_nucleus(device))


class Opening:
    """From allocated pools to a runner that takes steps. `make_runner` once, then `started`."""

    def __init__(
        self,
        single: Single,
        layers: Sequence[LayerKv],
        meter: Meter | None,
        phases: Phases,
        progress: Callable[[str], None],
    ) -> None:
        self._single = single
        self._layers = layers
        self._meter = meter
        self._phases = phases
        self._progress = progress
        self._graphs_bytes: int | None = None

    def make_runner(self, guides: Guides) -> Runner:
        """Record decode steps, where that can be done and is wanted, and warm up. Raises
        StartupError."""
        runner = self._single.runner(self._layers, guides, self._captured())
        if self._meter is not None:
            self._progress("warming up")
            with self._phases.during("warm"):
                self._warm(runner)
        self._progress(f"start-up: {summary(self._phases.passed)}")
        return runner

    def started(self, info: EngineInfo) -> EngineInfo:
        """With how long each phase took."""
        return msgspec.structs.replace(
            info, startup=self._phases.passed, graphs_bytes=self._graphs_bytes
        )

    def _warm(self, runner: Runner) -> None:
        try:
            warm(runner, self._single.limits)
        except Shortage as shortage:
            raise StartupError(
                f"too little memory on {self._single.loaded.device}: no step has room beside the "
                f"KV cache; lower --kv-cache-memory or --gpu-memory-utilization ({shortage})"
            ) from None

    def _captured(self) -> DecodeGraphs | None:
        single = self._single
        if single.spec.eager:
            self._phases.skip("capture", "--eager")
            return None
        if not single.capturable:
            if single.loaded.device.type == "cuda":
                name = f"{single.forward.name} on {single.backend.name} attention"
                self._phases.skip("capture", f"{name} cannot be")
            return None
        made: list[DecodeGraphs] = []

        def capture() -> None:
            recorder = make_recorder(single.loaded.device)
            made.append(
                DecodeGraphs(
                    single.forward,
                    self._layers,
                    single.backend,
                    single.room,
                    recorder,
                    self._progress,
                )
            )

        with self._phases.during("capture"):
            if self._meter is None:
                capture()
            else:
                self._graphs_bytes = self._meter.taken(capture)
                self._progress(f"recorded steps took {self._graphs_bytes / MIB:.1f} MiB")
        return made[0]


def say_profile(profile: Profile, bound_bytes: int, progress: Callable[[str], None]) -> None:
    """What the largest steps took beside what the config predicts (0: it does not tell)."""
    took = profile.step.allocated_bytes
    progress(
        f"the largest step took {took / MIB:.1f} MiB of at most {bound_bytes / MIB:.1f} MiB "
        f"predicted; {profile.set_aside_bytes / MIB:.1f} MiB are set aside, for one with penalties"
    )
    if 0 < bound_bytes < took:
        progress(
            f"warning: the largest step took {took} bytes, more than the {bound_bytes} that "
            "follow from the model's config: the measured ones are set aside"
        )
