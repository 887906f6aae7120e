"""What a loaded model really caches, layer by layer, and the pools that follow.

Knows: how to watch one forward pass of a transformers model. Does not know: scheduling. The
prediction from the config (`memory/`) is checked against what is observed here; where they
differ, what was observed is used and the difference is reported, never hidden.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gpt_oss_server.engine.attention.interface import ATTENTION_NAME, LayerKv, paged_attention
from gpt_oss_server.engine.host_memory import take_pages
from gpt_oss_server.errors import StartupError
from gpt_oss_server.memory.architecture import LayerAttention, ModelShape
from gpt_oss_server.memory.kv import PoolPlan

PROBE_TOKENS = 2


class _Probe:
    """Stands in for paged attention during one forward pass and notes each layer's geometry."""

    def __init__(self) -> None:
        self.seen: dict[int, LayerAttention] = {}
        self.devices: dict[int, torch.device] = {}

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        sliding_window: int | None = None,
        **unused: Any,
    ) -> tuple[torch.Tensor, None]:
        index = module.layer_idx
        if not isinstance(index, int) or index in self.seen:
            raise StartupError(f"attention layer {index} was called twice: cannot page its cache")
        self.devices[index] = query.device
        self.seen[index] = LayerAttention(
            kind="full" if sliding_window is None else "sliding",
            window=sliding_window,
            kv_heads=key.shape[1],
            k_dim=key.shape[3],
            v_dim=value.shape[3],
        )
        shape = (*query.shape[:3], value.shape[3])
        return query.new_zeros(shape).transpose(1, 2).contiguous(), None


def no_mask(*unused: Any, **also_unused: Any) -> None:
    """Registered as the mask builder of our attention: masking is by position, in the kernel."""


def register_attention() -> None:
    """Make our attention known to transformers, under `ATTENTION_NAME`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(ATTENTION_NAME, paged_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, no_mask)


def observe_layers(model: Any, from_hidden: bool = False) -> tuple[LayerAttention, ...]:
    """Each layer's cache geometry: `observe` without the devices."""
    return observe(model, model.device, from_hidden)[0]


def observe(
    model: Any, device: torch.device, from_hidden: bool = False
) -> tuple[tuple[LayerAttention, ...], tuple[torch.device, ...]]:
    """Each layer's cache geometry, and the device that it attends on, from one forward pass of two
    tokens on `device`; with `from_hidden` of two hidden states, for a part of a model that does
    not begin with its embedding.

    Raises:
        StartupError: a layer does not use transformers' attention interface (a recurrent or
            convolutional layer, an old architecture), so its state cannot be paged.
    """
    from transformers import AttentionInterface

    name = f"{ATTENTION_NAME}_probe"
    probe = _Probe()
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(name, probe)
    AttentionMaskInterface.register(name, no_mask)
    expected = int(model.config.get_text_config().num_hidden_layers)
    try:
        model.set_attn_implementation(name)
        positions = torch.arange(PROBE_TOKENS, device=device).unsqueeze(0)
        given: dict[str, torch.Tensor] = {}
        if from_hidden:
            size = (1, PROBE_TOKENS, int(model.config.get_text_config().hidden_size))
            given["inputs_embeds"] = torch.zeros(size, dtype=model.dtype, device=device)
        else:
            given["input_ids"] = torch.zeros_like(positions)
        with torch.inference_mode():
            model(**given, position_ids=positions, use_cache=False)
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise StartupError(
            f"{model.config.model_type} cannot run on paged attention: {error}"
        ) from error
    if sorted(probe.seen) != list(range(expected)):
        missing = sorted(set(range(expected)) - set(probe.seen))
        raise StartupError(
            f"{model.config.model_type} has layers whose state is not a pageable KV cache "
            f"(layers {missing[:4]}{'…' if len(missing) > 4 else ''})"
        )
    layers = range(expected)
    return tuple(probe.seen[i] for i in layers), tuple(probe.devices[i] for i in layers)


def _geometry(layer: LayerAttention) -> tuple[int | None, int, int, int]:
    return layer.window, layer.kv_heads, layer.k_dim, layer.v_dim


def reconcile(
    predicted: ModelShape, observed: Sequence[LayerAttention]
) -> tuple[ModelShape, list[str]]:
    """The shape to build pools for, and what the prediction from the config got wrong."""
    differences = [
        f"layer {i}: config predicts (window, kv heads, key size, value size) = {_geometry(p)}, "
        f"the model has {_geometry(o)}"
        for i, (p, o) in enumerate(zip(predicted.layers, observed, strict=False))
        if _geometry(p) != _geometry(o)
    ]
    if len(predicted.layers) != len(observed):
        differences.append(f"{len(predicted.layers)} layers predicted, {len(observed)} found")
    if not differences:
        return predicted, []
    return replace(predicted, layers=tuple(observed)), differences


def allocate_layers(
    plan: PoolPlan,
    shape: ModelShape,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device | Sequence[torch.device],
) -> list[LayerKv]:
    """The pools' tensors, one pair per layer, zeroed, on one device or on each layer's own. Their
    bytes equal `plan.total_bytes`; on a CPU their pages are taken in the background."""
    on_host: list[npt.NDArray[Any]] = []
    layers: list[LayerKv | None] = [None] * len(shape.layers)
    for number, group in enumerate(plan.groups):
        for index in group.layer_indices:
            layer = shape.layers[index]
            rows = (group.num_blocks, block_size, layer.kv_heads)
            where = device if isinstance(device, torch.device) else device[index]
            layers[index] = LayerKv(
                group=number,
                window=group.window,
                keys=_zeros((*rows, layer.k_dim), dtype, where, on_host),
                values=_zeros((*rows, layer.v_dim), dtype, where, on_host),
            )
    if on_host:
        take_pages(on_host)
    return [layer for layer in layers if layer is not None]


def _zeros(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    on_host: list[npt.NDArray[Any]],
) -> torch.Tensor:
    """A zeroed tensor. On a CPU it has no pages yet, where torch.zeros would write them all, one
    after the other; its array is noted in `on_host`."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    raw = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    on_host.append(raw)
    return torch.from_numpy(raw).view(dtype).view(shape)
