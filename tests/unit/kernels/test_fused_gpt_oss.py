"""gpt-oss in few launches, step by step beside transformers' modules."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from fused_steps import Course, Part, Pass, pools
from gpt_oss_server.engine.attention.tiled import TiledBackend
from gpt_oss_server.engine.forward import TransformersForward, make_forward
from gpt_oss_server.engine.graphs import DecodeGraphs, RerunRecorder, Room
from gpt_oss_server.engine.loader import tensor_bytes
from kernel_device import DEVICE
from tiny_models import CONFIGS, VOCAB, build

pytest.importorskip("triton")

from gpt_oss_server.engine.attention.triton import TritonBackend
from gpt_oss_server.engine.experts.replace import use_kernels
from gpt_oss_server.engine.fused.gpt_oss import FusedGptOss, why_not_fused

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"num_hidden_layers": 2, "sliding_window": 8, "num_local_experts": 3}
SHAPES: dict[str, dict[str, Any]] = {
    "as published": SMALL,
    "tied head, no biases": {**SMALL, "tie_word_embeddings": True, "attention_bias": False},
    "full attention last, plain rotation": {
        **SMALL,
        "layer_types": ["full_attention", "full_attention"],
        "head_dim": 32,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
}
STEPS = (
    [Part(0, 5, sampled=False), Part(1, 9)],
    [Part(0, 3), Part(1, 1), Part(2, 3, sampled=False)],
    [Part(2, 2, sampled=False)],
    [Part(1, 1), Part(2, 1), Part(0, 1)],
    [Part(0, 1), Part(2, 1, sampled=False)],
)
POSITIONS = 64


def tiny(**changes: Any) -> Any:
    return build("gpt_oss", **changes).to(DEVICE)


def fused(model: Any) -> Pass:
    use_kernels(model)
    return Pass(FusedGptOss(model, POSITIONS), TritonBackend(), pools(model))


def modules(model: Any) -> Pass:
    return Pass(TransformersForward(model), TiledBackend(4), pools(model))


def groups_of(run: Pass) -> int:
    return len({layer.group for layer in run.layers})


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_transformers(shape: str) -> None:
    """Chunks of prompts, decoding, and both; samples from all, some and none; windows that slide:
    the same logits, and the same keys and values in the pools."""
    model = tiny(**SHAPES[shape])
    ours, theirs = fused(copy.deepcopy(model)), modules(model)
    course = Course(VOCAB, groups_of(ours))
    for parts in STEPS:
        layout = course.step(parts)
        (logits, finite), (expected, _) = ours.run(layout), theirs.run(layout)
        assert logits.shape == (sum(part.sampled for part in parts), VOCAB)
        torch.testing.assert_close(logits, expected, atol=2e-4, rtol=2e-4)
        assert torch.equal(logits.argmax(-1), expected.argmax(-1))
        assert finite.all()
    for mine, other in zip(ours.layers, theirs.layers, strict=True):
        torch.testing.assert_close(mine.keys, other.keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(mine.values, other.values, atol=1e-4, rtol=1e-4)


def test_recorded_steps_are_the_same() -> None:
    """Decode steps of all sizes through recordings: equal to the pass as it comes,
    and nothing is written but to the slots of the batch."""
    model = tiny(**SMALL)
    ours = fused(model)
    recorded = Pass(ours.forward, ours.backend, pools(model))
    course = Course(VOCAB, groups_of(ours))
    first = course.step([Part(0, 5), Part(1, 7), Part(2, 2)])
    ours.run(first)
    recorded.run(first)
    graphs = DecodeGraphs(
        recorded.forward,
        recorded.layers,
        recorded.backend,
        Room(4, 10, groups_of(ours), 4),
        RerunRecorder(),
        lambda _: None,
    )
    for rows in ((0, 1, 2), (2,), (1, 0), (2, 0, 1)):
        layout = course.step([Part(row, 1) for row in rows])
        expected, _ = ours.run(layout)
        assert graphs.takes(layout)
        with torch.inference_mode():
            replayed = graphs.run(layout)
        torch.testing.assert_close(
            replayed.logits[: len(rows)], expected, atol=1e-5, rtol=1e-5, msg=str(rows)
        )
        assert torch.isfinite(replayed.logits).all()
    for mine, other in zip(ours.layers, recorded.layers, strict=True):
        torch.testing.assert_close(mine.keys, other.keys, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mine.values, other.values, atol=1e-5, rtol=1e-5)


def test_a_spoiled_token_is_flagged_alone() -> None:
    """A token whose embedding is not a number is the only one that is flagged."""
    model = tiny(**SMALL)
    model.model.embed_tokens.weight.data[7] = float("nan")
    ours = fused(model)
    layout = Course(VOCAB, groups_of(ours)).step([Part(0, 3), Part(1, 2)])
    layout.token_ids[:] = [3, 7, 4, 5, 6]
    _, finite = ours.run(layout)
    assert finite.tolist() == [True, False, True, True, True]


def test_parameters_are_shared() -> None:
    """The model holds as many bytes as before, and its own modules compute as before."""
    model = tiny(**SMALL)
    ids = torch.arange(2, 12, device=DEVICE)[None]
    before = tensor_bytes(list(model.parameters()))
    with torch.inference_mode():
        expected = model(ids, use_cache=False).logits
        made = FusedGptOss(model, POSITIONS)
        assert torch.equal(model(ids, use_cache=False).logits, expected)
    assert tensor_bytes(list(model.parameters())) == before
    attention = model.model.layers[1].self_attn
    joined = made._layers[1].qkv
    held = joined.untyped_storage().data_ptr()
    assert len(joined) == sum(
        len(part.weight) for part in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    for part in (attention.q_proj, attention.k_proj, attention.v_proj):
        assert part.weight.untyped_storage().data_ptr() == held
        assert not part.weight.requires_grad


def refusals() -> dict[str, Any]:
    """Models that must not run fused, by what is said of them."""
    other = build("llama")
    rope = {**CONFIGS["gpt_oss"]["rope_parameters"], "rope_type": "dynamic"}
    changing = build("gpt_oss", **SMALL, rope_parameters=rope)
    packed = build("gpt_oss", **SMALL)
    packed.model.layers[1].self_attn.k_proj = nn.Sequential(nn.Linear(2, 2))
    return {
        "it is a LlamaForCausalLM": other,
        "its rotary embedding (dynamic) changes with the sequence": changing,
        "its k_proj is no plain linear layer": packed,
    }


def test_what_it_does_not_know_it_leaves_alone() -> None:
    """Other architectures and changed modules go to transformers' modules, and it is said why."""
    assert why_not_fused(build("gpt_oss", **SMALL)) is None
    for reason, model in refusals().items():
        assert why_not_fused(model) == reason
        said: list[str] = []
        assert make_forward(model, "triton", POSITIONS, said.append).name == "transformers"
        llama = model.config.model_type == "llama"
        assert [line.endswith(reason) for line in said] == ([] if llama else [True])


@pytest.mark.parametrize(("backend", "name"), [("triton", "fused"), ("tiled", "transformers")])
def test_it_is_used_where_triton_attends(backend: str, name: str) -> None:
    """gpt-oss runs fused if attention does; its mixtures must be kernels to be captured."""
    model = build("gpt_oss", **SMALL)
    assert not make_forward(model, backend, POSITIONS, lambda _: None).capturable
    use_kernels(model)
    made = make_forward(model, backend, POSITIONS, lambda _: None)
    assert (made.name, made.capturable) == (name, backend == "triton")
