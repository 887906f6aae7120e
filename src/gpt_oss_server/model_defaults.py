"""What a model's makers recommend to requests that leave parameters open.

Knows: the fields of a `generation_config.json` that a server can use. Does not know: requests.
A file that is missing or no JSON, and values that are none of these parameters' own, count as
nothing recommended: they must not keep a model from being served.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from gpt_oss_server.api.sampling import SamplingDefaults

_BOUNDS = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "top_k": (0, 2**31 - 1),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 10.0),
}


def generation_config(folder: Path) -> Mapping[str, Any]:
    """The folder's `generation_config.json`; empty where there is none that can be read."""
    try:
        config = msgspec.json.decode((folder / "generation_config.json").read_bytes())
    except (OSError, msgspec.DecodeError):
        return {}
    return config if isinstance(config, dict) else {}


def recommended_sampling(config: Mapping[str, Any]) -> SamplingDefaults:
    """Temperature and the like. `"do_sample": false`, said in so many words, is greedy."""
    found: dict[str, Any] = {
        name: value
        for name, (low, high) in _BOUNDS.items()
        if isinstance(value := config.get(name), int | float)
        and not isinstance(value, bool)
        and low <= value <= high
        and (name != "top_k" or isinstance(value, int))
    }
    if config.get("do_sample") is False:
        found["temperature"] = 0.0
    return SamplingDefaults(**found)


def recommended_output_tokens(config: Mapping[str, Any]) -> int | None:
    """The bound for an answer that has none."""
    bound = config.get("max_new_tokens")
    return bound if isinstance(bound, int) and bound > 0 else None
