"""Puts kernels in the place of a loaded model's experts.

Knows: the forms in which transformers' models have experts. Does not know: how they were loaded.
Imports Triton. A module is replaced only if its own activation, tried on numbers, is one that the
kernels compute; all others stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from gpt_oss_server.engine.experts.modules import (
    KernelExperts,
    KernelMixture,
    Mxfp4KernelExperts,
    PlainKernelExperts,
)
from gpt_oss_server.engine.experts.stored import Mxfp4Experts
from gpt_oss_server.engine.kernels.gates import Gate
from gpt_oss_server.errors import StartupError

_TENSORS = ("gate_up_proj", "down_proj")
_FORM = ("has_gate", "has_bias", "is_transposed", "_apply_gate")


def use_kernels(model: nn.Module) -> int:
    """Replace every mixture of `model` that the kernels can compute. Returns how many. Raises
    StartupError for MXFP4 weights that they cannot."""
    replaced = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            experts = _kernel_experts(child)
            if experts is not None:
                setattr(parent, name, experts)
                replaced += 1
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if _is_gpt_oss_mixture(child):
                setattr(parent, name, KernelMixture(child.router, child.experts))  # type: ignore[arg-type]
    return replaced


def _kernel_experts(module: nn.Module) -> KernelExperts | None:
    if isinstance(module, Mxfp4Experts):
        try:
            return Mxfp4KernelExperts(module)
        except ValueError as error:
            raise StartupError(f"MXFP4 experts: {error}; use --experts torch") from error
    if not all(hasattr(module, name) for name in _FORM):
        return None
    if not module.has_gate or getattr(module, "has_post_expert_norm", False):
        return None
    tensors = [getattr(module, name, None) for name in _TENSORS]
    if not all(isinstance(tensor, nn.Parameter) and tensor.dim() == 3 for tensor in tensors):
        return None
    gate = gate_of(module)
    return None if gate is None else PlainKernelExperts(module, gate)


def gate_of(module: Any) -> Gate | None:
    """The gate that gives what the module's own activation gives, if there is one."""
    probe = torch.linspace(-9.0, 9.0, 64).view(2, 32)
    try:
        expected = module._apply_gate(probe)
    except (TypeError, RuntimeError):
        return None  # of more than the outputs, or not for this type
    for gate in _candidates(module):
        if torch.allclose(gate.apply(probe), expected, atol=1e-5, rtol=1e-5):
            return gate
    return None


def _candidates(module: Any) -> Iterator[Gate]:
    alpha, limit = getattr(module, "alpha", None), getattr(module, "limit", None)
    halves = bool(getattr(module, "is_concatenated", True))
    if isinstance(alpha, float | int) and isinstance(limit, float | int):
        yield Gate("swiglu", halves, float(alpha), float(limit))
    yield Gate("silu", halves)


def _is_gpt_oss_mixture(module: nn.Module) -> bool:
    """A module of just a router with a bias, whose softmax is over the chosen, and experts that
    have been replaced. The architecture is known by its class: nothing else tells the softmax."""
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP

    return isinstance(module, GptOssMLP) and isinstance(module.experts, KernelExperts)
