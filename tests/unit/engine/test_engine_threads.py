"""How many cores each of a model's processes takes."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.engine.threads import set_threads


@pytest.mark.parametrize(
    ("cores", "settings", "threads"),
    [
        (8, {}, 7),
        (1, {}, 1),
        (8, {"threads": 3}, 3),
        (8, {"gpu_mode": "tensor", "gpus": 2}, 4),
        (8, {"gpu_mode": "pipeline", "gpus": 3}, 2),
        (2, {"gpu_mode": "tensor", "gpus": 4}, 1),
        (8, {"gpu_mode": "tensor", "gpus": 2, "threads": 1}, 1),
        (8, {"gpu_mode": "auto", "gpus": 2}, 7),
    ],
)
def test_cores_are_shared(
    monkeypatch: pytest.MonkeyPatch, cores: int, settings: dict[str, Any], threads: int
) -> None:
    """One is left to the front; ranks have as many each, and one at least."""
    taken: list[int] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    set_threads(EngineSpec(folder="unused", **settings))
    assert taken == [threads]
