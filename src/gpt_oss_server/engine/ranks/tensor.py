"""Makes a skeleton one of several tensor-parallel ranks.

Knows: how a plan's styles apply to transformers' modules. Does not know: files, devices, which
arithmetic a cut follows (`shard`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from gpt_oss_server.engine.experts.stored import Mxfp4Experts
from gpt_oss_server.engine.ranks.comms import Comms
from gpt_oss_server.engine.ranks.modules import (
    ChosenExperts,
    PartEmbedding,
    PartHead,
    SlicedExperts,
    SummedLinear,
)
from gpt_oss_server.engine.ranks.plan import Style, TensorPlan
from gpt_oss_server.engine.ranks.shard import (
    Cut,
    ExpertSplit,
    by_heads,
    by_kv_heads,
    by_vocabulary,
    even,
    expert_cuts,
    mxfp4_cuts,
)
from gpt_oss_server.engine.ranks.skeleton import decoder_name, module_name, replace_module
from gpt_oss_server.errors import StartupError

_EXPERT_TENSORS = ("gate_up_proj", "up_proj", "down_proj")
# What attention modules call their counts; those that a forward pass uses must be local.
_HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads")
_KV_HEAD_COUNTS = ("num_key_value_heads", "num_kv_heads")


class TensorCutter:
    """Cuts one skeleton for one rank: `cut`, then, once its tensors are real, `join`.

    `cuts` maps the names of the tensors of which this rank has a part to that part; the
    skeleton's tensors then have their local shapes.
    """

    def __init__(
        self, model: Any, plan: TensorPlan, comms: Comms, experts: ExpertSplit = "width"
    ) -> None:
        self.cuts: dict[str, Cut] = {}
        self._model = model
        self._plan = plan
        self._comms = comms
        self._experts: ExpertSplit = experts
        self._tp, self._rank = comms.place.tp, comms.place.tp_rank
        self._wraps: list[tuple[str, Callable[[Any, Comms], nn.Module]]] = []

    def cut(self) -> None:
        """Raises StartupError for sizes that do not divide, or modules that are not as the plan
        assumes."""
        decoder = decoder_name(self._model)
        self._check_heads()
        self._vocabulary()
        for name, module in list(self._model.named_modules()):
            below = name.removeprefix(f"{decoder}.")
            style = self._plan.style(below) if below != name else None
            if style is not None:
                self._module(name, module, style)
            elif below != name:
                self._loose_parameters(name, below, module)

    def join(self) -> None:
        """Put in what joins this rank with the others."""
        for name, wrap in self._wraps:
            module = self._model.get_submodule(name)
            replace_module(self._model, name, wrap(module, self._comms))

    def _check_heads(self) -> None:
        """Says it in the config's words before a matrix is found that does not divide."""
        text = self._model.config.get_text_config()
        heads = int(text.num_attention_heads)
        if any(style == "heads" for style in self._plan.styles.values()) and heads % self._tp:
            fitting = [n for n in range(2, heads + 1) if heads % n == 0]
            raise StartupError(
                f"--gpu-mode tensor: {heads} attention heads do not divide over {self._tp} GPUs: "
                f"use one of {', '.join(map(str, fitting[:6]))}, or --gpu-mode pipeline"
            )

    def _module(self, name: str, module: nn.Module, style: Style) -> None:
        if style == "experts":
            self._mixture(name, module)
            return
        if not isinstance(module, nn.Linear):
            raise StartupError(
                f"--gpu-mode tensor: {name} is no linear layer ({type(module).__name__}): use "
                "--gpu-mode pipeline or auto"
            )
        tp, rank = self._tp, self._rank
        if style == "row":
            cut = even(module.in_features, 1, rank, tp, f"inputs of {name}")
            self._set(module, "weight", name, cut)
            module.in_features //= tp
            self._wraps.append((name, SummedLinear))
            return
        rule: Callable[[int], Cut]
        if style == "column":
            cut = even(module.out_features, 0, rank, tp, f"outputs of {name}")
        else:
            head_dim = self._head_dim(name)
            rule = _rule(style, head_dim, rank, tp)
            cut = rule(module.out_features)
            self._count_heads(name, style, cut.shape((module.out_features,))[0] // head_dim)
        self._set(module, "weight", name, cut)
        if module.bias is not None:
            self._set(module, "bias", name, cut)
        module.out_features = module.weight.shape[0]

    def _loose_parameters(self, name: str, below: str, module: nn.Module) -> None:
        """Parameters that have a style of their own: one number per head."""
        for key, parameter in list(module.named_parameters(recurse=False)):
            style = self._plan.style(f"{below}.{key}")
            if style is not None:
                cut = _rule(style, 1, self._rank, self._tp)(parameter.shape[0])
                self._set(module, key, name, cut)

    def _mixture(self, name: str, module: Any) -> None:
        """A module with stacked experts: in the form of transformers' own experts functions, or
        in four bits."""
        shapes = {key: tensor.shape for key, tensor in module.named_parameters(recurse=False)}
        if isinstance(module, Mxfp4Experts):
            cuts = mxfp4_cuts(shapes, split=self._experts, tp_rank=self._rank, tp=self._tp)
        else:
            _check_stacked(name, module)
            cuts = expert_cuts(
                shapes,
                transposed=module.is_transposed,
                concatenated=getattr(module, "is_concatenated", True),
                split=self._experts,
                tp_rank=self._rank,
                tp=self._tp,
            )
        for key, cut in cuts.items():
            self._set(module, key, name, cut)
        if self._experts == "count":
            count = module.num_experts = next(module.parameters()).shape[0]
            first_here = self._rank * count
            self._wraps.append((name, partial(ChosenExperts, first=first_here, count=count)))
        else:
            self._wraps.append((name, SlicedExperts))

    def _vocabulary(self) -> None:
        """Embedding and head, each rank its part; tied weights stay one tensor."""
        embedding, head = (
            self._model.get_input_embeddings(),
            self._model.get_output_embeddings(),
        )
        if not isinstance(embedding, nn.Embedding) or not isinstance(head, nn.Linear):
            raise StartupError(
                f"--gpu-mode tensor: {self._model.config.model_type} has no plain embedding and "
                "head: use --gpu-mode pipeline or auto"
            )
        tied = head.weight is embedding.weight
        embedding_name = module_name(self._model, embedding)
        head_name = module_name(self._model, head)
        cut = by_vocabulary(embedding.num_embeddings, self._rank, self._tp)
        self._set(embedding, "weight", embedding_name, cut)
        count = embedding.num_embeddings = embedding.weight.shape[0]
        cut = by_vocabulary(head.out_features, self._rank, self._tp)
        if tied:
            head.weight = embedding.weight
        else:
            self._set(head, "weight", head_name, cut)
        if head.bias is not None:
            self._set(head, "bias", head_name, cut)
        self._wraps += [
            (embedding_name, partial(PartEmbedding, first=self._rank * count)),
            (head_name, partial(PartHead, vocab_size=head.out_features)),
        ]
        head.out_features = head.weight.shape[0]

    def _set(self, module: nn.Module, key: str, name: str, cut: Cut) -> None:
        """Give a parameter its local shape, and note where that comes from."""
        whole: Any = getattr(module, key)
        local = torch.empty(cut.shape(whole.shape), dtype=whole.dtype, device="meta")
        setattr(module, key, nn.Parameter(local, requires_grad=False))
        self.cuts[f"{name}.{key}"] = cut

    def _attention_of(self, name: str) -> nn.Module:
        parent: nn.Module = self._model.get_submodule(name.rpartition(".")[0])
        return parent

    def _head_dim(self, name: str) -> int:
        own = getattr(self._attention_of(name), "head_dim", None)
        if isinstance(own, int):
            return own
        text = self._model.config.get_text_config()
        return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)

    def _count_heads(self, name: str, style: Style, local: int) -> None:
        """Tell the attention module how many heads it has here."""
        attention: Any = self._attention_of(name)
        for key in _HEAD_COUNTS if style == "heads" else _KV_HEAD_COUNTS:
            if isinstance(getattr(attention, key, None), int):
                setattr(attention, key, local)
        queries = getattr(attention, "q_proj", None)
        grouped = isinstance(getattr(attention, "num_key_value_groups", None), int)
        if style == "kv_heads" and grouped and isinstance(queries, nn.Linear):
            # Queries come first in every attention module: theirs are local already.
            attention.num_key_value_groups = queries.out_features // self._head_dim(name) // local


def _check_stacked(name: str, module: Any) -> None:
    first = next((key for key in _EXPERT_TENSORS if hasattr(module, key)), None)
    stacked = isinstance(getattr(module, "down_proj", None), nn.Parameter)
    if first in (None, "down_proj") or not stacked or not hasattr(module, "is_transposed"):
        raise StartupError(
            f"--gpu-mode tensor: the experts of {name} ({type(module).__name__}) are not in "
            "the form that this server can cut: use --gpu-mode pipeline or auto"
        )


def _rule(style: Style, head_dim: int, rank: int, tp: int) -> Callable[[int], Cut]:
    by = by_kv_heads if style == "kv_heads" else by_heads
    return lambda rows: by(rows, head_dim, rank, tp)
