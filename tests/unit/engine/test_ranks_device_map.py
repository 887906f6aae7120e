"""Device maps as accelerate finds them for GPUs that are only said to be there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt_oss_server.engine.loader import read_config
from gpt_oss_server.engine.ranks.device_map import DeviceMap, device_map, offload_warning
from gpt_oss_server.engine.ranks.skeleton import skeleton
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.errors import StartupError
from tiny_models import CONFIGS

GPU = torch.device("cuda", 0)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs with 2 GiB free each, as far as anyone asks."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 << 30, 2 << 30))


@pytest.fixture
def blank(tmp_path: Path) -> Any:
    """A llama of four equal layers, without weights."""
    config = {"model_type": "llama", **CONFIGS["llama"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return skeleton(tmp_path, read_config(tmp_path), torch.float32)


def found(blank: Any, **settings: Any) -> DeviceMap:
    spec = EngineSpec(folder="unused", gpu_mode="auto", **settings)
    return device_map(spec, blank, torch.float32, GPU)


def layer_bytes(blank: Any) -> int:
    return sum(p.numel() * p.element_size() for p in blank.model.layers[0].parameters())


@pytest.mark.usefixtures("two_gpus")
def test_layers_are_whole_and_in_order(blank: Any) -> None:
    """A limit that holds two layers and the embedding on the first GPU puts the rest on the
    second."""
    limit = int(2.5 * layer_bytes(blank)) + 256 * 64 * 4
    mapped = found(blank, max_memory={"0": str(limit)})
    places = [mapped.place(f"model.layers.{i}.mlp.up_proj.weight") for i in range(4)]
    assert places == sorted(places)
    assert set(places) == {0, 1}
    assert mapped.main == GPU
    assert mapped.single is None
    assert offload_warning(mapped) is None


@pytest.mark.usefixtures("two_gpus")
def test_what_does_not_fit_is_refused(blank: Any) -> None:
    """Nothing goes to the host unless that was asked for; then it costs what it says."""
    limits = {str(gpu): str(int(1.5 * layer_bytes(blank)) + 256 * 64 * 4) for gpu in range(2)}
    with pytest.raises(StartupError, match=r"does not fit .* or --offload cpu"):
        found(blank, max_memory=limits)
    mapped = found(blank, max_memory=limits, offload="cpu")
    names = [name for name in mapped.tensors if mapped.offloaded(name)]
    assert names
    warning = offload_warning(mapped)
    assert warning is not None
    assert "offloaded to cpu and cross to cuda:0 in every step" in warning


@pytest.mark.usefixtures("two_gpus")
def test_a_users_map_is_never_changed(blank: Any) -> None:
    """Odd as it may be; what it names the host for is asked for."""
    given = {"model": "1", "lm_head": "cuda:0", "model.layers.2": "cpu"}
    mapped = found(blank, device_map=given)
    assert dict(mapped.modules) == {"model": 1, "lm_head": 0, "model.layers.2": "cpu"}
    assert mapped.main == torch.device("cuda", 1)
    assert mapped.offloaded("model.layers.2.mlp.up_proj.weight")
    assert not mapped.offloaded("model.layers.3.mlp.up_proj.weight")
    assert offload_warning(mapped) is not None
    with pytest.raises(StartupError, match="GPU 2 is not there"):
        found(blank, device_map={"": "2"})


@pytest.mark.usefixtures("two_gpus")
def test_one_device_is_single_mode(blank: Any) -> None:
    """A map of one device needs none of this."""
    assert found(blank, device_map={"": "1"}).single == torch.device("cuda", 1)
    assert found(blank, device_map={"": "cpu"}).single == torch.device("cpu")
    spec = EngineSpec(folder="unused", gpu_mode="auto")
    on_cpu = device_map(spec, blank, torch.float32, torch.device("cpu"))
    assert on_cpu.single == torch.device("cpu")
