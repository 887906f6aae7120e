"""Settings out of their sources, parsed once into a frozen `Settings`.

Knows: the sources, their order of precedence (flag, then environment, then YAML file, then
default) and how to say which setting is wrong and where it came from. Does not know: any setting's
use; the table of them is in `config_table`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from gpt_oss_server.config_table import ENV_PREFIX, GROUPS, TABLE, Row, Settings
from gpt_oss_server.errors import ConfigError

__all__ = ["CONFIG_ENV", "ENV_PREFIX", "GROUPS", "TABLE", "Row", "Settings", "load"]

CONFIG_ENV = "GPT_OSS_CONFIG"
_BY_NAME = {row.name: row for row in TABLE}


def load(flags: Mapping[str, object], environ: Mapping[str, str]) -> Settings:
    """Settle every setting: flag over environment over file over default.

    Args:
        flags: raw values by setting name, only those given; may hold `config`, a file name.
        environ: the process environment; every `GPT_OSS_…` in it must be a setting.

    Raises:
        ConfigError: an unknown name or an impossible value; one line that names both the
            setting and its source.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    file = flags.get("config") or environ.get(CONFIG_ENV)
    file_values = _from_file(Path(str(file))) if file else {}
    env_values = _from_environ(environ)
    flag_values = {
        name: (f"flag {_BY_NAME[name].flag}", raw)
        for name, raw in flags.items()
        if name in _BY_NAME
    }
    for source in (file_values, env_values, flag_values):
        for name, (origin, raw) in source.items():
            values[name] = _parse(_BY_NAME[name], raw, origin)
            origins[name] = origin
    settings = Settings(**values)
    _check_together(settings, origins)
    return settings


def _parse(row: Row, raw: object, origin: str) -> object:
    if raw is None and row.default is None:
        return None
    if raw == "":
        raise ConfigError(f"{origin}: is empty; give a value or leave it out")
    try:
        return row.kind.parse(raw)
    except ValueError as error:
        raise ConfigError(f"{origin}: {error}") from None


def _from_environ(environ: Mapping[str, str]) -> dict[str, tuple[str, object]]:
    by_env = {row.env: row.name for row in TABLE}
    found: dict[str, tuple[str, object]] = {}
    for name in sorted(environ):
        if not name.startswith(ENV_PREFIX) or name == CONFIG_ENV:
            continue
        if name not in by_env:
            raise ConfigError(f"environment {name}: unknown setting{_suggest(name, by_env)}")
        found[by_env[name]] = (f"environment {name}", environ[name])
    return found


def _from_file(path: Path) -> dict[str, tuple[str, object]]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"file {path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"file {path}: is not valid YAML{where}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"file {path}: must be a mapping of settings to values")
    for key in content:
        if key not in _BY_NAME:
            raise ConfigError(f"file {path}: unknown setting {key!r}{_suggest(str(key), _BY_NAME)}")
    return {key: (f"file {path}: {key}", raw) for key, raw in content.items()}


def _check_together(settings: Settings, origins: Mapping[str, str]) -> None:
    """Refuse settings that are each possible and together not."""
    if settings.max_batch_tokens is not None and settings.max_batch_tokens < settings.max_num_seqs:
        raise ConfigError(
            f"{origins['max_batch_tokens']}: {settings.max_batch_tokens} is less than "
            f"max_num_seqs ({settings.max_num_seqs}): each running sequence needs a token per step"
        )
    _check_gpus(settings, origins)
    priorities, keys = settings.key_priorities, len(settings.api_key)
    if priorities is not None and len(priorities.split(",")) != keys:
        raise ConfigError(
            f"{origins['key_priorities']}: {len(priorities.split(','))} priorities for "
            f"{keys} API keys; give one for each"
        )
    limit, default = settings.max_model_len, settings.default_max_tokens
    if limit is not None and default is not None and default >= limit:
        raise ConfigError(
            f"{origins['default_max_tokens']}: must be below max_model_len ({limit}), got {default}"
        )


def _check_gpus(settings: Settings, origins: Mapping[str, str]) -> None:
    mode, gpus = settings.gpu_mode, settings.gpus
    if gpus is not None and mode == "single" and gpus > 1:
        raise ConfigError(
            f"{origins['gpus']}: {gpus} GPUs need gpu_mode auto, tensor or pipeline, not single"
        )
    if gpus is not None and mode in ("tensor", "pipeline") and gpus < 2:
        raise ConfigError(f"{origins['gpus']}: gpu_mode {mode} needs at least 2, got {gpus}")
    if settings.device == "cpu" and mode in ("tensor", "pipeline") and gpus is None:
        raise ConfigError(
            f"{origins['device']}: gpu_mode {mode} on a CPU needs gpus: over how many processes"
        )
    if settings.micro_batches is not None and mode != "pipeline":
        raise ConfigError(
            f"{origins['micro_batches']}: only gpu_mode pipeline has micro-batches, not {mode}"
        )
    for name in ("max_memory", "device_map", "offload"):
        if name in origins and mode != "auto":
            raise ConfigError(f"{origins[name]}: is for gpu_mode auto, not {mode}")


def _suggest(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
