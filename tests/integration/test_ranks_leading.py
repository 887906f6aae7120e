"""The leading rank's own side of a start, without processes: a crew of nobody else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from engine_runs import cpu_core, job, run
from gpt_oss_server.engine import single
from gpt_oss_server.engine.core import EngineCore
from gpt_oss_server.engine.nucleus import SortedNucleus
from gpt_oss_server.engine.ranks import leading
from gpt_oss_server.engine.ranks.liveness import Activity
from gpt_oss_server.engine.ranks.place import Place
from gpt_oss_server.engine.spec import EngineSpec
from rank_engine import spec_for
from tiny_models import build, saved

pytestmark = pytest.mark.usefixtures("one_thread")


class Alone:
    """A crew whose leader is all of it."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.place = Place()
        self.activity = Activity()
        self.pids = {0: os.getpid()}

    def tell(self, message: object) -> None:
        """There is nobody."""

    def allocate(self, pools: object) -> None:
        """Likewise."""

    def hear(self, kind: type[Any]) -> dict[int, Any]:
        return {}


def test_it_samples_as_its_device_does_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the search for top_p on a GPU, as it does when it measures its largest steps; and says
    what one process says."""
    folder = saved(build("llama", num_hidden_layers=2), tmp_path)
    chosen: list[torch.device] = []
    nucleus = SortedNucleus()

    def make(device: torch.device) -> SortedNucleus:
        chosen.append(device)
        return nucleus

    monkeypatch.setattr(single, "make_nucleus", make)
    spec = spec_for(folder, gpu_mode="tensor", gpus=1)
    crew: Any = Alone(spec)
    core = EngineCore(spec, outfit=leading.equip(crew, lambda _: None))
    assert core._runner.sampler._nucleus is nucleus
    assert chosen == [torch.device("cpu")]
    jobs = {key: job([7, 3, key], temperature=1.0, seed=key, top_p=0.8) for key in range(3)}
    expected = run(cpu_core(folder), jobs)
    assert {k: r.tokens for k, r in run(core, jobs).items()} == {
        k: r.tokens for k, r in expected.items()
    }
