"""Every setting of the server, in one table, parsed once into a frozen `Settings`.

Knows: names, kinds, defaults and groups of the settings, the order of precedence (flag, then
environment, then YAML file, then default) and how to say which setting is wrong and where it came
from. Does not know: what a setting is used for, the model, the machine.

The fields of `Settings` *are* the table: flags, environment names, YAML keys, `--help` and
`docs/configuration.md` are all generated from them.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from gpt_oss_server.config_kinds import (
    Address,
    Choice,
    Integer,
    Kind,
    Number,
    Secret,
    Size,
    Switch,
    Text,
    format_size,
)
from gpt_oss_server.errors import ConfigError

ENV_PREFIX = "GPT_OSS_"
CONFIG_ENV = "GPT_OSS_CONFIG"

T = TypeVar("T")


def _setting(default: T, kind: Kind, group: str, help: str, *, auto: str = "") -> T:
    """A row of the table; `auto` says what `None` (or 0) means when that is the default."""
    row = {"kind": kind, "group": group, "help": help, "auto": auto}
    field: Any = dataclasses.field(default=default, metadata=row)
    return field  # type: ignore[no-any-return]


_GROUPS = (
    "Model",
    "Address and keys",
    "Limits",
    "Memory and batching",
    "Routing",
    "Admission",
    "GPUs",
    "Observability",
    "Operation",
)
_MODEL, _ADDRESS, _LIMITS, _MEMORY, _ROUTING, _ADMISSION, _GPUS, _OBSERVE, _OPERATION = _GROUPS


@dataclass(frozen=True)
class Settings:
    """What the operator asked for, validated. `None` means "choose for me"."""

    model: str = _setting(
        "tiny",
        Text(),
        _MODEL,
        "tiny (built in), 20b, 120b, a Hugging Face id or a local folder",
    )
    served_model_name: str | None = _setting(
        None, Text(), _MODEL, "extra name that requests may use for the model", auto="none"
    )
    dtype: str = _setting(
        "auto",
        Choice(("auto", "float32", "bfloat16", "float16")),
        _MODEL,
        "type of weights and KV cache; auto: bfloat16 on CUDA, float32 on CPU",
    )
    load_format: Literal["auto", "random"] = _setting(
        "auto",
        Choice(("auto", "random")),
        _MODEL,
        "auto: the checkpoint's weights; random: weights drawn from weights_seed",
    )
    weights_seed: int = _setting(0, Integer(0, 2**63 - 1), _MODEL, "seed of random weights")
    max_model_len: int | None = _setting(
        None, Integer(1), _MODEL, "longest prompt plus output, in tokens", auto="the model's own"
    )

    host: str = _setting("127.0.0.1", Text(), _ADDRESS, "address to listen on")
    port: int = _setting(8000, Integer(0, 65535), _ADDRESS, "port to listen on; 0: any free one")
    api_key: tuple[str, ...] = _setting(
        (),
        Secret(several=True),
        _ADDRESS,
        "key that /v1 requires; repeatable; prefer the environment, where `ps` does not show it",
        auto="none: /v1 is open",
    )
    admin_key: str | None = _setting(
        None,
        Secret(),
        _ADDRESS,
        "key that /admin requires; prefer the environment",
        auto="none: /admin answers loopback clients only",
    )

    max_body: int = _setting(8 * 2**20, Size(1024), _LIMITS, "largest request body")
    default_max_tokens: int | None = _setting(
        None,
        Integer(1),
        _LIMITS,
        "output tokens of a chat request that sets no bound",
        auto="what the context leaves",
    )
    max_queue: int = _setting(
        256, Integer(0), _LIMITS, "requests that may wait; one more is answered 429"
    )

    max_num_seqs: int = _setting(64, Integer(1, 4096), _MEMORY, "sequences that run at once")
    max_batch_tokens: int | None = _setting(
        None,
        Integer(1),
        _MEMORY,
        "tokens that one step may compute, prefill and decode together",
        auto="2048 on CUDA, 256 on CPU",
    )
    block_size: int = _setting(
        16, Integer(1, 128, power_of_two=True), _MEMORY, "tokens in one KV block"
    )
    kv_cache_memory: int | None = _setting(
        None, Size(), _MEMORY, "bytes of KV cache", auto="from the memory that is free"
    )
    gpu_memory_utilization: float = _setting(
        0.9,
        Number(0, 1, open_low=True),
        _MEMORY,
        "share of a GPU's memory that weights, activations and KV may take",
    )
    memory_budget: int | None = _setting(
        None,
        Size(),
        _MEMORY,
        "on CPU: bytes that weights and KV cache may take",
        auto="from the memory that is free",
    )
    prefix_caching: bool = _setting(
        True, Switch(), _MEMORY, "reuse the KV of prompt beginnings that were seen before"
    )
    prefill_order: Literal["fcfs", "shortest"] = _setting(
        "shortest",
        Choice(("fcfs", "shortest")),
        _MEMORY,
        "which waiting prefill goes first: first come, or the shortest rest with ageing",
    )
    prefill_oldest_share: float = _setting(
        0.25,
        Number(0, 1),
        _MEMORY,
        "with shortest: share of the prefill tokens that the oldest prefill always gets",
    )

    large_input_tokens: int = _setting(
        8000, Integer(0), _ROUTING, "more prompt tokens than this belong on several GPUs"
    )
    large_kv_mb: float = _setting(
        6000.0, Number(0), _ROUTING, "more predicted KV (in 2^20 bytes) belongs on several GPUs"
    )
    memory_pressure: float = _setting(
        0.85,
        Number(0, 1),
        _ROUTING,
        "above this effective pressure the two smaller thresholds below hold",
    )
    pressure_input_tokens: int = _setting(
        4000, Integer(0), _ROUTING, "under pressure: more prompt tokens belong on several GPUs"
    )
    pressure_kv_mb: float = _setting(
        3000.0, Number(0), _ROUTING, "under pressure: more predicted KV belongs on several GPUs"
    )
    min_gpu_util_percent: float = _setting(
        60.0, Number(0, 100), _ROUTING, "target: a GPU utilised less is reported in /stats"
    )
    max_p95_e2e_seconds: float = _setting(
        20.0,
        Number(0, open_low=True),
        _ROUTING,
        "target: a slower 95th percentile is reported in /stats",
    )
    stale_after_s: float = _setting(
        10.0,
        Number(0, open_low=True),
        _ROUTING,
        "a GPU reading older than this counts as unknown",
    )
    decision_log: str | None = _setting(
        None,
        Text(),
        _ROUTING,
        "file to which every decision is appended as JSON, for `replay`",
        auto="none",
    )

    admission_mode: Literal["optimistic", "worst_case"] = _setting(
        "optimistic",
        Choice(("optimistic", "worst_case")),
        _ADMISSION,
        "KV reserved per request: for the answer length seen so far, or for the whole bound "
        "(never preempts)",
    )
    max_wait_s: float = _setting(
        30.0, Number(0), _ADMISSION, "longest a request waits for a place before it is answered 429"
    )
    open_output_tokens: int = _setting(
        4096,
        Integer(1),
        _ADMISSION,
        "with worst_case: output bound of a request that leaves it open",
    )
    min_open_output_tokens: int = _setting(
        256, Integer(1), _ADMISSION, "a bound left open is never lowered below this"
    )
    max_sessions: int = _setting(1024, Integer(1), _ADMISSION, "conversations that are tracked")
    session_idle_s: float = _setting(
        600.0, Number(0, open_low=True), _ADMISSION, "a conversation idle for longer is forgotten"
    )
    session_kv_limit: int | None = _setting(
        None, Size(), _ADMISSION, "bytes of KV counted for one conversation", auto="none"
    )

    gpu_mode: Literal["single", "auto", "tensor", "pipeline"] = _setting(
        "single",
        Choice(("single", "auto", "tensor", "pipeline")),
        _GPUS,
        "how the model is laid over GPUs",
    )
    gpus: int | None = _setting(
        None, Integer(1, 1024), _GPUS, "GPUs to use with a mode other than single", auto="all"
    )
    device: str = _setting(
        "auto",
        Text("auto, cpu, cuda or cuda:N", r"auto|cpu|cuda(:[0-9]{1,3})?"),
        _GPUS,
        "where a single-GPU model runs; auto: CUDA where there is one",
    )
    attention_backend: str = _setting(
        "auto", Choice(("auto", "tiled", "reference")), _GPUS, "attention implementation"
    )

    log_format: Literal["auto", "json", "human"] = _setting(
        "auto",
        Choice(("auto", "json", "human")),
        _OBSERVE,
        "form of the log; auto: human on a terminal, else JSON lines",
    )
    log_file: str | None = _setting(
        None, Text(), _OBSERVE, "file to which the log is appended", auto="stderr"
    )
    log_level: str = _setting(
        "info", Choice(("debug", "info", "warning", "error")), _OBSERVE, "least severe log line"
    )
    max_p95_ttft_seconds: float = _setting(
        2.0,
        Number(0, open_low=True),
        _OBSERVE,
        "target: requests whose first token takes longer are counted as missed",
    )
    otlp_endpoint: str | None = _setting(
        None,
        Address(),
        _OBSERVE,
        "collector that takes traces as OTLP over HTTP (http://host:4318); needs the extra `otel`",
        auto="none: no traces",
    )
    trace_sample_rate: float = _setting(
        0.03,
        Number(0, 1),
        _OBSERVE,
        "share of requests that are traced; errors and slow ones are in any case",
    )
    trace_slow_s: float = _setting(
        10.0, Number(0), _OBSERVE, "a request that takes longer is traced in any case"
    )

    threads: int = _setting(
        0,
        Integer(0, 1024),
        _OPERATION,
        "CPU threads of the engine; 0: one less than there are cores",
    )
    engine_timeout_s: float = _setting(
        120.0,
        Number(1),
        _OPERATION,
        "an engine that has work and finishes no step for so long is killed and restarted",
    )
    shutdown_grace_s: float = _setting(
        30.0, Number(0), _OPERATION, "seconds that running requests get to finish on SIGTERM"
    )

    def redacted(self) -> dict[str, object]:
        """All settings by name, secrets replaced by `set` or `not set`."""
        shown: dict[str, object] = {}
        for row in TABLE:
            value = getattr(self, row.name)
            shown[row.name] = ("set" if value else "not set") if row.secret else value
        return shown

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{k}={v!r}' for k, v in self.redacted().items())})"


@dataclass(frozen=True)
class Row:
    """One setting with the names it has in each source."""

    name: str
    default: object
    kind: Kind
    group: str
    help: str
    auto: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def env(self) -> str:
        return ENV_PREFIX + self.name.upper()

    @property
    def secret(self) -> bool:
        return isinstance(self.kind, Secret)

    @property
    def default_text(self) -> str:
        """The default as an operator would write it, or what happens without one."""
        if self.auto:
            return self.auto
        if isinstance(self.default, bool):
            return str(self.default).lower()
        if isinstance(self.kind, Size) and isinstance(self.default, int):
            return format_size(self.default)
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)


TABLE: tuple[Row, ...] = tuple(
    Row(name=f.name, default=f.default, **f.metadata) for f in dataclasses.fields(Settings)
)
GROUPS: tuple[str, ...] = _GROUPS
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
    if settings.gpus is not None and settings.gpu_mode == "single" and settings.gpus > 1:
        raise ConfigError(
            f"{origins['gpus']}: {settings.gpus} GPUs need gpu_mode auto, tensor or pipeline, "
            "not single"
        )
    if settings.gpu_mode != "single" and settings.device == "cpu":
        raise ConfigError(
            f"{origins['device']}: gpu_mode {settings.gpu_mode} needs GPUs, device is cpu"
        )
    limit, default = settings.max_model_len, settings.default_max_tokens
    if limit is not None and default is not None and default >= limit:
        raise ConfigError(
            f"{origins['default_max_tokens']}: must be below max_model_len ({limit}), got {default}"
        )


def _suggest(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
