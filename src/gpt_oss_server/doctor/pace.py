"""How long a decode step takes in each GPU mode, by what must be read and what exchanged.

Knows: the arithmetic below. Does not know: GPUs by name (`gpu_specs`), what fits, which mode to
take (`plan`). An estimate: what memory and links allow, not what was measured.

Decoding is bound by memory: a step multiplies each weight with few tokens and each key and value
with one, so its time is that of reading them once (the roofline's slope; Williams, Waterman,
Patterson, CACM 52(4), 2009). For B sequences of n tokens:

    W(B)      sum over weights of bytes · (1 − (1 − a)^B), a being the share of them that a token
              uses: 1, or k/E of the experts, chosen independently; of the embedding nothing
    read(B)   W(B) + B · KV(n), on the fullest GPU
    t_read    read(B) / (peak bandwidth · `MEMORY_SHARE`)

An all-reduce of s bytes over N GPUs in a ring (Thakur, Rabenseifner, Gropp, IJHPCA 19(1), 2005)
takes 2(N−1)/N · s / link, after a latency of `CALL_S` + 2(N−1) · hop. Latencies are of the order of
those by which NCCL chooses algorithms (`src/graph/tuning.cc`, ring, LL protocol: about 4 to 7 µs,
and 0.5 to 0.6 µs a hop over NVLink, 1.0 over PCIe); `CALL_S` has the call from the host besides.

    single    t = t_read
    replicas  N of single: each has B/N sequences; as fast as one of them, N times the tokens
    tensor    t = t_read of a rank + (2 · layers + 2) all-reduces + the logits' gathering: two in
              a layer and one of the embedding with B hidden states each, one of a few bytes
    pipeline  M micro-batches of B/M sequences; stage i takes s_i = t_read,i(B/M) + a hop with B/M
              hidden states. A token goes through all stages, and a stage does all micro-batches:
              t = max(sum of s_i, M · max s_i); stages idle for 1 − M · mean(s_i) / t (no flush
              between steps, so M ≥ N of equal stages leaves no bubble, other than in GPipe)
    auto      pipeline with M = 1: devices take turns

To each is added `host_s`, what a step takes that is neither: launching kernels, Python. A stage
launches its own layers' only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from gpt_oss_server.doctor.gpu_specs import GpuSpec
from gpt_oss_server.memory.architecture import ModelShape, shape_from_config
from gpt_oss_server.memory.blocks import ceil_div
from gpt_oss_server.memory.fit import GpuMode
from gpt_oss_server.memory.kv import BlockPool, kv_bytes
from gpt_oss_server.memory.weights import ModelWeights

# Of the peak bandwidth, what kernels that do nothing but read reach.
MEMORY_SHARE = 0.7
CALL_S = 10e-6
HOP_S: Mapping[str, float] = {"NVLink": 0.6e-6, "PCIe": 1.0e-6}


@dataclass(frozen=True)
class StageWork:
    """What a step reads on one GPU: weights by the share that a token uses, KV of one sequence."""

    weights: tuple[tuple[float, int], ...]
    sequence_kv_bytes: int
    layers: int

    def weight_bytes(self, sequences: float) -> float:
        """Expected bytes of weights that `sequences` tokens touch."""
        return sum(size * (1.0 - math.pow(1.0 - share, sequences)) for share, size in self.weights)

    def read_bytes(self, sequences: float) -> float:
        return self.weight_bytes(sequences) + sequences * self.sequence_kv_bytes


@dataclass(frozen=True)
class Work:
    """A model laid over GPUs, for sequences of one length. One entry per stage: tensor ranks do
    equal work. `hidden_bytes` is a token's hidden state, `logits_bytes` its logits."""

    layout: GpuMode
    gpus: int
    stages: tuple[StageWork, ...]
    hidden_bytes: int
    logits_bytes: int

    @property
    def layers(self) -> int:
        return sum(stage.layers for stage in self.stages)


@dataclass(frozen=True)
class Pace:
    """One decode step of `sequences` sequences, all replicas together.

    `step_s` is the time from a token to the next of the same sequence. `weight_bytes` and
    `kv_bytes` are read by the GPU that reads most, in all of a step; `read_s` is the time that
    takes (of stages: of all, one after the other, for one micro-batch), `stage_s` what the slowest
    stage takes with all that it does. `exchange_s` is spent between GPUs, `exchanges` times;
    `traffic_bytes` go over links for one token. `bubble` is the share of time that a stage idles.
    """

    layout: GpuMode
    gpus: int
    sequences: int
    replicas: int
    step_s: float
    weight_bytes: float
    kv_bytes: float
    read_s: float
    stage_s: float
    exchange_s: float
    exchanges: int
    traffic_bytes: float
    bubble: float
    micro_batches: int

    @property
    def tokens_s(self) -> float:
        """Tokens per second, of all sequences."""
        return self.sequences / self.step_s


def work_of(
    config: Mapping[str, Any],
    weights: ModelWeights,
    layout: GpuMode,
    gpus: int,
    context_tokens: int,
    *,
    block_size: int = 16,
    dtype_bytes: int = 2,
) -> Work:
    """What a step of `layout` over `gpus` GPUs reads and exchanges, for sequences that have
    `context_tokens` tokens. Raises ShapeUnknown, ImpossibleSplit."""
    shape = shape_from_config(config)
    tp = gpus if layout == "tensor" else 1
    pp = gpus if layout in ("auto", "pipeline") else 1
    profiles = weights.read_profile(tp, pp)
    pool = BlockPool(block_size)
    stages = tuple(
        StageWork(
            weights=_by_share(profile),
            sequence_kv_bytes=kv_bytes(shape.part(layers), context_tokens, pool, dtype_bytes, tp),
            layers=len(layers),
        )
        for profile, layers in zip(profiles, weights.stages(pp), strict=True)
    )
    used = 1 if layout == "single" else gpus
    return Work(layout, used, stages, *_token_bytes(shape, dtype_bytes))


def pace_of(
    work: Work,
    speed: GpuSpec,
    sequences: int,
    *,
    replicas: int = 1,
    micro_batches: int | None = None,
    host_s: float = 0.0,
) -> Pace:
    """A decode step of `sequences` sequences, spread evenly over `replicas` such models.

    `micro_batches` of None is one per stage of a pipeline. The replica with most sequences counts.
    """
    each = ceil_div(sequences, replicas)
    wanted = micro_batches or work.gpus
    parts = min(each, wanted) if work.layout == "pipeline" else 1
    batch = each / parts
    bandwidth = speed.memory_gb_s * 1e9 * MEMORY_SHARE
    reads = [stage.read_bytes(batch) / bandwidth for stage in work.stages]
    exchanges, exchange_s, traffic = _exchanges(work, speed, batch)
    hop_s = exchange_s / max(1, exchanges) if len(work.stages) > 1 else 0.0
    layers = max(1, work.layers)
    steps = [
        read + host_s * stage.layers / layers + (hop_s if index < len(reads) - 1 else 0.0)
        for index, (read, stage) in enumerate(zip(reads, work.stages, strict=True))
    ]
    through = sum(steps) + (exchange_s if work.layout == "tensor" else 0.0)
    step_s = max(through, parts * max(steps))
    fullest = max(work.stages, key=lambda stage: stage.read_bytes(batch))
    return Pace(
        layout=work.layout,
        gpus=work.gpus * replicas,
        sequences=sequences,
        replicas=replicas,
        step_s=step_s,
        weight_bytes=parts * fullest.weight_bytes(batch),
        kv_bytes=parts * batch * fullest.sequence_kv_bytes,
        read_s=sum(reads),
        stage_s=max(steps),
        exchange_s=exchange_s,
        exchanges=exchanges,
        traffic_bytes=traffic / batch,
        bubble=1.0 - parts * sum(steps) / len(steps) / step_s if len(steps) > 1 else 0.0,
        micro_batches=parts,
    )


def all_reduce_s(size_bytes: float, gpus: int, speed: GpuSpec) -> float:
    """An all-reduce in a ring."""
    hops = 2 * (gpus - 1)
    return CALL_S + hops * HOP_S[speed.link] + hops / gpus * size_bytes / (speed.link_gb_s * 1e9)


def send_s(size_bytes: float, speed: GpuSpec) -> float:
    """From one GPU to another."""
    return CALL_S + HOP_S[speed.link] + size_bytes / (speed.link_gb_s * 1e9)


def _exchanges(work: Work, speed: GpuSpec, batch: float) -> tuple[int, float, float]:
    """How often GPUs exchange something in a step of `batch` tokens (of a pipeline: as it goes
    through all stages), how long that takes, how many bytes go over links."""
    hidden = batch * work.hidden_bytes
    gpus = work.gpus
    if work.layout == "tensor" and gpus > 1:
        sums = 2 * work.layers + 1
        logits = batch * work.logits_bytes * (gpus - 1) / gpus
        seconds = sums * all_reduce_s(hidden, gpus, speed) + all_reduce_s(4 * batch, gpus, speed)
        seconds += send_s(logits, speed)
        return sums + 2, seconds, sums * 2 * (gpus - 1) * hidden + logits
    hops = len(work.stages) - 1
    return hops, hops * send_s(hidden, speed), hops * hidden


def _by_share(profile: Mapping[Fraction, int]) -> tuple[tuple[float, int], ...]:
    return tuple((float(share), size) for share, size in sorted(profile.items()))


def _token_bytes(shape: ModelShape, dtype_bytes: int) -> tuple[int, int]:
    return shape.hidden_size * dtype_bytes, (shape.vocab_size or 0) * dtype_bytes
