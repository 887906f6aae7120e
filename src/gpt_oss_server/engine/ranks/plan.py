"""Which part of a model is cut which way for tensor-parallel ranks.

Knows: styles, our plan for gpt-oss, and how to read the plan that a transformers config
publishes: as data, pattern to style name. Does not know: tensors, modules, sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from gpt_oss_server.errors import StartupError

Style = Literal["heads", "kv_heads", "column", "row", "experts"]
"""`heads` and `kv_heads`: rows by attention head. `column`: rows (output features) evenly. `row`:
columns (input features) evenly, products summed over ranks, the bias added once. `experts`: a
module with stacked experts. What has no style is whole on every rank."""

# What transformers calls them. Both releases that we support use these names.
_PUBLISHED: Mapping[str, Style | None] = MappingProxyType(
    {
        "colwise": "column",
        "rowwise": "row",
        "moe_tp_experts": "experts",
        "replicated_with_grad_allreduce": None,
    }
)
_KEY_VALUE = ("k_proj", "v_proj")
_QUERY = ("q_proj",)
_EXPERT_TENSORS = frozenset({"packed_colwise", "rowwise", "colwise"})

_ATTENTION = "layers.*.self_attn"
OURS: Mapping[str, Mapping[str, Style]] = MappingProxyType(
    {
        # transformers publishes a plan that shards only the head.
        "gpt_oss": {
            f"{_ATTENTION}.q_proj": "heads",
            f"{_ATTENTION}.k_proj": "kv_heads",
            f"{_ATTENTION}.v_proj": "kv_heads",
            f"{_ATTENTION}.sinks": "heads",
            f"{_ATTENTION}.o_proj": "row",
            "layers.*.mlp.experts": "experts",
        }
    }
)


@dataclass(frozen=True)
class TensorPlan:
    """Styles by pattern: names of modules or parameters below the decoder, numbers as `*`."""

    styles: Mapping[str, Style]

    def style(self, name: str) -> Style | None:
        """The style of the module or parameter of this name; None: whole on every rank."""
        return self.styles.get(_pattern(name))


def tensor_plan(model_type: str, published: Mapping[str, str] | None) -> TensorPlan:
    """The plan of an architecture. `published` is its config's own, names below the decoder.

    Raises StartupError where there is none, or it uses a style that is not understood here.
    """
    if model_type in OURS:
        return TensorPlan(OURS[model_type])
    if not published:
        raise StartupError(
            f"--gpu-mode tensor: transformers publishes no tensor plan for {model_type}: use "
            "--gpu-mode pipeline or auto"
        )
    experts = {name for name, style in published.items() if style == "moe_tp_experts"}
    styles: dict[str, Style] = {}
    for name, style in published.items():
        parent, _, last = name.rpartition(".")
        if parent in experts and style in _EXPERT_TENSORS:
            continue  # tensors of a module that is cut as a whole
        if style not in _PUBLISHED:
            raise StartupError(
                f"--gpu-mode tensor: the plan of {model_type} has the style '{style}' for {name}, "
                "which this server does not know: use --gpu-mode pipeline or auto"
            )
        ours = _PUBLISHED[style]
        if ours == "column" and last in _KEY_VALUE:
            ours = "kv_heads"
        elif ours == "column" and last in _QUERY:
            ours = "heads"
        if ours is not None:
            styles[name] = ours
    return TensorPlan(MappingProxyType(styles))


def _pattern(name: str) -> str:
    return ".".join("*" if piece.isdigit() else piece for piece in name.split("."))
