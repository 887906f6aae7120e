"""From a model's name to its configuration: packaged, folder, cache, and never the network here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpt_oss_server.doctor.models import is_offline, model_facts
from gpt_oss_server.doctor.published import PUBLISHED
from gpt_oss_server.errors import StartupError

OFFLINE = {"HF_HUB_OFFLINE": "1"}


def fill(folder: Path, files: dict[str, Any]) -> Path:
    """A folder with these files; dicts as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text)
    return folder


def cached(tmp_path: Path, model_id: str, files: dict[str, Any]) -> None:
    """A snapshot in the Hugging Face cache of this test."""
    repo = tmp_path / "hub" / f"models--{model_id.replace('/', '--')}"
    fill(repo / "snapshots" / "abc", files)
    fill(repo / "refs", {"main": "abc"})


@pytest.mark.parametrize(
    ("name", "short_name", "layers"),
    [
        ("20b", "gpt-oss-20b", 24),
        ("openai/gpt-oss-20b", "gpt-oss-20b", 24),
        ("120b", "gpt-oss-120b", 36),
    ],
)
def test_gpt_oss_is_packaged(name: str, short_name: str, layers: int) -> None:
    """By alias or id, without a network and without a cache."""
    facts = model_facts(name, OFFLINE)
    assert facts.config is PUBLISHED[facts.model_id]
    assert (facts.short_name, facts.config["num_hidden_layers"]) == (short_name, layers)
    assert (facts.source, facts.weights_here, facts.on_hub) == ("packaged", False, True)


def test_the_built_in_model() -> None:
    """tiny needs no download and has its own configuration."""
    facts = model_facts("tiny", OFFLINE)
    assert (facts.model_id, facts.source, facts.on_hub) == ("tiny", "built in", False)
    assert facts.weights_here
    assert facts.config["num_hidden_layers"] == 6


def test_a_folder(tmp_path: Path) -> None:
    """Its config.json, and the size that its index states."""
    index = {"metadata": {"total_size": 123}, "weight_map": {"a": "one.safetensors"}}
    files = {"config.json": {"model_type": "x"}, "model.safetensors.index.json": index}
    folder = fill(tmp_path / "mine", files)
    facts = model_facts(str(folder), OFFLINE)
    assert (facts.model_id, facts.config, facts.source) == ("mine", {"model_type": "x"}, "folder")
    assert (facts.checkpoint_bytes, facts.weights_here) == (123, False)
    fill(folder, {"one.safetensors": ""})
    assert model_facts(str(folder), OFFLINE).weights_here


def test_the_cache(tmp_path: Path) -> None:
    """A cached model needs no network; gpt-oss's weights are looked for there too."""
    cached(tmp_path, "org/model", {"config.json": {"a": 1}, "model.safetensors": ""})
    facts = model_facts("org/model", OFFLINE)
    assert (facts.config, facts.source, facts.weights_here) == ({"a": 1}, "cache", True)
    cached(tmp_path, "openai/gpt-oss-20b", {"config.json": {}, "model.safetensors": ""})
    facts = model_facts("20b", OFFLINE)
    assert (facts.source, facts.weights_here) == ("packaged", True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("org/model", "is not in the local cache and HF_HUB_OFFLINE forbids asking the hub"),
        ("/nowhere", "model folder /nowhere does not exist"),
        ("a b", "neither a folder here nor a Hugging Face id"),
    ],
)
def test_models_that_are_not_there(name: str, message: str) -> None:
    """One line that says what is missing."""
    with pytest.raises(StartupError, match=message):
        model_facts(name, OFFLINE)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "it has no config.json"),
        ({"config.json": "{"}, "cannot be read as JSON"),
        ({"config.json": "[]"}, "is not a JSON object"),
        ({"config.json": {}, "model.safetensors.index.json": "no"}, "cannot be read as JSON"),
    ],
)
def test_damaged_folders(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    """The file at fault is named."""
    with pytest.raises(StartupError, match=message):
        model_facts(str(fill(tmp_path / "bad", files)), OFFLINE)


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where asking is allowed and fails, the reason is in the line."""

    def fail(*arguments: object, **options: object) -> str:
        raise OSError("no route\nand more")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(StartupError, match=r"org/model is not .* cannot be fetched \(no route\)"):
        model_facts("org/model", {})


@pytest.mark.parametrize(
    ("environ", "offline"),
    [
        ({}, False),
        ({"HF_HUB_OFFLINE": "1"}, True),
        ({"HF_HUB_OFFLINE": "0"}, False),
        ({"TRANSFORMERS_OFFLINE": "TRUE"}, True),
    ],
)
def test_offline(environ: dict[str, str], offline: bool) -> None:
    """Either variable, with the values that Hugging Face takes."""
    assert is_offline(environ) is offline
