"""Does gpt-oss fit on 80 GiB GPUs: every figure against arithmetic done here, apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from gpt_oss_server.doctor.plan import (
    MODES,
    PLAIN_NOTE,
    Experts,
    Plan,
    PlanRequest,
    WeightsForm,
    gib,
    make_plan,
    own_dtype,
    recommend,
    stored_form,
    widened,
)
from gpt_oss_server.doctor.published import PUBLISHED
from gpt_oss_server.errors import ConfigError
from gpt_oss_server.memory.fit import FitRequest, GpuMode

GIB = 2**30
OSS_20B = PUBLISHED["openai/gpt-oss-20b"]
OSS_120B = PUBLISHED["openai/gpt-oss-120b"]
H, VOCAB, HEADS, KV_HEADS, HEAD = 2880, 201088, 64, 8, 64
STEP = 2048
# 72 GiB of 80 may be used, one is set aside.
USABLE = 80 * GIB * 9 // 10 - GIB
# 64 sequences that share 2,048 tokens of a step: each holds 9 blocks of 16 for its window of 128
# and gets a tenth for 3 tokens; the other 2048 - 64 * 3 = 1856 tokens take 116 blocks more.
# A quarter is added: 756 * 1.25.
SLIDING_BLOCKS = 945


def plan(
    config: Mapping[str, Any],
    gpus: int = 1,
    gpu_gib: float = 80,
    weights: WeightsForm | None = None,
    **more: Any,
) -> Plan:
    """A plan with the defaults of `serve` on a GPU."""
    settings = {"max_num_seqs": 64, "max_batch_tokens": STEP, **more}
    machine = FitRequest(int(gpu_gib * GIB), gpus, **settings)
    return make_plan(config, PlanRequest(machine, "bfloat16", weights))


def weights_bytes(config: Mapping[str, Any], tp: int = 1) -> int:
    """Bytes of one rank: experts as 17 bytes for 32 numbers, in whole groups of 32 of their 2,880
    columns; the rest two bytes a number."""
    layers, experts = config["num_hidden_layers"], config["num_local_experts"]
    expert_matrices = experts * (2 * H * H + H * H) * 17 // 32
    expert_biases, expert_output_biases = experts * 2 * H * 2, experts * H * 2
    groups = {1: 90, 2: 45, 4: 23, 8: 12}[tp]
    experts_here = (expert_matrices + expert_biases) * groups // 90
    router = (H * experts + experts) * 2
    queries = (H * HEADS * HEAD + HEADS * HEAD) * 2
    keys_values = 2 * (H * KV_HEADS * HEAD + KV_HEADS * HEAD) * 2
    output = (HEADS * HEAD * H) * 2
    output_bias, sinks, norms = H * 2, HEADS * 2, 2 * H * 2
    shared = queries + keys_values + output + sinks
    each = router + output_bias + norms + expert_output_biases
    table = VOCAB * H * 2
    return layers * (shared // tp + experts_here + each) + 2 * table // tp + H * 2


def activations_bytes(config: Mapping[str, Any]) -> int:
    """A step of 2,048 tokens: the residual stream and rotary tables, and the routed experts."""
    standing = STEP * (H * 2 + 4 * HEAD * 2 + 4 * 8)
    routed = 2 * H * 2 + config["num_local_experts"] * (4 + 2) + 4 * ((3 * H + 8 * H) * 2 + 4 * 8)
    return standing + STEP * routed


def kv_tokens(config: Mapping[str, Any], tp: int) -> int:
    """Half of the layers keep all: what the sliding blocks leave, in blocks of 16 tokens."""
    block = config["num_hidden_layers"] // 2 * 2 * (KV_HEADS // tp) * HEAD * 2 * 16
    left = USABLE - weights_bytes(config, tp) - activations_bytes(config)
    return (left // block - SLIDING_BLOCKS) * 16


@pytest.mark.parametrize("gpus", [1, 2, 4, 8])
@pytest.mark.parametrize(
    ("config", "single_weights", "single_tokens"),
    [(OSS_20B, 13_761_264_768, 2_504_336), (OSS_120B, 65_248_815_744, 267_792)],
)
def test_single_and_tensor_on_80_gib(
    config: Mapping[str, Any], single_weights: int, single_tokens: int, gpus: int
) -> None:
    """Weights, activations, KV bytes and tokens of one GPU and of tensor ranks, to the byte."""
    found = plan(config, gpus)
    assert found.weights_bytes == weights_bytes(config) == single_weights
    one = found.of("single").report
    assert one is not None
    assert one.kv_tokens == kv_tokens(config, 1) == single_tokens
    tensor = found.of("tensor").report
    if gpus == 1:
        assert tensor is None
        return
    assert tensor is not None
    assert tensor.weights_bytes == (weights_bytes(config, gpus),)
    assert tensor.activations_bytes == activations_bytes(config)
    left = USABLE - weights_bytes(config, gpus) - activations_bytes(config)
    assert tensor.kv_bytes == (left,)
    assert tensor.kv_tokens == kv_tokens(config, gpus)
    assert tensor.longest_request == 131072


@pytest.mark.parametrize(
    ("config", "gpus", "mode", "kv", "concurrent"),
    [
        (OSS_20B, 1, "single", 2_504_336, (64, 64, 64, 19)),
        (OSS_20B, 2, "tensor", 5_583_360, (64, 64, 64, 42)),
        (OSS_20B, 2, "pipeline", 5_542_416, (64, 64, 64, 42)),
        (OSS_20B, 4, "tensor", 11_732_224, (64, 64, 64, 64)),
        (OSS_20B, 4, "pipeline", 8_819_392, (64, 64, 64, 64)),
        (OSS_20B, 8, "tensor", 24_029_968, (64, 64, 64, 64)),
        (OSS_20B, 8, "pipeline", 17_995_616, (64, 64, 64, 64)),
        (OSS_120B, 1, "single", 267_792, (64, 32, 8, 2)),
        (OSS_120B, 2, "tensor", 2_319_232, (64, 64, 64, 17)),
        (OSS_120B, 4, "tensor", 6_385_376, (64, 64, 64, 48)),
        (OSS_120B, 4, "pipeline", 5_668_176, (64, 64, 64, 43)),
        (OSS_120B, 8, "tensor", 14_517_664, (64, 64, 64, 64)),
        (OSS_120B, 8, "pipeline", 10_884_720, (64, 64, 64, 64)),
    ],
)
def test_concurrent_requests_on_80_gib(
    config: Mapping[str, Any],
    gpus: int,
    mode: GpuMode,
    kv: int,
    concurrent: tuple[int, ...],
) -> None:
    """A request of n tokens takes n tokens of the pool that keeps all: kv // n, at most 64."""
    found = plan(config, gpus).of(mode)
    assert found.report is not None
    assert found.report.kv_tokens == kv
    assert tuple(found.report.concurrent.values()) == concurrent
    assert concurrent == tuple(min(64, kv // n) for n in (2048, 8192, 32768, 131072))
    limits = tuple("max_num_seqs" if count == 64 else "kv_memory" for count in concurrent)
    assert tuple(found.concurrent_limits.values()) == limits
    assert found.longest_limit == "context"


def test_a_pipeline_is_bound_by_its_fullest_stage() -> None:
    """120b in 8 stages: of 4 or 5 layers, the last one 3 and the head; three of five keep all."""
    report = plan(OSS_120B, 8).of("pipeline").report
    assert report is not None
    tables = 2 * VOCAB * H * 2 + H * 2
    layer = (weights_bytes(OSS_120B) - tables) // 36
    embedding, head = VOCAB * H * 2, VOCAB * H * 2 + H * 2
    layers = (4, 4, 5, 5, 5, 5, 5, 3)
    stages = [count * layer for count in layers]
    assert report.weights_bytes == (stages[0] + embedding, *stages[1:-1], stages[-1] + head)
    # Of five layers that begin with one that keeps all, three do.
    left = USABLE - 5 * layer - activations_bytes(OSS_120B)
    full, sliding = (count * 2 * KV_HEADS * HEAD * 2 * 16 for count in (3, 2))
    blocks = (left - SLIDING_BLOCKS * sliding) // full
    assert report.kv_tokens == blocks * 16 == 10_884_720


@pytest.mark.parametrize("mode", ["single", "tensor", "auto", "pipeline"])
@pytest.mark.parametrize(
    ("form", "model_type", "experts", "kept"),
    [
        ("mxfp4", "gpt_oss", "auto", True),
        ("mxfp4", "gpt_oss", "torch", True),
        ("mxfp4", "gpt_oss", "transformers", False),
        ("mxfp4", "llama", "auto", False),
        ("fp8", "gpt_oss", "auto", False),
    ],
)
def test_which_quantized_weights_several_gpus_hold_as_plain_numbers(
    mode: GpuMode, form: str, model_type: str, experts: Experts, kept: bool
) -> None:
    """All but MXFP4 experts that the engine computes itself; never what one process holds."""
    config = {"model_type": model_type, "quantization_config": {"quant_method": form}}
    assert widened(config, mode, experts) is (mode != "single" and not kept)
    assert not widened({"model_type": model_type}, mode, experts)


def test_ranks_that_widen_say_so() -> None:
    """With --experts transformers, whatever form was asked for; not where all is plain."""
    machine = FitRequest(80 * GIB, 2, max_num_seqs=64, max_batch_tokens=STEP)
    asked = PlanRequest(machine, "bfloat16", "mxfp4", experts="transformers")
    wide, plain = make_plan(OSS_20B, asked), make_plan(OSS_20B, replace(asked, weights="bf16"))
    kept = make_plan(OSS_20B, replace(asked, experts="auto"))
    for mode in MODES:
        reports = [found.of(mode).report for found in (wide, plain, kept)]
        noted = [report is not None and PLAIN_NOTE in report.reasons for report in reports]
        assert noted == [mode != "single", False, False]
        sizes = [max(report.weights_bytes) for report in reports if report is not None]
        assert (sizes[0] == sizes[1]) is (mode != "single")
        assert sizes[2] < sizes[1] / 2.5


def test_what_a_token_takes_on_the_fullest_gpu() -> None:
    """All layers of a head's share, or all heads of a stage's layers."""
    found = plan(OSS_20B, 4)
    assert found.kv_bytes_per_token == found.of("single").token_bytes == 24_576
    assert found.of("tensor").token_bytes == 24_576 // 4
    # Stages of 7, 7, 7 and 3 layers, of which the second begins with one that keeps all: four do.
    assert found.of("pipeline").token_bytes == 24_576 * 4 // 12


def test_auto_is_laid_out_as_pipeline() -> None:
    """Both put whole layers on the GPUs in order."""
    found = plan(OSS_120B, 4)
    auto, pipeline = found.of("auto").report, found.of("pipeline").report
    assert auto == pipeline


@pytest.mark.parametrize(
    ("weights", "total", "form"),
    [
        (None, 65_248_815_744, "mxfp4"),
        ("mxfp4", 65_248_815_744, "mxfp4"),
        ("bf16", 2 * 116_829_156_672, "bfloat16"),
    ],
)
def test_both_forms_of_the_weights(weights: WeightsForm | None, total: int, form: str) -> None:
    """As stored, or two bytes for each of 116.83 billion parameters."""
    found = plan(OSS_120B, weights=weights)
    assert (found.weights_bytes, found.weights) == (total, form)
    assert found.of("single").fits == (form == "mxfp4")


def test_weights_that_are_not_there() -> None:
    """A checkpoint that is not MXFP4 cannot be held as such."""
    plain = {key: value for key, value in OSS_20B.items() if key != "quantization_config"}
    with pytest.raises(ConfigError, match=r"not MXFP4 \(they are plain\)"):
        plan(plain, weights="mxfp4")
    assert plan(plain).weights == "bfloat16"
    assert stored_form(plain) is None


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({}, "bfloat16"),
        ({"dtype": "float32"}, "float32"),
        ({"torch_dtype": "torch.float16"}, "float16"),
        ({"text_config": {"dtype": "float16"}}, "float16"),
        ({"dtype": "int8"}, "bfloat16"),
    ],
)
def test_own_dtype(config: Mapping[str, Any], dtype: str) -> None:
    """What the checkpoint states, else bfloat16."""
    assert own_dtype(config) == dtype


@pytest.mark.parametrize(
    ("config", "gpus", "gpu_gib", "weights", "mode", "text"),
    [
        (OSS_20B, 1, 80, None, "single", "--gpu-mode single: it fits on this GPU"),
        (
            OSS_120B,
            4,
            80,
            None,
            "single",
            "--gpu-mode single: one GPU holds it; 4 GPUs hold 4 such replicas, 1,071,168 tokens "
            "of KV together (one model over all, --gpu-mode tensor: 6,385,376)",
        ),
        (
            OSS_120B,
            4,
            80,
            "bf16",
            "tensor",
            "--gpu-mode tensor over 4 GPUs: one GPU cannot hold it",
        ),
        (
            OSS_20B,
            3,
            24,
            "bf16",
            "pipeline",
            "--gpu-mode pipeline over 3 GPUs: one GPU cannot hold it",
        ),
        (
            {name: value for name, value in OSS_20B.items() if name != "quantization_config"},
            3,
            48,
            None,
            "pipeline",
            "--gpu-mode pipeline over 3 GPUs: one GPU holds it too, for requests of 103,936 tokens "
            "at most",
        ),
        (
            OSS_120B,
            1,
            48,
            None,
            None,
            "does not fit; it needs a GPU of 69.3 GiB (--gpu-mode single) or 2 GPUs of 48.00 GiB "
            "(--gpu-mode tensor)",
        ),
        (
            OSS_120B,
            2,
            80,
            "bf16",
            None,
            "does not fit; it needs GPUs of 122.6 GiB (--gpu-mode pipeline) or 4 GPUs of "
            "80.00 GiB (--gpu-mode tensor) or the weights as they are stored (--weights mxfp4)",
        ),
    ],
)
def test_recommendations(
    config: Mapping[str, Any],
    gpus: int,
    gpu_gib: float,
    weights: WeightsForm | None,
    mode: GpuMode | None,
    text: str,
) -> None:
    """One GPU where it takes the longest requests, else the mode with most; or what would do."""
    found = recommend(config, plan(config, gpus, gpu_gib, weights))
    assert (found.mode, found.text) == (mode, text)


def test_the_arithmetic_adds_up() -> None:
    """The sum that is printed is the one that was done."""
    found = recommend(OSS_120B, plan(OSS_120B))
    assert found.arithmetic == (
        "80.00 GiB x 0.9 = 72.00 GiB - 60.77 GiB weights - 531.6 MiB activations - 1.00 GiB "
        "workspace = 9.71 GiB for KV: 267,792 tokens"
    )
    kv = 80 * GIB * 9 // 10 - GIB - 65_248_815_744 - 557_383_680
    assert gib(kv) == "9.71 GiB"


def test_the_memory_said_to_be_needed_is_enough() -> None:
    """A GPU of the stated size fits, and one of a tenth of a GiB less does not."""
    assert "69.3 GiB" in recommend(OSS_120B, plan(OSS_120B, gpu_gib=48)).text
    assert plan(OSS_120B, gpu_gib=69.3).of("single").fits
    assert not plan(OSS_120B, gpu_gib=69.2).of("single").fits


def test_the_shortfall_is_exact() -> None:
    """The bytes that miss, more in usable memory, make it fit; one byte less does not."""
    short = plan(OSS_20B, gpu_gib=14, utilization=1.0)
    report = short.of("single").report
    assert report is not None
    assert report.shortfall_bytes > 0
    enough = short.asked.machine.gpu_memory_bytes + report.shortfall_bytes
    for size, fits in ((enough, True), (enough - 1, False)):
        machine = replace(short.asked.machine, gpu_memory_bytes=size)
        assert make_plan(OSS_20B, replace(short.asked, machine=machine)).of("single").fits is fits


def test_a_restriction_to_one_mode() -> None:
    """Only an allowed mode is recommended."""
    found = recommend(OSS_120B, plan(OSS_120B, 4), ("pipeline",))
    assert found.mode == "pipeline"
    assert set(MODES) == {"single", "auto", "tensor", "pipeline"}
    nothing = recommend(OSS_20B, plan(OSS_20B, 3), ("tensor",))
    assert nothing.mode is None
    assert "64 attention heads" in nothing.arithmetic


def test_published_configurations_are_exact() -> None:
    """Nothing is assumed about gpt-oss: no warning, no bound."""
    for config in (OSS_20B, OSS_120B):
        report = plan(config).of("single").report
        assert report is not None
        assert (report.exact, report.reasons) == (True, ())
