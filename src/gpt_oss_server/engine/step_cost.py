"""What a prefill token costs a step, in tokens at the start of a prompt.

Knows: that a token attends to all before it, and what the rest of a forward pass multiplies.
Does not know: sequences, batches, devices.

A step's time is bounded by its token budget only while tokens cost alike. They do not: the
products with weights are the same for each, attention grows with what stands before it. Deep in
a long prompt a chunk of the full budget can take many times as long as at the start, and whoever
arrives meanwhile waits for all of it. So a token at context `c` counts as `1 + c / even` tokens,
where `even` is the context at which attention multiplies as much as everything else.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from gpt_oss_server.memory.architecture import ModelShape

# The least that a prefill's first grant in a step buys, whatever the context: fewer tokens at once
# would only read the cache more often.
MIN_CHUNK_TOKENS = 32
# Where transformers' configs say how many experts a layer has.
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")


class StepCost(NamedTuple):
    """`even_tokens`: the context at which a token costs twice what the first one does; infinite
    where attention does not grow with the context."""

    even_tokens: float = math.inf

    def of(self, tokens: int, context: int) -> int:
        """Cost of `tokens` computed after `context` others, rounded up. The sum of `1 + c / even`
        over their positions, each counted at its middle."""
        return math.ceil(tokens + tokens * (context + tokens / 2) / self.even_tokens)

    def affordable(self, cost: int, context: int) -> int:
        """How many tokens after `context` cost no more than `cost`: the positive root of `of`."""
        if math.isinf(self.even_tokens):
            return cost
        depth, twice = self.even_tokens + context, 2 * self.even_tokens * cost
        # cost = n + (n context + n²/2) / even, solved so that nothing cancels.
        return int(twice / (depth + math.sqrt(depth * depth + twice)))


def step_cost(active_parameters: float, shape: ModelShape) -> StepCost:
    """For a model of this shape in which a token is multiplied with `active_parameters` weights.
    Per full layer and token before it, it further multiplies `heads * (k_dim + v_dim)` numbers;
    windowed layers are bounded and left out."""
    per_context = sum(
        shape.num_heads * (layer.k_dim + layer.v_dim)
        for layer in shape.layers
        if layer.window is None
    )
    return StepCost(active_parameters / per_context) if per_context else StepCost()


def active_parameters(model: Any) -> float:
    """Parameters that one token is multiplied with: of experts those that it chooses, and not the
    embedding, which is a lookup. Of a transformers model as it was loaded."""
    text = model.config.get_text_config()
    experts = next((n for name in EXPERT_COUNTS if (n := getattr(text, name, None))), None)
    chosen = getattr(text, "num_experts_per_tok", None)
    share = min(1.0, chosen / experts) if chosen and experts else 1.0
    # A stage of a pipeline may have neither.
    embedding = getattr(model.get_input_embeddings(), "weight", None)
    head = model.get_output_embeddings()
    tied = embedding is not None and getattr(head, "weight", None) is embedding
    total = 0.0
    for name, parameter in model.named_parameters():
        if parameter is embedding and not tied:
            continue
        total += _numbers(name, parameter) * (share if ".experts." in name else 1.0)
    return total


def _numbers(name: str, parameter: Any) -> int:
    """How many numbers a parameter holds: of MXFP4 two a byte, and scales are not multiplied."""
    if parameter.dtype.is_floating_point:
        return int(parameter.numel())
    return 0 if name.endswith("_scales") else 2 * int(parameter.numel())
