"""What a model's generation config gives to requests that leave parameters open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpt_oss_server.api.sampling import OPENAI_DEFAULTS, SamplingDefaults
from gpt_oss_server.model_defaults import (
    generation_config,
    recommended_output_tokens,
    recommended_sampling,
)


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({}, OPENAI_DEFAULTS),
        ({"do_sample": True, "eos_token_id": 3}, OPENAI_DEFAULTS),
        (
            {
                "temperature": 0.6,
                "top_p": 0.95,
                "top_k": 20,
                "min_p": 0,
                "repetition_penalty": 1.05,
            },
            SamplingDefaults(0.6, 0.95, 20, 0, 1.05),
        ),
        ({"do_sample": False, "temperature": 0.6}, SamplingDefaults(temperature=0.0)),
        ({"temperature": "hot", "top_p": True, "top_k": 1.5, "min_p": None}, OPENAI_DEFAULTS),
        ({"temperature": 9.0, "top_p": -1, "repetition_penalty": 0}, OPENAI_DEFAULTS),
    ],
    ids=["nothing", "nothing of use", "all", "greedy", "other types", "out of range"],
)
def test_recommended_sampling(config: dict[str, Any], wanted: SamplingDefaults) -> None:
    """Each value that is one is taken, greedy is greedy, and all else leaves OpenAI's own."""
    assert recommended_sampling(config) == wanted


@pytest.mark.parametrize(("bound", "wanted"), [(512, 512), (0, None), ("512", None), (None, None)])
def test_recommended_output_tokens(bound: object, wanted: int | None) -> None:
    """A positive number of tokens, or none."""
    assert recommended_output_tokens({"max_new_tokens": bound}) == wanted


@pytest.mark.parametrize("content", [None, "", "[1]", "{", json.dumps({"top_p": 0.5})])
def test_a_folder_without_a_usable_file_recommends_nothing(
    tmp_path: Path, content: str | None
) -> None:
    """A missing or broken file is no obstacle; a good one is read."""
    if content is not None:
        (tmp_path / "generation_config.json").write_text(content)
    wanted = {"top_p": 0.5} if content and "top_p" in content else {}
    assert generation_config(tmp_path) == wanted
