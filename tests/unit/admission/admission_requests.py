"""Short ways to write pools and requests in the admission tests."""

from __future__ import annotations

from typing import Any

from gpt_oss_server.admission import (
    AdmissionConfig,
    AdmissionCore,
    AdmissionRequest,
    BlockGroup,
    Capacity,
)


def pool(blocks: int = 10, block_tokens: int = 10) -> Capacity:
    """One group; with the defaults it holds 100 tokens."""
    return Capacity((BlockGroup(name="full", blocks=blocks, block_tokens=block_tokens),))


def ask(prompt_tokens: int, max_tokens: int, **more: Any) -> AdmissionRequest:
    fields: dict[str, Any] = {
        "id": "r",
        "prompt_tokens": prompt_tokens,
        "max_tokens": max_tokens,
    }
    return AdmissionRequest(**{**fields, **more})


def core(capacity: Capacity | None = None, **config: Any) -> AdmissionCore:
    """Worst-case reservation over 100 tokens unless told otherwise."""
    settings = {"mode": "worst_case", "min_open_output_tokens": 5, **config}
    return AdmissionCore(capacity or pool(), AdmissionConfig(**settings))
