"""From the name of a model to its configuration, without its weights and if possible offline.

Knows: the packaged configurations, model folders, the Hugging Face cache, how to ask the hub for
one small file. Does not know: what the configuration says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gpt_oss_server.doctor.published import PUBLISHED
from gpt_oss_server.errors import StartupError
from gpt_oss_server.hub import identify, resolve_model

Source = Literal["built in", "packaged", "folder", "cache", "hub"]

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_CONFIG = "config.json"
_ANSWER_S = 10.0
_YES = {"1", "true", "yes", "on"}


@dataclass(frozen=True)
class ModelFacts:
    """A model as its files describe it. `source` is where the configuration came from.

    `checkpoint_bytes` is the size that the checkpoint's index states, None where there is none.
    `weights_here` says whether all weight files are on this machine.
    """

    model_id: str
    config: Mapping[str, Any]
    source: Source
    checkpoint_bytes: int | None = None
    weights_here: bool = False

    @property
    def short_name(self) -> str:
        return self.model_id.rpartition("/")[2]

    @property
    def on_hub(self) -> bool:
        return self.source in ("packaged", "cache", "hub")


def is_offline(environ: Mapping[str, str]) -> bool:
    """Whether the environment forbids asking the hub."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(environ.get(name, "").lower() in _YES for name in names)


def model_facts(name: str, environ: Mapping[str, str]) -> ModelFacts:
    """The configuration of the model that an operator named.

    gpt-oss is packaged; any other hub id is looked for in the cache, and only then on the hub,
    unless that is forbidden. Raises StartupError: one line that says what is missing.
    """
    identity = identify(name)
    if identity.builtin:
        return _from_folder(
            resolve_model(name, weights=False).folder, identity.model_id, "built in"
        )
    if identity.alias is None:
        folder = Path(name).expanduser()
        if folder.is_dir():
            return _from_folder(folder, identity.model_id, "folder")
        if name.startswith(("/", ".", "~")):
            raise StartupError(f"model folder {folder} does not exist")
    snapshot = _cached_folder(identity.model_id)
    if identity.model_id in PUBLISHED:
        return ModelFacts(
            identity.model_id,
            PUBLISHED[identity.model_id],
            "packaged",
            weights_here=snapshot is not None and _weights_in(snapshot)[1],
        )
    if snapshot is not None:
        return _from_folder(snapshot, identity.model_id, "cache")
    return ModelFacts(identity.model_id, _download(identity.model_id, environ), "hub")


def _from_folder(folder: Path, model_id: str, source: Source) -> ModelFacts:
    config = read_object(folder / _CONFIG)
    size, complete = _weights_in(folder)
    return ModelFacts(model_id, config, source, size, complete or source == "built in")


def checkpoint_size(folder: Path) -> int | None:
    """Bytes that the checkpoint's index states; None where there is no index. Raises StartupError
    for one that cannot be read."""
    return _weights_in(folder)[0]


def _weights_in(folder: Path) -> tuple[int | None, bool]:
    """The checkpoint's size as its index states it, and whether all its files are there."""
    index = folder / _INDEX
    if not index.is_file():
        return None, (folder / _SINGLE).is_file()
    content = read_object(index)
    metadata, shards = content.get("metadata"), content.get("weight_map")
    size = metadata.get("total_size") if isinstance(metadata, dict) else None
    files = set(shards.values()) if isinstance(shards, dict) else set()
    complete = bool(files) and all((folder / str(file)).is_file() for file in files)
    return (int(size) if isinstance(size, int | float) and size > 0 else None), complete


def _cached_folder(model_id: str) -> Path | None:
    """The snapshot in the Hugging Face cache, if its configuration is there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model_id, _CONFIG)
    return Path(found).parent if isinstance(found, str) else None


def _download(model_id: str, environ: Mapping[str, str]) -> dict[str, Any]:
    if is_offline(environ):
        raise StartupError(
            f"model {model_id} is not in the local cache and HF_HUB_OFFLINE forbids asking the "
            "hub: unset it, or give a local folder"
        )
    from huggingface_hub import hf_hub_download

    try:
        return read_object(Path(hf_hub_download(model_id, _CONFIG, etag_timeout=_ANSWER_S)))
    except StartupError:
        raise
    except Exception as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise StartupError(
            f"the configuration of model {model_id} is not in the local cache and cannot be "
            f"fetched ({line}): check the name and the network, or give a local folder"
        ) from error


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises StartupError naming the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StartupError(f"{path.parent} is not a model folder: it has no {path.name}") from None
    except (OSError, ValueError):
        raise StartupError(f"{path} cannot be read as JSON") from None
    if not isinstance(content, dict):
        raise StartupError(f"{path} is not a JSON object")
    return content
