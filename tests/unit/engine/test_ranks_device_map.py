"""Device maps as accelerate finds them for GPUs that are only said to be there."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpt_oss_server.engine.attention.interface import LayerKv
from gpt_oss_server.engine.loader import read_config
from gpt_oss_server.engine.ranks.auto import held_by_device
from gpt_oss_server.engine.ranks.device_map import DeviceMap, device_map, offload_warning
from gpt_oss_server.engine.ranks.skeleton import skeleton
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.errors import StartupError
from gpt_oss_server.memory.kv import PoolGroup, PoolPlan
from tiny_models import CONFIGS

GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs with 2 GiB free each, as far as anyone asks."""
    some_gpus(monkeypatch, 2)


def some_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 << 30, 2 << 30))


@pytest.fixture
def blank(tmp_path: Path) -> Any:
    """A llama of four equal layers, without weights."""
    config = {"model_type": "llama", **CONFIGS["llama"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return skeleton(tmp_path, read_config(tmp_path), torch.float32)


def found(blank: Any, device: torch.device = GPU, **settings: Any) -> DeviceMap:
    spec = EngineSpec(folder="unused", gpu_mode="auto", **{"gpus": 2, **settings})
    return device_map(spec, blank, torch.float32, device)


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


@pytest.mark.parametrize(
    ("first", "gpus", "in_use"),
    [(0, 4, {0, 1, 2, 3}), (0, 2, {0, 1}), (1, 2, {1, 2}), (2, 4, {2, 3})],
)
def test_only_the_gpus_that_are_to_be_used(
    blank: Any, monkeypatch: pytest.MonkeyPatch, first: int, gpus: int, in_use: set[int]
) -> None:
    """As many as the user says, from the first one on, though the machine has four."""
    some_gpus(monkeypatch, 4)
    limits = {str(gpu): str(layer_bytes(blank) + 256 * 64 * 4) for gpu in in_use}
    mapped = found(blank, torch.device("cuda", first), gpus=gpus, max_memory=limits, offload="cpu")
    assert set(mapped.modules.values()) - {"cpu"} == in_use
    assert mapped.main == torch.device("cuda", first)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("device", "settings", "line"),
    [
        (
            GPU,
            {"device_map": {"": "0"}, "max_memory": {"0": "1GiB"}},
            "--max-memory is for a device map that is computed: --device-map says already",
        ),
        (
            GPU,
            {"device_map": {"": "0"}, "offload": "cpu"},
            "--offload is for a device map that is computed: --device-map says already",
        ),
        (CPU, {"offload": "cpu"}, "--offload cpu is for models on GPUs"),
        (
            GPU,
            {"gpus": 1, "max_memory": {"1": "1GiB"}},
            "--max-memory: no device '1' is in use, only 0, cpu",
        ),
        (
            CPU,
            {"max_memory": {"0": "1GiB"}},
            "--max-memory: no device '0' is in use, only cpu",
        ),
    ],
)
def test_settings_that_contradict_each_other(
    blank: Any, device: torch.device, settings: dict[str, Any], line: str
) -> None:
    """One line; nothing that the user gave is passed over."""
    with pytest.raises(StartupError) as caught:
        found(blank, device, **settings)
    assert str(caught.value).startswith(line)


def test_a_limit_on_the_host_is_kept(blank: Any) -> None:
    """A model that is larger is not loaded all the same, and one that is not is in one piece."""
    with pytest.raises(StartupError, match=r"does not fit .* or --offload disk"):
        found(blank, CPU, max_memory={"cpu": str(layer_bytes(blank))})
    assert found(blank, CPU, max_memory={"cpu": "1GiB"}).single == CPU


def a_tensor(device: str, size: int) -> Any:
    """As much of a tensor as is asked about."""
    return SimpleNamespace(
        device=torch.device(device),
        data_ptr=lambda: size,
        numel=lambda: size,
        element_size=lambda: 4,
    )


def test_every_byte_is_on_a_device_that_is_named() -> None:
    """Also where a GPU has weights and no layer, and what is offloaded to the host; what is on
    disk is in nobody's memory."""
    tensors = {"model.embed_tokens.weight": "0", "model.layers.0.w": "0", "lm_head.weight": "1"}
    sizes = {"model.layers.1.w": 4000, "model.layers.2.w": 50, **dict.fromkeys(tensors, 4)}
    places = {name: int(gpu) for name, gpu in tensors.items()}
    mapped = DeviceMap({**places, "model.layers.1": "cpu", "model.layers.2": "disk"}, GPU, sizes)
    model = SimpleNamespace(
        parameters=lambda: [
            *(a_tensor(f"cuda:{gpu}", 100 + n) for n, gpu in enumerate(tensors.values())),
            a_tensor("meta", 1000),
        ],
        buffers=lambda: [a_tensor("cuda:0", 7)],
    )
    devices = [GPU] * 3
    layers = [
        LayerKv(0, None, a_tensor("cuda:0", 20 + n), a_tensor("cuda:0", 30 + n)) for n in range(3)
    ]
    plan = PoolPlan((PoolGroup("full", None, (0, 1, 2), 5, 66),), 80)
    first, second, host = held_by_device(model, mapped, layers, devices, plan)
    assert [(r.rank, r.device, r.layers, r.weights_bytes) for r in (first, second, host)] == [
        (0, "cuda:0", 3, 4 * (100 + 101 + 7)),
        (1, "cuda:1", 0, 4 * 102),
        (2, "cpu", 0, 4000),
    ]
    assert first.kv_bytes == 4 * (20 + 21 + 22 + 30 + 31 + 32)
    assert [r.block_bytes for r in (first, second, host)] == [(66,), (0,), (0,)]
    assert (second.kv_bytes, host.kv_bytes) == (0, 0)


@pytest.mark.usefixtures("two_gpus")
def test_one_device_is_single_mode(blank: Any) -> None:
    """A map of one device needs none of this."""
    assert found(blank, device_map={"": "1"}).single == torch.device("cuda", 1)
    assert found(blank, device_map={"": "cpu"}).single == torch.device("cpu")
    spec = EngineSpec(folder="unused", gpu_mode="auto")
    on_cpu = device_map(spec, blank, torch.float32, torch.device("cpu"))
    assert on_cpu.single == torch.device("cpu")
