"""From the name of a model to a folder with its files.

Knows: the aliases, the packaged `tiny`, what a usable model folder holds, and how to fetch one
from the Hugging Face hub. Does not know: how a model is loaded or served.

`huggingface_hub` is imported only when a hub model is asked for.
"""

from __future__ import annotations

import importlib.resources
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gpt_oss_server.errors import StartupError

if TYPE_CHECKING:
    from types import ModuleType

ALIASES = {"20b": "openai/gpt-oss-20b", "120b": "openai/gpt-oss-120b"}
BUILTIN = "tiny"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
_NEVER = ("original/*", "metal/*", "*.gguf", "*.onnx", "*.h5", "*.msgpack", "*.ot")
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
_ANSWER_S = 10.0


@dataclass(frozen=True)
class ModelName:
    """What a model is called, known before any of its files is.

    `model_id` is the full id (`openai/gpt-oss-20b`; a folder's name for a local folder),
    `short_name` its last part, which metrics use. `alias` is what the operator typed, where that
    is a name of its own (`20b`). A `builtin` model is packaged and may come without weights.
    """

    model_id: str
    short_name: str
    builtin: bool = False
    alias: str | None = None

    def names(self, served_model_name: str | None = None) -> tuple[str, ...]:
        """All names by which requests may ask for this model, the preferred one first."""
        candidates = (served_model_name, self.short_name, self.model_id, self.alias)
        return tuple(dict.fromkeys(name for name in candidates if name))


@dataclass(frozen=True, kw_only=True)
class ResolvedModel(ModelName):
    """A model whose files are all on this machine, in `folder`."""

    folder: Path


def identify(name: str) -> ModelName:
    """What the model that an operator named is called; reads no file of it.

    A folder that exists wins over a hub id of the same spelling; a name that starts like a path
    (`/`, `.`, `~`) is never looked up on the hub.

    Raises:
        StartupError: the name can be neither.
    """
    if name == BUILTIN:
        return ModelName(BUILTIN, BUILTIN, builtin=True)
    if name in ALIASES:
        return ModelName(ALIASES[name], ALIASES[name].rpartition("/")[2], alias=name)
    folder = _local_folder(name)
    if folder is not None:
        return ModelName(folder.name, folder.name)
    if not _HUB_ID.fullmatch(name) or "--" in name or ".." in name:
        raise StartupError(
            f"model {name!r} is neither a folder here nor a Hugging Face id: use tiny, 20b, 120b, "
            "an id such as openai/gpt-oss-20b or the path of a folder"
        )
    return ModelName(name, name.rpartition("/")[2])


def check_local(name: str, *, weights: bool = True) -> None:
    """Refuse a folder that cannot be a model, where the name is one; as `resolve_model` would, but
    quick enough to be asked before anything is started. Raises StartupError."""
    identity = identify(name)
    if not identity.builtin and not identity.alias:
        folder = _local_folder(name)
        if folder is not None:
            _check_folder(folder, weights)


def resolve_model(name: str, *, weights: bool = True) -> ResolvedModel:
    """Find, or fetch, the files of the model that an operator named; may take long.

    Args:
        name: `tiny`, `20b`, `120b`, a hub id or a folder.
        weights: whether the weights are needed; without, only configuration and tokenizer are.

    Raises:
        StartupError: one line that says what is missing and what to do.
    """
    identity = identify(name)
    if identity.builtin:
        folder = _packaged_folder()
    else:
        local = None if identity.alias else _local_folder(name)
        folder = local or _fetch(identity.model_id, weights)
        _check_folder(folder, weights)
    return ResolvedModel(
        identity.model_id, identity.short_name, identity.builtin, identity.alias, folder=folder
    )


def _local_folder(name: str) -> Path | None:
    folder = Path(name).expanduser()
    return folder.resolve() if folder.is_dir() or name.startswith(("/", ".", "~")) else None


def _packaged_folder() -> Path:
    folder = Path(str(importlib.resources.files("gpt_oss_server"))) / "models" / BUILTIN
    if not all((folder / file).is_file() for file in ("config.json", "model.safetensors")):
        raise StartupError(
            f"the built-in model is missing from this installation ({folder}): install again"
        )
    return folder


def _check_folder(folder: Path, weights: bool) -> None:
    """Refuse a folder that cannot be a model before any process is started for it."""
    if not folder.is_dir():
        raise StartupError(f"model folder {folder} does not exist")
    _read_object(folder / "config.json", f"{folder} is not a model folder")
    if not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        raise StartupError(f"{folder} has no tokenizer: it must hold tokenizer.json")
    if weights:
        _check_weights(folder)


def _check_weights(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = _read_object(index, f"{folder} is damaged").get("weight_map")
        names = set(shards.values()) if isinstance(shards, dict) else set()
        missing = sorted(str(name) for name in names if not (folder / str(name)).is_file())
        if missing:
            raise StartupError(
                f"{folder} is incomplete: {missing[0]} and {len(missing) - 1} more weight files "
                "are missing; download the model again"
                if len(missing) > 1
                else f"{folder} is incomplete: weight file {missing[0]} is missing; "
                "download the model again"
            )
    elif not any(next(folder.glob(pattern), None) for pattern in _WEIGHTS):
        raise StartupError(
            f"{folder} has no weights (*.safetensors): download them, or choose "
            "--load-format random to try the server with random ones"
        )


def _read_object(path: Path, complaint: str) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StartupError(f"{complaint}: it has no {path.name}") from None
    except OSError as error:
        raise StartupError(f"{complaint}: cannot read {path.name}: {error.strerror}") from None
    except ValueError:
        raise StartupError(f"{complaint}: {path.name} is not valid JSON") from None
    if not isinstance(content, dict):
        raise StartupError(f"{complaint}: {path.name} is not a JSON object")
    return content


def _fetch(model_id: str, weights: bool) -> Path:
    """The folder of a hub model, downloaded where needed; works offline once it is cached."""
    import huggingface_hub
    from huggingface_hub import errors
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    download = huggingface_hub.snapshot_download
    try:
        info = huggingface_hub.HfApi().model_info(model_id, timeout=_ANSWER_S)
    except Exception as error:  # noqa: BLE001 - whatever it is, what is cached will do
        folder = _cached(model_id, weights, download)
        if folder is not None:
            return folder
        answered = isinstance(error, errors.HfHubHTTPError)
        explanation = _explain(model_id, error, errors) if answered else _unreachable(model_id)
        raise StartupError(explanation) from None
    files = [sibling.rfilename for sibling in info.siblings or ()]
    try:
        return Path(download(model_id, ignore_patterns=_unwanted(files, weights)))
    except Exception as error:  # noqa: BLE001 - whatever it raises, the operator gets one line
        raise StartupError(_explain(model_id, error, errors)) from None


def _cached(model_id: str, weights: bool, download: Callable[..., str]) -> Path | None:
    # As if the repository had safetensors: what lies in the folder is looked at afterwards.
    unwanted = _unwanted(["model.safetensors"], weights)
    try:
        return Path(download(model_id, local_files_only=True, ignore_patterns=unwanted))
    except Exception:  # noqa: BLE001 - several classes over the releases mean "not in the cache"
        return None


def _unwanted(files: Sequence[str], weights: bool) -> list[str]:
    """Patterns of files not to fetch: other formats of the same weights, or all weights."""
    if not weights:
        return [*_NEVER, *_WEIGHTS]
    if any(file.endswith(".safetensors") and "/" not in file for file in files):
        return [*_NEVER, *(pattern for pattern in _WEIGHTS if pattern != "*.safetensors")]
    return list(_NEVER)


def _unreachable(model_id: str) -> str:
    return (
        f"model {model_id} is not complete in the local cache and the Hugging Face hub cannot be "
        "reached: check the network (HF_HUB_OFFLINE, proxy), or give --model a local folder"
    )


def _explain(model_id: str, error: Exception, errors: ModuleType) -> str:
    if isinstance(error, errors.GatedRepoError):
        return (
            f"model {model_id} is gated: accept its terms on its page of the hub and set HF_TOKEN"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"model {model_id} does not exist on the Hugging Face hub, or is private: check the "
            "spelling, or set HF_TOKEN"
        )
    if isinstance(error, OSError) and error.errno is not None:
        return f"model {model_id} could not be downloaded: {os.strerror(error.errno)}"
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"model {model_id} could not be downloaded: {first_line[:200]}"
