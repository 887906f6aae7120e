"""Every setting of the server, in one table: the fields of `Settings`.

Knows: names, kinds, defaults, groups and one line of help of the settings. Does not know: where
their values come from (see `config`), what a setting is used for, the model, the machine.

Flags, environment names, YAML keys, `--help` and `docs/configuration.md` are all generated from
this table.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

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

ENV_PREFIX = "GPT_OSS_"

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
    "Responses",
    "GPUs",
    "Observability",
    "Operation",
)
_MODEL, _ADDRESS, _LIMITS, _MEMORY, _ROUTING, _ADMISSION, _RESPONSES, *_REST = _GROUPS
_GPUS, _OBSERVE, _OPERATION = _REST
_LIMIT = r"(cpu|disk|[0-9]+)=[0-9.]+[KMG]i?B"


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
    header_timeout_s: float = _setting(
        20.0,
        Number(0, open_low=True),
        _LIMITS,
        "seconds in which a connection must bring the complete headers of a request",
    )
    body_timeout_s: float = _setting(
        60.0,
        Number(0, open_low=True),
        _LIMITS,
        "seconds in which a request's body must follow its headers",
    )
    keep_alive_s: float = _setting(
        75.0,
        Number(0, open_low=True),
        _LIMITS,
        "seconds that a connection may be idle between two requests; keep it above the idle time "
        "of your proxy's own pool",
    )
    stall_timeout_s: float = _setting(
        60.0,
        Number(1, 86_400),
        _LIMITS,
        "a client that takes nothing of its answer for so many seconds is cut off (Linux)",
    )
    max_connections: int | None = _setting(
        None,
        Integer(1),
        _LIMITS,
        "connections at once; one more is answered 503",
        auto="what the open-file limit leaves",
    )
    default_max_tokens: int | None = _setting(
        None,
        Integer(1),
        _LIMITS,
        "output tokens of a chat request that sets no bound",
        auto="what the context leaves",
    )
    sampling_defaults: Literal["model", "openai"] = _setting(
        "model",
        Choice(("model", "openai")),
        _LIMITS,
        "temperature, top_p and the like of a request that sets none: what the model's "
        "generation_config.json recommends, or OpenAI's (1 and 1)",
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
    key_priorities: str | None = _setting(
        None,
        Text("priorities 0 to 9, one per api_key, as in 5,9,2", r"[0-9](,[0-9])*"),
        _ADMISSION,
        "priority of each API key's requests, in the keys' order; X-Priority may only lower it",
        auto="5, and X-Priority as it comes",
    )
    max_sessions: int = _setting(1024, Integer(1), _ADMISSION, "conversations that are tracked")
    session_idle_s: float = _setting(
        600.0, Number(0, open_low=True), _ADMISSION, "a conversation idle for longer is forgotten"
    )
    session_kv_limit: int | None = _setting(
        None, Size(), _ADMISSION, "bytes of KV counted for one conversation", auto="none"
    )

    responses_store: str = _setting(
        "auto",
        Text("auto, memory, off or a file"),
        _RESPONSES,
        "where responses are kept; auto: gpt-oss-server/responses.sqlite3 in XDG_STATE_HOME or "
        "~/.local/state",
    )
    max_responses: int = _setting(
        10_000,
        Integer(1),
        _RESPONSES,
        "responses that are kept; beyond, those not used for longest go",
    )
    max_responses_size: int = _setting(
        2**30, Size(2**20), _RESPONSES, "bytes of responses that are kept"
    )
    max_response_age_s: int = _setting(
        30 * 86_400, Integer(1), _RESPONSES, "a response older than this is deleted"
    )

    gpu_mode: Literal["single", "auto", "tensor", "pipeline"] = _setting(
        "single",
        Choice(("single", "auto", "tensor", "pipeline")),
        _GPUS,
        "how the model is laid over GPUs",
    )
    gpus: int | None = _setting(
        None,
        Integer(1, 1024),
        _GPUS,
        "GPUs to use with a mode other than single; with device cpu: processes",
        auto="all",
    )
    micro_batches: int | None = _setting(
        None, Integer(1, 64), _GPUS, "with pipeline: steps in flight at once", auto="one per stage"
    )
    rank_timeout_s: float = _setting(
        8.0,
        Number(1, 3600),
        _GPUS,
        "when no process of a model over several makes progress for so long, all are restarted",
    )
    max_memory: str | None = _setting(
        None,
        Text("device=size pairs, as in 0=20GiB,cpu=64GiB", rf"{_LIMIT}(,{_LIMIT})*"),
        _GPUS,
        "with auto: the most that each device may take of the weights",
        auto="what is free",
    )
    device_map: str | None = _setting(
        None,
        Text(),
        _GPUS,
        "with auto: JSON file of modules and their devices, which is followed to the letter",
        auto="computed",
    )
    offload: Literal["none", "cpu", "disk"] = _setting(
        "none",
        Choice(("none", "cpu", "disk")),
        _GPUS,
        "with auto: where weights may go that no GPU has room for; each step then copies them",
    )
    device: str = _setting(
        "auto",
        Text("auto, cpu, cuda or cuda:N", r"auto|cpu|cuda(:[0-9]{1,3})?"),
        _GPUS,
        "where the model runs, or the first of its GPUs; auto: CUDA where there is one",
    )
    attention_backend: str = _setting(
        "auto",
        Choice(("auto", "triton", "tiled", "reference")),
        _GPUS,
        "attention implementation; auto: triton on CUDA where it can run, else tiled",
    )
    experts: Literal["auto", "triton", "torch", "transformers"] = _setting(
        "auto",
        Choice(("auto", "triton", "torch", "transformers")),
        _GPUS,
        "who computes a mixture's experts; auto: triton on CUDA, which keeps MXFP4 weights in 4 "
        "bits, else transformers; torch keeps them in 4 bits too, but is slow",
    )
    eager: bool = _setting(
        False,
        Switch(),
        _GPUS,
        "do not capture decode steps as CUDA graphs: a faster start and some memory, for slower "
        "steps of few sequences",
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
        "CPU threads of the engine, of each of its processes with tensor and pipeline; 0: one "
        "less than there are cores, or an even share of them",
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
