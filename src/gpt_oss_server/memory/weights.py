"""Parameters and weight bytes of a model, from its config alone, whole or per rank.

Knows: embeddings and head, dtype and quantization of a config, what tensor and pipeline ranks
share. Does not know: the inside of a layer (`weight_rules`), kernels, or loaded tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Any

from gpt_oss_server.memory.architecture import ResolvedConfig, geometry_of, heads_per_rank, resolve
from gpt_oss_server.memory.blocks import ceil_div
from gpt_oss_server.memory.errors import ImpossibleSplit, ShapeUnknown
from gpt_oss_server.memory.stages import Load, cut_stages
from gpt_oss_server.memory.weight_parts import (
    MXFP4_GROUP,
    Matrix,
    Quantization,
    Split,
    WeightPart,
)
from gpt_oss_server.memory.weight_rules import RULES, layer_parts

WEIGHT_DTYPE_BYTES: Mapping[str, int] = MappingProxyType(
    {"float32": 4, "bfloat16": 2, "float16": 2}
)
# A step that pipeline stages are balanced for: decoding for a handful of users.
STAGE_TOKENS = 16
_DTYPE_KEYS = ("dtype", "torch_dtype")
_QUANTIZATIONS: Mapping[str, Quantization] = MappingProxyType({"mxfp4": "mxfp4", "fp8": "fp8"})


@dataclass(frozen=True)
class ModelWeights:
    """A model's weights by layer. `head` is empty when it is tied to `embedding`.

    `checkpoint_bytes`, where known for a model type without rules, replaces the sum of the parts.
    `exact` is False for an estimate; `warnings` say what was assumed.
    """

    embedding: WeightPart
    layers: tuple[tuple[WeightPart, ...], ...]
    final_norm: WeightPart
    head: WeightPart
    heads: int
    kv_heads: int
    dtype_bytes: int
    quantization: Quantization = "none"
    exact: bool = True
    warnings: tuple[str, ...] = ()
    checkpoint_bytes: int | None = None

    @property
    def tied(self) -> bool:
        return not self.head.matrices

    @property
    def params(self) -> int:
        return sum(part.params for part in self._parts())

    @property
    def active_params(self) -> int:
        """Parameters that one token's forward pass uses: of the experts only the chosen ones; the
        embedding table is looked up, not multiplied, and counts only where it is the head too."""
        used = int(sum((part.params * part.active for part in self._parts()), Fraction(0)))
        return used if self.tied else used - self.embedding.params

    @property
    def total_bytes(self) -> int:
        """Bytes of one copy of the model."""
        return self.checkpoint_bytes or self._formula_bytes()

    def rank_bytes(
        self, tp: int = 1, pp: int = 1, limit_bytes: int | None = None
    ) -> tuple[int, ...]:
        """Bytes on the fullest tensor-parallel rank of each pipeline stage, first stage first.

        Heads, MLPs, the width of experts and the vocabulary are shared by the ranks; norms,
        routers and biases of what is summed over ranks are on each. Experts in MXFP4 are shared by
        whole groups of 32 columns, as many on each rank (`engine.ranks.shard`). Stages hold the
        layers that `stages` says within `limit_bytes`; the embedding is on the first, final norm
        and head on the last (which needs the embedding too where it is tied). Raises
        `ImpossibleSplit`.
        """
        sizes = []
        for stage, layers in enumerate(self.stages(pp, limit_bytes)):
            parts = [part for index in layers for part in self.layers[index]]
            if stage == 0 or (stage == pp - 1 and self.tied):
                parts.append(self.embedding)
            if stage == pp - 1:
                parts += [self.final_norm, self.head]
            sizes.append(self._scaled(sum(self._share(part, tp) for part in parts)))
        return tuple(sizes)

    def stages(self, pp: int, limit_bytes: int | None = None) -> tuple[range, ...]:
        """Which layers each of `pp` pipeline stages holds, such that the slowest is as fast as
        can be in a decode step of `STAGE_TOKENS` tokens, whose time is that of reading the weights
        it touches: of each mixture the experts that some token is expected to choose, of the
        embedding nothing. No stage weighs more than `limit_bytes` if there is such a cut. Raises
        `ImpossibleSplit`.
        """
        table = self.embedding.bytes(self.dtype_bytes, self.quantization)
        last = [self.final_norm, self.embedding if self.tied else self.head]
        return cut_stages(
            [self._load(layer) for layer in self.layers],
            pp,
            before=Load(0, table),
            # A single stage has a tied embedding once; there is nothing to choose then.
            after=self._load(last),
            limit_bytes=limit_bytes,
        )

    def read_profile(self, tp: int = 1, pp: int = 1) -> tuple[Mapping[Fraction, int], ...]:
        """What a step reads on the fullest tensor-parallel rank of each stage: bytes by the share
        of them that one token uses. Of the embedding a step reads a row per token: nothing
        here, unless it is the head too. Raises `ImpossibleSplit`."""
        profiles = []
        for stage, layers in enumerate(self.stages(pp)):
            parts = [part for index in layers for part in self.layers[index]]
            if stage == pp - 1:
                parts += [self.final_norm, self.embedding if self.tied else self.head]
            sizes: dict[Fraction, int] = {}
            for part in parts:
                sizes[part.active] = sizes.get(part.active, 0) + self._share(part, tp)
            profiles.append({share: self._scaled(size) for share, size in sizes.items()})
        return tuple(profiles)

    def _load(self, parts: Iterable[WeightPart]) -> Load:
        load = Load(0, 0)
        for part in parts:
            size = part.bytes(self.dtype_bytes, self.quantization)
            touched = 1 - (1 - part.active) ** STAGE_TOKENS
            load = load + Load(int(size * touched), size)
        return load

    def _parts(self) -> Iterable[WeightPart]:
        yield self.embedding
        for layer in self.layers:
            yield from layer
        yield self.final_norm
        yield self.head

    def _formula_bytes(self) -> int:
        return sum(part.bytes(self.dtype_bytes, self.quantization) for part in self._parts())

    def _scaled(self, size: int) -> int:
        """A share of the checkpoint's real size, in proportion to the parts."""
        if self.checkpoint_bytes is None:
            return size
        return ceil_div(size * self.checkpoint_bytes, self._formula_bytes())

    def _share(self, part: WeightPart, tp: int) -> int:
        size = part.bytes(self.dtype_bytes, self.quantization)
        if tp == 1 or part.split == "replicated":
            return size
        if part.split == "kv_heads":
            return ceil_div(size * heads_per_rank(self.kv_heads, tp), self.kv_heads)
        if part.split == "vocabulary":
            rows = part.matrices[0].rows if part.matrices else 1
            return size // rows * ceil_div(rows, tp)  # every rank has as many, the last ones padded
        if part.split == "heads" and self.heads % tp:
            raise ImpossibleSplit(
                f"{self.heads} attention heads cannot be split over {tp} tensor-parallel ranks"
            )
        if part.mxfp4 and self.quantization == "mxfp4":
            groups = ceil_div(part.units, MXFP4_GROUP)
            if groups < tp:
                raise ImpossibleSplit(
                    f"{part.name} of {groups} groups of {MXFP4_GROUP} columns cannot be split over "
                    f"{tp} tensor-parallel ranks"
                )
            return ceil_div(size * ceil_div(groups, tp), groups)
        if part.units % tp:
            raise ImpossibleSplit(
                f"{part.name} of width {part.units} cannot be split over {tp} tensor-parallel ranks"
            )
        return ceil_div(size, tp)


def weights_of(
    config: Mapping[str, Any],
    *,
    dtype: str | None = None,
    dequantized: bool = False,
    checkpoint_bytes: int | None = None,
) -> ModelWeights:
    """Weights of the decoder in `config` (config.json's content).

    `dtype` is what they are loaded as (default: the config's own). Weights that the config says
    are quantized count as stored, or with `dequantized` as `dtype`. `checkpoint_bytes`
    (`metadata.total_size` of the safetensors index) is used where the model type has no rules.
    Raises `ShapeUnknown` for a config that lacks a size.
    """
    resolved = resolve(config)
    warnings: list[str] = []
    known = resolved.model_type in RULES
    if not known:
        warnings.append(
            f"model type '{resolved.model_type}' has no weight rules: "
            + (
                "generous estimate from the sizes that its config states, not a bound"
                if checkpoint_bytes is None
                else "its checkpoint's size"
            )
        )
    if any(isinstance(config.get(name), Mapping) for name in ("vision_config", "audio_config")):
        warnings.append("vision and audio parts are not counted")
    heads = resolved.count("num_attention_heads", 1)
    table = Matrix(1, resolved.count("vocab_size"), resolved.count("hidden_size"))
    tied = known and bool(
        config.get("tie_word_embeddings", resolved.get("tie_word_embeddings", False))
    )
    vocabulary: Split = "vocabulary" if known else "replicated"
    layers = range(resolved.count("num_hidden_layers"))
    return ModelWeights(
        embedding=WeightPart("embedding", (table,), split=vocabulary),
        layers=tuple(layer_parts(resolved, index) for index in layers),
        final_norm=WeightPart("final norm", vectors=table.columns),
        head=WeightPart("head", () if tied else (table,), split=vocabulary),
        heads=heads,
        kv_heads=geometry_of(resolved).kv_heads,
        dtype_bytes=_dtype_bytes(config, resolved, dtype, warnings),
        quantization="none" if dequantized else _quantization(config, resolved, warnings),
        exact=not warnings,
        warnings=tuple(warnings),
        checkpoint_bytes=None if known else checkpoint_bytes,
    )


def _dtype_bytes(
    config: Mapping[str, Any], resolved: ResolvedConfig, asked: str | None, warnings: list[str]
) -> int:
    """Bytes of one unquantized number."""
    stated = [asked, *(source.get(key) for source in (config, resolved) for key in _DTYPE_KEYS)]
    name = next((value for value in stated if value not in (None, "auto")), None)
    if name is None:
        warnings.append("no dtype in the config: taken as float32")
        return WEIGHT_DTYPE_BYTES["float32"]
    size = WEIGHT_DTYPE_BYTES.get(str(name).removeprefix("torch."))
    if size is None:
        raise ShapeUnknown(f"weights of dtype '{name}' are not known: use bfloat16 or float32")
    return size


def _quantization(
    config: Mapping[str, Any], resolved: ResolvedConfig, warnings: list[str]
) -> Quantization:
    """How the config says its weights are stored; an unknown way counts as not quantized."""
    stated = config.get("quantization_config") or resolved.get("quantization_config")
    if not isinstance(stated, Mapping):
        return "none"
    method = str(stated.get("quant_method"))
    if method not in _QUANTIZATIONS:
        warnings.append(f"quantization '{method}' is not known: counted as not quantized")
        return "none"
    return _QUANTIZATIONS[method]
