"""How long a decode step takes in each mode: every figure against arithmetic done here, apart."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_oss_server.doctor.gpu_specs import ASSUMED, OTHERS, GpuSpec, spec_of, specs
from gpt_oss_server.doctor.pace import (
    CALL_S,
    HOP_S,
    MEMORY_SHARE,
    StageWork,
    Work,
    all_reduce_s,
    pace_of,
    send_s,
    work_of,
)
from gpt_oss_server.doctor.published import PUBLISHED
from gpt_oss_server.memory.fit import GpuMode
from gpt_oss_server.memory.weights import weights_of
from gpt_oss_server.simulate.cost.gpu_types import gpu_names, gpu_type

OSS_20B = PUBLISHED["openai/gpt-oss-20b"]
# A byte a nanosecond of what kernels reach; a link of a byte a nanosecond.
SPEED = GpuSpec("test", 1.0 / MEMORY_SHARE, "NVLink", 1.0)
H, VOCAB, LAYERS = 2880, 201088, 24


def work(layout: GpuMode, *stages: StageWork, gpus: int = 1) -> Work:
    return Work(layout, gpus, stages, hidden_bytes=1000, logits_bytes=8000)


def stage(
    dense: int = 600_000, experts: int = 800_000, kv: int = 1000, layers: int = 2
) -> StageWork:
    """A token uses all that is dense and a quarter of the experts."""
    return StageWork(((0.25, experts), (1.0, dense)), kv, layers)


@pytest.mark.parametrize(("sequences", "touched"), [(1, 0.25), (2, 0.4375), (4, 0.68359375)])
def test_a_step_reads_the_experts_that_some_token_chose(sequences: int, touched: float) -> None:
    """Each token leaves three quarters of them alone, independently: 1 - 0.75 ** B are read."""
    pace = pace_of(work("single", stage()), SPEED, sequences)
    assert pace.weight_bytes == 600_000 + 800_000 * touched
    assert pace.kv_bytes == 1000 * sequences
    assert pace.step_s == pytest.approx((pace.weight_bytes + pace.kv_bytes) * 1e-9)
    assert pace.tokens_s == pytest.approx(sequences / pace.step_s)
    assert (pace.exchange_s, pace.exchanges, pace.traffic_bytes, pace.bubble) == (0, 0, 0, 0)


def test_what_a_rank_of_gpt_oss_reads() -> None:
    """Half of the heads, of the experts' widths and of the head; the embedding is looked up."""
    weights = weights_of(OSS_20B, dtype="bfloat16")
    whole = work_of(OSS_20B, weights, "single", 2, 128)
    rank = work_of(OSS_20B, weights, "tensor", 2, 128)
    (all_of_it,), (half,) = whole.stages, rank.stages
    table = VOCAB * H * 2
    assert sum(size for _, size in all_of_it.weights) == weights.total_bytes - table
    assert dict(all_of_it.weights).keys() == {4 / 32, 1.0}
    assert sum(size for _, size in half.weights) == weights.rank_bytes(2)[0] - table // 2
    # 8 blocks of 16 tokens hold 128 rows in all layers; a sliding window reaches no further.
    assert all_of_it.sequence_kv_bytes == 128 * LAYERS * 2048 == 2 * half.sequence_kv_bytes
    assert (whole.gpus, rank.gpus, rank.layers) == (1, 2, LAYERS)
    assert (rank.hidden_bytes, rank.logits_bytes) == (2 * H, 2 * VOCAB)


def test_stages_read_what_one_gpu_would() -> None:
    """The head is read by the last, the embedding by none."""
    weights = weights_of(OSS_20B, dtype="bfloat16")
    whole = work_of(OSS_20B, weights, "single", 1, 4096).stages[0]
    stages = work_of(OSS_20B, weights, "pipeline", 3, 4096).stages
    assert [one.layers for one in stages] == [len(run) for run in weights.stages(3)]
    assert sum(size for one in stages for _, size in one.weights) == sum(
        size for _, size in whole.weights
    )
    assert sum(one.sequence_kv_bytes for one in stages) == whole.sequence_kv_bytes


def test_profiles_name_the_share_that_a_token_uses() -> None:
    """A quarter of 32 experts would be 8; gpt-oss uses 4."""
    (profile,) = weights_of(OSS_20B, dtype="bfloat16").read_profile()
    assert set(profile) == {Fraction(1), Fraction(4, 32)}


@pytest.mark.parametrize(("link", "gpus", "hops"), [("NVLink", 2, 2), ("PCIe", 4, 6)])
def test_an_all_reduce_goes_round_a_ring(link: str, gpus: int, hops: int) -> None:
    """2(N-1) hops, each with an N-th of the bytes."""
    speed = GpuSpec("test", 1.0, link, 2.0)  # type: ignore[arg-type]
    expected = CALL_S + hops * HOP_S[link] + hops * (8000 / gpus) / 2e9
    assert all_reduce_s(8000, gpus, speed) == pytest.approx(expected)
    assert send_s(8000, speed) == pytest.approx(CALL_S + HOP_S[link] + 8000 / 2e9)


def test_tensor_ranks_read_their_part_and_exchange_in_every_layer() -> None:
    """Two sums a layer and one of the embedding, one small one, and the logits to the leader."""
    pace = pace_of(work("tensor", stage(layers=3), gpus=2), SPEED, 4)
    sums = 2 * 3 + 1
    exchange = sums * all_reduce_s(4000, 2, SPEED) + all_reduce_s(16, 2, SPEED)
    exchange += send_s(4 * 8000 / 2, SPEED)
    read = (600_000 + 800_000 * (1 - 0.75**4) + 4000) * 1e-9
    assert pace.exchanges == sums + 2
    assert pace.exchange_s == pytest.approx(exchange)
    assert pace.step_s == pytest.approx(read + exchange)
    assert pace.traffic_bytes == pytest.approx((sums * 2 * 4000 + 16_000) / 4)
    assert (pace.gpus, pace.bubble) == (2, 0.0)


def test_a_single_request_goes_through_all_stages() -> None:
    """A pipeline makes it no faster: the sum of its stages and a hop; each idles half of the tim"""
    pipeline = work("pipeline", stage(kv=500), stage(kv=500), gpus=2)
    pace = pace_of(pipeline, SPEED, 1)
    one = (600_000 + 200_000 + 500) * 1e-9
    hop = send_s(1000, SPEED)
    assert pace.step_s == pytest.approx(2 * one + hop)
    assert pace.micro_batches == 1
    assert pace.bubble == pytest.approx(0.5)
    assert (pace.exchanges, pace.traffic_bytes) == (1, 1000)


def test_micro_batches_keep_stages_busy() -> None:
    """With as many as stages a step takes the slowest stage once for each; with fewer it waits."""
    quick, slow = stage(experts=0), stage(dense=900_000, experts=0)
    pipeline = work("pipeline", quick, slow, gpus=2)
    hop = send_s(4000, SPEED)
    first, last = (600_000 + 4000) * 1e-9 + hop, (900_000 + 4000) * 1e-9
    pace = pace_of(pipeline, SPEED, 8)
    assert pace.step_s == pytest.approx(2 * last)
    assert pace.stage_s == pytest.approx(last)
    assert pace.bubble == pytest.approx(1 - (first + last) / (2 * last))
    alone = pace_of(pipeline, SPEED, 8, micro_batches=1)
    assert alone.step_s == pytest.approx(first + last + send_s(8000, SPEED) - hop + 2 * 4000e-9)
    assert alone.bubble == pytest.approx(0.5)
    # `auto` has one step at a time whatever it is told.
    auto = pace_of(work("auto", quick, slow, gpus=2), SPEED, 8, micro_batches=4)
    assert auto.step_s == pytest.approx(alone.step_s)


def test_replicas_share_the_sequences() -> None:
    """Each is as fast as one with its share; they exchange nothing."""
    single = work("single", stage())
    pace = pace_of(single, SPEED, 8, replicas=4)
    assert pace.step_s == pace_of(single, SPEED, 2).step_s
    assert (pace.sequences, pace.gpus, pace.traffic_bytes) == (8, 4, 0)
    assert pace_of(single, SPEED, 1, replicas=4).tokens_s == pace_of(single, SPEED, 1).tokens_s


def test_what_was_seen_beside_reading_is_added() -> None:
    """Every tensor rank launches all layers; a stage only its own."""
    tensor = work("tensor", stage(), gpus=2)
    added = pace_of(tensor, SPEED, 4, host_s=0.5).step_s - pace_of(tensor, SPEED, 4).step_s
    assert added == pytest.approx(0.5)
    stages = work("pipeline", stage(layers=3), stage(layers=1), gpus=2)
    pace = pace_of(stages, SPEED, 2, host_s=0.4)
    assert pace.stage_s == pytest.approx(0.3 + (800_000 + 1000) * 1e-9 + send_s(1000, SPEED))


@given(
    sequences=st.integers(1, 512),
    stages=st.lists(
        st.tuples(st.integers(1, 10**9), st.integers(0, 10**6)), min_size=1, max_size=8
    ),
    micro_batches=st.integers(1, 16),
)
def test_a_pipeline_is_never_slower_than_its_stages_in_turn(
    sequences: int, stages: list[tuple[int, int]], micro_batches: int
) -> None:
    """Micro-batches gain or cost nothing but reading weights again; shares of time are shares."""
    parts = [stage(dense, 0, kv) for dense, kv in stages]
    layout = work("pipeline", *parts, gpus=len(parts))
    pace = pace_of(layout, SPEED, sequences, micro_batches=micro_batches)
    assert 0.0 <= pace.bubble < 1.0
    assert pace.micro_batches == min(micro_batches, sequences)
    assert pace.step_s >= pace.micro_batches * pace.stage_s - 1e-12
    assert pace.step_s >= pace.read_s


@pytest.mark.parametrize(
    ("name", "memory", "link", "link_gb_s"),
    [
        ("NVIDIA H100 80GB HBM3", 3350, "NVLink", 450),
        ("NVIDIA H100 PCIe", 2000, "PCIe", 64),
        ("NVIDIA H100 NVL", 3900, "NVLink", 300),
        ("NVIDIA H200", 4800, "NVLink", 450),
        ("NVIDIA A100-SXM4-80GB", 2039, "NVLink", 300),
        ("NVIDIA A100 80GB PCIe", 1935, "PCIe", 32),
        ("Tesla V100-SXM2-32GB", 900, "NVLink", 150),
        ("NVIDIA L40S", 864, "PCIe", 32),
        ("NVIDIA L4", 300, "PCIe", 32),
        ("NVIDIA A10G", 600, "PCIe", 32),
        ("NVIDIA GeForce RTX 4090", 1008, "PCIe", 32),
        ("NVIDIA RTX 6000 Ada Generation", 960, "PCIe", 32),
        ("Tesla T4", 320, "PCIe", 16),
    ],
)
def test_gpus_by_the_names_that_drivers_give(
    name: str, memory: float, link: str, link_gb_s: float
) -> None:
    """Words of the name decide: an L4 is no L40S."""
    spec = spec_of([name])
    assert (spec.known, spec.memory_gb_s, spec.link, spec.link_gb_s) == (
        True,
        memory,
        link,
        link_gb_s,
    )


def test_the_slowest_gpu_counts() -> None:
    """One that is not known makes all an assumption; without peer access data goes over PCIe."""
    assert spec_of(["NVIDIA H100 80GB HBM3", "NVIDIA L4"]).name == "L4"
    assert spec_of(["NVIDIA H100 80GB HBM3", None]) is ASSUMED
    assert spec_of(["Quadro from long ago"]) is ASSUMED
    assert spec_of([]) is ASSUMED
    apart = spec_of(["NVIDIA H200"], reach_each_other=False)
    assert (apart.memory_gb_s, apart.link, apart.link_gb_s) == (4800, "PCIe", 32)


def test_what_can_be_simulated_is_stated_once() -> None:
    """Kinds that the simulator has data of are read from there, the others are listed here; no
    name twice, more specific names first."""
    found = specs()
    assert sorted(s.simulated_as for s in found if s.simulated_as) == sorted(gpu_names())
    names = [s.name for s in found]
    assert len(set(names)) == len(names) == len(OTHERS) + len(gpu_names())
    assert names.index("H100 PCIe") < names.index("H100")
    assert names.index("V100-SXM2") < names.index("V100")
    for spec in found:
        assert spec_of([f"NVIDIA {spec.name}"]).name == spec.name
        if spec.simulated_as is not None:
            gpu = gpu_type(spec.simulated_as)
            assert (spec.memory_gb_s, spec.link_gb_s) == (
                gpu.bandwidth_bytes_s / 1e9,
                gpu.link_bytes_s / 1e9,
            )
