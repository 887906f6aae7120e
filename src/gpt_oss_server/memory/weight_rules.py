"""Which matrices a decoder layer has, per architecture, as transformers 5.23 builds them.

Knows: attention, MLP and expert shapes, and where the listed model types differ from a plain
grouped-attention decoder with a gated MLP. Does not know: dtypes, bytes, checkpoints.

A model type without rules gets `GENEROUS`: every bias and norm that any known decoder has,
a gated MLP and every expert in every layer, nothing shared between tensor-parallel ranks. Above
any plain decoder, but no bound: an unknown config may state its sizes under unknown names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Literal

from gpt_oss_server.memory.architecture import ResolvedConfig, geometry_of
from gpt_oss_server.memory.weight_parts import Matrix, Split, WeightPart

Bias = Literal["never", "always", "stated"]
MoeRule = Literal["dense", "every", "sparse_step", "after_dense", "interleaved", "both"]
_EXPERT_COUNTS = ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts")


@dataclass(frozen=True)
class WeightRules:
    """How one model type differs from a plain decoder.

    Biases that are `stated` follow `attention_bias` or `mlp_bias` in the config. `moe` says which
    layers have experts. `split` is how tensor-parallel ranks share the attention matrices.
    """

    qkv_bias: Bias = "never"
    o_bias: Bias = "never"
    mlp_bias: Bias = "never"
    qk_norm: bool = False
    sinks: bool = False
    norms_per_layer: int = 2
    moe: MoeRule = "dense"
    moe_bias: bool = False
    split: Split = "heads"


RULES: Mapping[str, WeightRules] = MappingProxyType(
    {
        "gpt_oss": WeightRules("stated", "stated", sinks=True, moe="every", moe_bias=True),
        "llama": WeightRules("stated", "stated", "stated"),
        "qwen2": WeightRules("always"),
        "qwen3": WeightRules("stated", "stated", qk_norm=True),
        "qwen3_moe": WeightRules("stated", "stated", qk_norm=True, moe="sparse_step"),
        "mistral": WeightRules(),
        "mixtral": WeightRules(moe="every"),
        "gemma": WeightRules("stated", "stated"),
        "gemma2": WeightRules("stated", "stated", norms_per_layer=4),
        "gemma3_text": WeightRules("stated", "stated", qk_norm=True, norms_per_layer=4),
        "phi3": WeightRules(split="even"),
        "llama4_text": WeightRules("stated", "stated", moe="interleaved"),
        "deepseek_v2": WeightRules("stated", "stated", "stated", moe="after_dense"),
        "deepseek_v3": WeightRules("stated", "stated", moe="after_dense", split="replicated"),
    }
)
GENEROUS = WeightRules(
    "always",
    "always",
    "always",
    qk_norm=True,
    sinks=True,
    norms_per_layer=8,
    moe="both",
    moe_bias=True,
    split="replicated",
)


def layer_parts(resolved: ResolvedConfig, index: int) -> tuple[WeightPart, ...]:
    """The weights of layer `index`. Raises `ShapeUnknown` for a config that lacks a size."""
    rules = RULES.get(resolved.model_type, GENEROUS)
    hidden = resolved.count("hidden_size")
    latent = resolved.get("kv_lora_rank") is not None
    attention = _latent(resolved, rules) if latent else _grouped(resolved, rules)
    parts = [WeightPart("norms", vectors=rules.norms_per_layer * hidden), *attention]
    experts = _has_experts(resolved, rules.moe, index)
    if not experts or rules.moe == "both":
        parts += _dense(resolved, rules)
    if experts:
        parts += _experts(resolved, rules)
    return tuple(parts)


def experts_of(resolved: ResolvedConfig) -> tuple[int, int]:
    """(experts per layer, experts that one token uses); (0, 0) for a dense model."""
    for name in _EXPERT_COUNTS:
        if resolved.get(name):
            total = resolved.count(name)
            return total, min(total, resolved.count("num_experts_per_tok", total))
    return 0, 0


def expert_size(resolved: ResolvedConfig) -> int:
    """Width of one expert."""
    return resolved.count("moe_intermediate_size", intermediate_size(resolved))


def dense_size(resolved: ResolvedConfig) -> int:
    """Width of a dense layer's MLP."""
    return resolved.count("intermediate_size_mlp", intermediate_size(resolved))


def shared_experts_of(resolved: ResolvedConfig) -> int:
    """Experts that every token uses, counted in widths of one expert."""
    return 1 if resolved.model_type == "llama4_text" else int(resolved.get("n_shared_experts", 0))


def intermediate_size(resolved: ResolvedConfig) -> int:
    """The stated MLP width, or the customary four times the hidden size."""
    return resolved.count("intermediate_size", 4 * resolved.count("hidden_size"))


def _biased(resolved: ResolvedConfig, bias: Bias, field: str = "attention_bias") -> bool:
    return bias == "always" or (bias == "stated" and bool(resolved.get(field, False)))


def _grouped(resolved: ResolvedConfig, rules: WeightRules) -> list[WeightPart]:
    """Query, key, value and output projections; biases, norms and sinks beside them."""
    hidden, heads = resolved.count("hidden_size"), resolved.count("num_attention_heads", 1)
    geometry = geometry_of(resolved)
    kv_heads, head_dim = geometry.kv_heads, geometry.k_dim
    qkv = _biased(resolved, rules.qkv_bias)
    kv_split: Split = "kv_heads" if rules.split == "heads" else rules.split
    rows, kv_rows = heads * head_dim, kv_heads * head_dim
    loose = hidden * _biased(resolved, rules.o_bias) + 2 * head_dim * rules.qk_norm
    return [
        WeightPart(
            "queries and output",
            (Matrix(1, rows, hidden), Matrix(1, hidden, rows)),
            vectors=rows * qkv + heads * rules.sinks,
            split=rules.split,
            fp8=True,
        ),
        WeightPart(
            "keys and values",
            (Matrix(2, kv_rows, hidden),),
            vectors=2 * kv_rows * qkv,
            split=kv_split,
            fp8=True,
        ),
        WeightPart("attention biases and norms", vectors=loose),
    ]


def _latent(resolved: ResolvedConfig, rules: WeightRules) -> list[WeightPart]:
    """Multi-head latent attention: shared down-projections, per-head up-projections."""
    hidden, heads = resolved.count("hidden_size"), resolved.count("num_attention_heads")
    nope, rotary = resolved.count("qk_nope_head_dim"), resolved.count("qk_rope_head_dim")
    value, rank = resolved.count("v_head_dim"), resolved.count("kv_lora_rank")
    query_rows = heads * (nope + rotary)
    shared, per_head = [Matrix(1, rank + rotary, hidden)], [Matrix(1, heads * (nope + value), rank)]
    biases = rank + rotary
    norms = rank
    if resolved.get("q_lora_rank") is None:
        per_head.append(Matrix(1, query_rows, hidden))
    else:
        query_rank = resolved.count("q_lora_rank")
        shared.append(Matrix(1, query_rank, hidden))
        per_head.append(Matrix(1, query_rows, query_rank))
        biases += query_rank
        norms += query_rank
    per_head.append(Matrix(1, hidden, heads * value))
    biases = biases * _biased(resolved, rules.qkv_bias) + hidden * _biased(resolved, rules.o_bias)
    return [
        WeightPart("latent projections", tuple(shared), vectors=norms + biases, fp8=True),
        WeightPart("head projections", tuple(per_head), split=rules.split, fp8=True),
    ]


def _gated(hidden: int, width: int) -> tuple[Matrix, Matrix]:
    """Gate and up projection, and the way back."""
    return Matrix(2, width, hidden), Matrix(1, hidden, width)


def _dense(resolved: ResolvedConfig, rules: WeightRules) -> list[WeightPart]:
    return _mlp("mlp", dense_size(resolved), resolved, rules)


def _mlp(name: str, width: int, resolved: ResolvedConfig, rules: WeightRules) -> list[WeightPart]:
    """A gated MLP; the bias of what it returns is on each rank."""
    hidden = resolved.count("hidden_size")
    biased = _biased(resolved, rules.mlp_bias, "mlp_bias")
    parts = [
        WeightPart(
            name,
            _gated(hidden, width),
            vectors=2 * width * biased,
            split="replicated" if rules is GENEROUS else "even",
            units=width,
            fp8=True,
        )
    ]
    return [*parts, WeightPart(f"{name} output bias", vectors=hidden)] if biased else parts


def _experts(resolved: ResolvedConfig, rules: WeightRules) -> list[WeightPart]:
    """Router, routed experts, and the experts that every token uses."""
    hidden, width = resolved.count("hidden_size"), expert_size(resolved)
    total, used = experts_of(resolved)
    active = Fraction(used, total)
    parts = [
        WeightPart("router", (Matrix(1, total, hidden),), vectors=total * rules.moe_bias),
        WeightPart(
            "experts",
            (Matrix(total, 2 * width, hidden), Matrix(total, hidden, width)),
            vectors=total * 2 * width * rules.moe_bias,
            split="replicated" if rules is GENEROUS else "even",
            units=width,
            active=active,
            fp8=True,
            mxfp4=True,
        ),
    ]
    if rules.moe_bias:
        # Ranks have a slice of every expert, and its output whole.
        parts.append(WeightPart("expert output biases", vectors=total * hidden, active=active))
    if shared := shared_experts_of(resolved):
        parts += _mlp("shared experts", shared * width, resolved, rules)
    return parts


def _has_experts(resolved: ResolvedConfig, rule: MoeRule, index: int) -> bool:
    """Whether layer `index` has routed experts."""
    if experts_of(resolved)[0] == 0 or rule == "dense":
        return False
    if rule == "sparse_step":
        dense = resolved.get("mlp_only_layers", ())
        return index not in dense and (index + 1) % resolved.count("decoder_sparse_step", 1) == 0
    if rule == "after_dense":
        return index >= int(resolved.get("first_k_dense_replace", 0))
    if rule == "interleaved":
        listed = resolved.get("moe_layers")
        if listed is not None:
            return index in listed
        return (index + 1) % resolved.count("interleave_moe_layer_step", 1) == 0
    return True
