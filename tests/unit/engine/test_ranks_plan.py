"""Which parts of a model are cut which way."""

from __future__ import annotations

import pytest

from gpt_oss_server.engine.ranks.plan import Style, tensor_plan
from gpt_oss_server.errors import StartupError

PUBLISHED = {
    "layers.*.self_attn.q_proj": "colwise",
    "layers.*.self_attn.k_proj": "colwise",
    "layers.*.self_attn.v_proj": "colwise",
    "layers.*.self_attn.k_norm": "replicated_with_grad_allreduce",
    "layers.*.self_attn.o_proj": "rowwise",
    "layers.*.mlp.experts.gate_up_proj": "packed_colwise",
    "layers.*.mlp.experts.down_proj": "rowwise",
    "layers.*.mlp.experts": "moe_tp_experts",
    "layers.*.mlp.up_proj": "colwise",
}


@pytest.mark.parametrize(
    ("name", "style"),
    [
        ("layers.0.self_attn.q_proj", "heads"),
        ("layers.17.self_attn.v_proj", "kv_heads"),
        ("layers.3.self_attn.k_norm", None),
        ("layers.3.self_attn.o_proj", "row"),
        ("layers.3.mlp.experts", "experts"),
        ("layers.3.mlp.experts.down_proj", None),
        ("layers.3.mlp.up_proj", "column"),
        ("layers.3.mlp.router", None),
        ("norm", None),
    ],
)
def test_a_published_plan(name: str, style: Style | None) -> None:
    """Keys and values are told from other columns; tensors of a mixture go with the mixture."""
    assert tensor_plan("new", PUBLISHED).style(name) == style


def test_ours_for_gpt_oss() -> None:
    """The plan that transformers publishes for it (the head alone) is not used."""
    plan = tensor_plan("gpt_oss", {"layers.*.mlp.experts": "strange"})
    assert plan.style("layers.5.self_attn.sinks") == "heads"
    assert plan.style("layers.5.self_attn.k_proj") == "kv_heads"
    assert plan.style("layers.5.self_attn.o_proj") == "row"
    assert plan.style("layers.5.mlp.experts") == "experts"
    assert plan.style("layers.5.mlp.router") is None


@pytest.mark.parametrize("published", [None, {}])
def test_no_plan_is_refused(published: dict[str, str] | None) -> None:
    """One line that says what would do."""
    with pytest.raises(StartupError, match="no tensor plan for gpt2: use --gpu-mode pipeline"):
        tensor_plan("gpt2", published)


def test_an_unknown_style_is_refused() -> None:
    """A style that is not understood is never guessed at."""
    with pytest.raises(StartupError, match=r"style 'colwise_gather_output' for layers.*qkv_proj"):
        tensor_plan("phi3", {"layers.*.self_attn.qkv_proj": "colwise_gather_output"})
