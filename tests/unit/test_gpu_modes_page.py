"""The examples of docs/gpu-modes.md are understood."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch

from gpt_oss_server.app import memory_limits, read_device_map
from gpt_oss_server.config import load
from gpt_oss_server.engine.ranks.device_map import DeviceMap, flat
from tiny_models import build

PAGE = (Path(__file__).parents[2] / "docs" / "gpu-modes.md").read_text()


def test_the_examples_are_settings(tmp_path: Path) -> None:
    """Every `serve` line with `--gpu-mode` is understood."""
    lines = re.findall(r"^    .*gpt-oss-server serve (.*--gpu-mode.*?)(?: *#.*)?$", PAGE, re.M)
    assert len(lines) >= 8
    for line in lines:
        words = line.split()
        flags = {
            words[i].removeprefix("--").replace("-", "_"): words[i + 1]
            for i in range(0, len(words), 2)
        }
        if "device_map" in flags:
            flags["device_map"] = str(tmp_path / "map.json")
            (tmp_path / "map.json").write_text(example_map())
        settings = load(flags, {})
        assert settings.gpu_mode == flags["gpu_mode"]
        limits = memory_limits(settings.max_memory) or {}
        assert list(limits) == re.findall(r"(\w+)=", flags.get("max_memory", ""))
        assert (read_device_map(settings.device_map) is None) == ("device_map" not in flags)


def example_map() -> str:
    (found,) = re.findall(r'^    (\{"model\..*?\})$', PAGE, re.M | re.S)
    return str(found)


def test_the_example_of_a_map_places_every_tensor() -> None:
    """With the longer name before the shorter one."""
    given = json.loads(example_map())
    model = build("gpt_oss", num_hidden_layers=24)
    found = DeviceMap(given, torch.device("cuda", 0), {})
    places = {name: found.place(name) for name, _ in model.named_parameters()}
    assert {place for name, place in places.items() if name.startswith("model.layers.23.")} == {1}
    assert {place for name, place in places.items() if name.startswith("model.layers.22.")} == {0}
    entries = flat(found, model)
    assert (entries["model.layers.22"], entries["model.layers.23"]) == (0, 1)
    assert not [one for one in entries for other in entries if one.startswith(f"{other}.")]
