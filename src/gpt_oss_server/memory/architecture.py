"""A transformers config, as a plain dict, to the shape that memory arithmetic needs.

Knows: how transformers (5.23) derives each layer's attention from config.json: missing fields,
older spellings, the nested text config of multimodal models, `layer_types`. Does not know: bytes,
weights, or any loaded model.

A model type outside `families.FAMILIES` still gets a shape, marked `exact=False`, with warnings
that say what was assumed so that the figures are upper bounds. Where no bound can be stated the
answer is `ShapeUnknown`, never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from gpt_oss_server.memory.errors import ImpossibleSplit, ShapeUnknown
from gpt_oss_server.memory.families import FAMILIES, TEXT_PART, Family

AttentionKind = Literal["full", "sliding", "chunked", "latent", "unknown"]

_TEXT_CONFIGS = ("text_config", "decoder", "generator")
_KINDS: Mapping[str, AttentionKind] = MappingProxyType(
    {
        "full_attention": "full",
        "attention": "full",
        "sliding_attention": "sliding",
        "chunked_attention": "chunked",
    }
)
_RECURRENT = frozenset({"linear_attention", "mamba", "conv", "hybrid", "hybrid_sliding"})
_RECURRENT_TYPES = frozenset({"falcon_mamba", "mamba", "mamba2", "rwkv", "xlstm"})
_SPELLINGS = MappingProxyType(
    {
        "n_embd": "hidden_size",
        "n_embed": "hidden_size",
        "d_model": "hidden_size",
        "dim": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_layers": "num_hidden_layers",
        "num_layers": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_heads": "num_attention_heads",
        "num_heads": "num_attention_heads",
        "n_kv_heads": "num_key_value_heads",
        "num_kv_heads": "num_key_value_heads",
        "n_positions": "max_position_embeddings",
        "max_seq_len": "max_position_embeddings",
    }
)


@dataclass(frozen=True)
class LayerAttention:
    """What one layer caches per token: `kv_heads` keys of `k_dim` and values of `v_dim`.

    `window` is the number of positions a query sees, itself included (sliding), or the chunk
    length (chunked); None for the others. A latent layer has both forms: expanded, as attention
    kernels see it (`kv_heads`, `k_dim`, `v_dim`), and compressed, one row shared by all heads
    (`latent_dim` = rank + rotary part), as transformers' own cache holds it.
    """

    kind: AttentionKind
    window: int | None
    kv_heads: int
    k_dim: int
    v_dim: int
    latent_dim: int | None = None

    def elements_per_token(self, tp: int = 1, *, compressed: bool = False) -> int:
        """Numbers cached per token on one of `tp` tensor-parallel ranks.

        Heads are split evenly, or replicated when there are more ranks than heads; a compressed
        latent row belongs to no head and is replicated. Raises `ImpossibleSplit`.
        """
        if compressed and self.latent_dim is not None:
            heads_per_rank(self.kv_heads, tp)
            return self.latent_dim
        return heads_per_rank(self.kv_heads, tp) * (self.k_dim + self.v_dim)


@dataclass(frozen=True)
class ModelShape:
    """The part of a model that decides its KV cache. `exact` is False for an upper bound, and
    `warnings` then say what was assumed. `max_positions` is None when the config names none.
    `splits_heads` is False where tensor-parallel ranks each cache every KV head."""

    model_type: str
    layers: tuple[LayerAttention, ...]
    hidden_size: int
    num_heads: int
    vocab_size: int | None
    max_positions: int | None
    splits_heads: bool = True
    exact: bool = True
    warnings: tuple[str, ...] = ()

    def part(self, layers: range) -> ModelShape:
        """The model as a pipeline stage with these layers sees it."""
        return replace(self, layers=self.layers[layers.start : layers.stop])

    def sharded(self, tp: int) -> ModelShape:
        """The model as one of `tp` tensor-parallel ranks sees it. Raises `ImpossibleSplit`."""
        if tp == 1 or not self.splits_heads:
            return self
        if self.num_heads % tp:
            raise ImpossibleSplit(
                f"{self.num_heads} attention heads cannot be split over {tp} tensor-parallel ranks"
            )
        return replace(
            self,
            num_heads=self.num_heads // tp,
            layers=tuple(
                replace(layer, kv_heads=heads_per_rank(layer.kv_heads, tp)) for layer in self.layers
            ),
        )


@dataclass(frozen=True)
class ResolvedConfig:
    """A decoder's config with transformers' defaults and canonical names filled in.

    `known` is False for a model type outside `FAMILIES`: then only what the config states is in
    `fields`.
    """

    model_type: str
    known: bool
    fields: Mapping[str, Any]

    def get(self, name: str, default: Any = None) -> Any:
        """The field's value; `default` where it is missing or null."""
        value = self.fields.get(name)
        return default if value is None else value

    def count(self, name: str, default: int | None = None) -> int:
        """A positive whole number, or `default` where the field is missing or null.

        Raises `ShapeUnknown` for anything else, naming the field.
        """
        value = self.get(name, default)
        if value is None:
            raise ShapeUnknown(
                f"model config ({self.model_type}) has no '{name}': its memory cannot be bounded"
            )
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ShapeUnknown(f"model config field '{name}' must be a positive integer: {value!r}")
        return value

    @property
    def family(self) -> Family | None:
        return FAMILIES.get(self.model_type)


def heads_per_rank(kv_heads: int, tp: int) -> int:
    """KV heads that one of `tp` ranks holds: an even share, or one replicated head.

    Raises `ImpossibleSplit` when neither divides the other.
    """
    if tp >= 1 and kv_heads % tp == 0:
        return kv_heads // tp
    if tp > kv_heads and tp % kv_heads == 0:
        return 1
    raise ImpossibleSplit(
        f"{kv_heads} KV heads cannot be split over {tp} tensor-parallel ranks: use a divisor or "
        f"a multiple of {kv_heads}"
    )


def resolve(config: Mapping[str, Any]) -> ResolvedConfig:
    """Find the text decoder in `config`, spell its fields canonically, fill in the defaults.

    Raises `ShapeUnknown` for an encoder-decoder or an ambiguous config.
    """
    outer_type = str(config.get("model_type") or "unknown")
    nested = [name for name in _TEXT_CONFIGS if isinstance(config.get(name), Mapping)]
    if len(nested) > 1:
        raise ShapeUnknown(f"model config has several text configs ({', '.join(nested)})")
    text: Mapping[str, Any] = config[nested[0]] if nested else config
    model_type = str(text.get("model_type") or outer_type)
    model_type = TEXT_PART.get(model_type, model_type)
    if text.get("is_encoder_decoder"):
        raise ShapeUnknown(f"model type '{model_type}' is an encoder-decoder, not a decoder")
    if text.get("per_layer_config"):
        raise ShapeUnknown("model config has a 'per_layer_config': its layers differ one by one")
    family = FAMILIES.get(model_type)
    names = family.aliases if family else _SPELLINGS
    stated = {names.get(name, name): value for name, value in text.items() if name in names}
    stated |= {name: value for name, value in text.items() if name not in names}
    defaults: Mapping[str, Any] = family.defaults if family else {}
    return ResolvedConfig(model_type, family is not None, MappingProxyType({**defaults, **stated}))


def shape_from_config(config: Mapping[str, Any]) -> ModelShape:
    """The KV shape of the decoder that transformers builds from `config` (config.json's content).

    Raises `ShapeUnknown` when a field is nonsense or no upper bound can be stated.
    """
    resolved = resolve(config)
    if resolved.model_type in _RECURRENT_TYPES:
        raise ShapeUnknown(f"model type '{resolved.model_type}' is recurrent: it has no KV cache")
    warnings: list[str] = []
    if not resolved.known:
        warnings.append(
            f"model type '{resolved.model_type}' is not known: every layer is taken as full "
            "attention over all tokens, with the KV heads and head size that the config states"
        )
    geometry = geometry_of(resolved, warnings)
    layers = tuple(
        _layer(name, geometry, resolved, warnings) for name in _layer_types(resolved, warnings)
    )
    positions = resolved.get("max_position_embeddings")
    vocab = resolved.get("vocab_size")
    return ModelShape(
        model_type=resolved.model_type,
        layers=layers,
        hidden_size=resolved.count("hidden_size"),
        num_heads=resolved.count("num_attention_heads", 1),
        vocab_size=resolved.count("vocab_size") if vocab is not None else None,
        max_positions=resolved.count("max_position_embeddings") if positions is not None else None,
        splits_heads=family.splits_heads if (family := resolved.family) else False,
        exact=not warnings,
        warnings=tuple(dict.fromkeys(warnings)),
    )


def geometry_of(resolved: ResolvedConfig, warnings: list[str] | None = None) -> LayerAttention:
    """KV heads and sizes of a full-attention layer of this model; what had to be assumed is
    appended to `warnings`. Raises `ShapeUnknown`."""
    warnings = [] if warnings is None else warnings
    if not resolved.known:
        return _bounded_geometry(resolved, warnings)
    family = resolved.family
    rule = family.kv if family else "grouped"
    heads = resolved.count("num_attention_heads")
    head_dim = resolved.count("head_dim", resolved.count("hidden_size") // heads)
    if rule == "latent":
        return _latent_geometry(resolved, heads)
    if rule == "multi_head":
        kv_heads = heads
    elif rule == "multi_query":
        kv_heads = 1 if resolved.get("multi_query", True) else heads
    elif rule == "falcon":
        # The newer layout broadcasts its grouped heads before they are cached.
        if resolved.get("new_decoder_architecture", False):
            kv_heads = heads
        elif resolved.get("multi_query", True):
            kv_heads = 1
        else:
            kv_heads = resolved.count("num_kv_heads", heads)
    else:
        kv_heads = resolved.count("num_key_value_heads", heads)
    return LayerAttention("full", None, kv_heads, head_dim, head_dim)


def _latent_geometry(resolved: ResolvedConfig, heads: int) -> LayerAttention:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434)."""
    rotary = resolved.count("qk_rope_head_dim")
    return LayerAttention(
        "latent",
        None,
        heads,
        k_dim=resolved.count("qk_nope_head_dim") + rotary,
        v_dim=resolved.count("v_head_dim"),
        latent_dim=resolved.count("kv_lora_rank") + rotary,
    )


def _bounded_geometry(resolved: ResolvedConfig, warnings: list[str]) -> LayerAttention:
    """The largest geometry that the stated fields of an unknown model allow."""
    hidden = resolved.count("hidden_size")
    heads = resolved.count("num_attention_heads", 1)
    if resolved.get("num_attention_heads") is None:
        warnings.append("no number of attention heads: one head as wide as the hidden state")
    kv_heads = heads
    if resolved.get("num_key_value_heads") is None:
        warnings.append("no number of KV heads: as many as attention heads")
    else:
        kv_heads = resolved.count("num_key_value_heads")
    k_dim = v_dim = max(resolved.count("head_dim", 1), -(-hidden // heads))
    if resolved.get("kv_lora_rank") is not None:
        warnings.append("latent attention: counted expanded, for every attention head")
        kv_heads = max(kv_heads, heads)
        latent = _latent_geometry(resolved, heads)
        k_dim, v_dim = max(k_dim, latent.k_dim), max(v_dim, latent.v_dim)
    return LayerAttention("unknown", None, kv_heads, k_dim, v_dim)


def _layer(
    name: str, geometry: LayerAttention, resolved: ResolvedConfig, warnings: list[str]
) -> LayerAttention:
    """One layer: the model's geometry with this layer's reach."""
    if name in _RECURRENT:
        raise ShapeUnknown(
            f"layers of type '{name}' ({resolved.model_type}) keep a recurrent state that cannot "
            "be sized from the config"
        )
    kind = _KINDS.get(name)
    if kind is None:
        warnings.append(f"layer type '{name}' is not known: taken as full attention")
        return replace(geometry, kind="unknown")
    if kind == "full" or not resolved.known:
        return geometry
    field = "sliding_window" if kind == "sliding" else "attention_chunk_size"
    if _window(resolved, field) is None:
        warnings.append(f"layer type '{name}' without '{field}': taken as full attention")
        return geometry
    return replace(geometry, kind=kind, window=resolved.count(field))


def _window(resolved: ResolvedConfig, field: str) -> int | None:
    """The stated window, or None; some families ignore it unless a second field is true."""
    family = resolved.family
    if resolved.get(field) is None:
        return None
    if family and family.gated_window and not resolved.get("use_sliding_window", False):
        return None
    window = resolved.count(field)
    if resolved.model_type == "gemma3_text" and resolved.get("use_bidirectional_attention"):
        return window // 2 + 1
    return window


def _layer_types(resolved: ResolvedConfig, warnings: list[str]) -> Sequence[str]:
    """One transformers layer type per layer, as its config classes and cache derive them."""
    layers = resolved.count("num_hidden_layers")
    stated = resolved.get("layer_types")
    if stated is not None:
        if not isinstance(stated, Sequence) or isinstance(stated, str) or len(stated) != layers:
            raise ShapeUnknown(f"model config field 'layer_types' must list {layers} layer types")
        return [str(name) for name in stated]
    if not resolved.known:
        return ["full_attention"] * layers
    return _derived_layer_types(resolved, resolved.family or Family({}), layers)


def _derived_layer_types(resolved: ResolvedConfig, family: Family, layers: int) -> Sequence[str]:
    window, rule = _window(resolved, "sliding_window"), family.layer_types
    if rule == "periodic":
        period = family.period
        if family.period_field:
            period = resolved.count("sliding_window_pattern", period)
        return [
            "sliding_attention" if (i + 1) % period else "full_attention" for i in range(layers)
        ]
    if rule == "qwen":
        first = resolved.get("max_window_layers", 0)
        return [
            "sliding_attention" if window is not None and i >= first else "full_attention"
            for i in range(layers)
        ]
    if rule == "llama4":
        interval = resolved.count("no_rope_layer_interval", 4)
        rotary = resolved.get("no_rope_layers") or [(i + 1) % interval for i in range(layers)]
        return ["chunked_attention" if flag else "full_attention" for flag in rotary]
    if window is not None:
        return ["sliding_attention"] * layers
    if _window(resolved, "attention_chunk_size") is not None:
        return ["chunked_attention"] * layers
    return ["full_attention"] * layers
