"""What of settings, log lines and ids may be shown, and a last sieve for what looks like a key.

Knows: lists of what is allowed. Does not know: where bundles come from. A setting or a field of a
log line that is on no list is hidden: whoever adds one decides, by adding it here.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from gpt_oss_server.config import TABLE, Settings
from gpt_oss_server.errors import StartupError
from gpt_oss_server.hub import identify

HIDDEN = "[hidden]"

SHOWN_SETTINGS = frozenset(
    {
        *(
            "served_model_name",
            "dtype",
            "load_format",
            "weights_seed",
            "max_model_len",
            "host",
            "port",
        ),
        *("max_body", "default_max_tokens", "sampling_defaults", "max_queue", "max_connections"),
        *("header_timeout_s", "body_timeout_s", "keep_alive_s", "stall_timeout_s"),
        *("max_num_seqs", "max_batch_tokens", "block_size", "kv_cache_memory"),
        *("gpu_memory_utilization", "memory_budget", "prefix_caching", "prefill_order"),
        *("prefill_oldest_share", "large_input_tokens", "large_kv_mb", "memory_pressure"),
        *("pressure_input_tokens", "pressure_kv_mb", "min_gpu_util_percent"),
        *("max_p95_e2e_seconds", "max_p95_ttft_seconds", "stale_after_s"),
        *("admission_mode", "max_wait_s", "open_output_tokens", "min_open_output_tokens"),
        *("key_priorities", "max_sessions", "session_idle_s", "session_kv_limit"),
        *("max_responses", "max_responses_size", "max_response_age_s"),
        *("gpu_mode", "gpus", "device", "attention_backend", "threads", "shutdown_grace_s"),
        *("engine_timeout_s", "micro_batches", "rank_timeout_s", "max_memory", "offload"),
        *("experts", "eager", "log_format", "log_level", "trace_sample_rate", "trace_slow_s"),
    }
)

# The parts of `/stats` and `/memory_stats` that are figures and fixed words, but for the clients
# that wait.
SHOWN_STATISTICS = frozenset(
    {
        *("gpu_routing", "routing_thresholds", "missed_targets", "latency_p95_e2e_s", "engine"),
        *("admission", "gpus", "pressure", "kv", "sessions"),
        *("placement", "recommendation", "ranks"),
    }
)

_OWN_LOGGER = "gpt_oss_server"
_LINE_FIELDS = ("timestamp", "level", "event_type", "logger", "route", "outcome", "status")
# `reason` of these is written by routing and admission out of figures and fixed words.
_REASONED = frozenset({"routing.decision", "request.end", "admission.turned_away"})
# `message` of these is ours, and ours never quote a prompt.
_SPOKEN = frozenset({"log", "engine.restart"})
_METADATA = frozenset(
    {
        *("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens"),
        *("predicted_kv_mb", "gpu_memory_pressure", "trigger", "executed"),
        *("unmet_recommendation", "gpu_mode", "decide_us", "endpoint", "stream", "n", "priority"),
        *("client_class", "finish_reasons", "queue_ms", "prefill_ms", "ttft_ms", "tpot_ms"),
        *("e2e_ms", "waited_ms", "retry_after_s", "restarts"),
    }
)
_WORD = re.compile(r"[A-Za-z0-9_./:-]{1,64}")
_OWN_REQUEST_ID = re.compile(r"req_[0-9a-f]{32}")
_TRACE_ID = re.compile(r"[0-9a-f]{32}")
_PLACE = re.compile(r"\bpath=\S+")

_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH|HEADERS|COOKIE|DSN", re.I)
_LEAST_KEY = 4
_LEAST_VALUE = 8
_LOOKS_SECRET = (
    re.compile(r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{6,}"),
    re.compile(r"(?<![A-Za-z0-9])(hf|gh[a-z]|glpat|xox[a-z])[_-][A-Za-z0-9_-]{12,}"),
    re.compile(r"(?<![A-Za-z0-9])AKIA[0-9A-Z]{16}"),
    re.compile(r"(?<![A-Za-z0-9])eyJ[\w-]{8,}\.[\w-]+\.[\w-]*"),
    re.compile(r"(?i)(?<=bearer )[!-~]+"),
    re.compile(r"(?<=://)[^\s/@]+(?=@)"),
)


def shown_settings(settings: Settings, environ: Mapping[str, str]) -> dict[str, Any]:
    """Every setting by name: its value if that may be shown, else whether it is set.

    Returns:
        `values`, and `from_environment`, the names of the variables that were read.
    """
    values: dict[str, Any] = {}
    for row in TABLE:
        value = getattr(settings, row.name)
        if row.name == "model":
            values["model"] = shown_model(settings.model)
        elif row.name in SHOWN_SETTINGS:
            values[row.name] = value
        else:
            values[row.name] = "set" if value != row.default else "not set"
    return {
        "values": values,
        "from_environment": sorted(row.env for row in TABLE if row.env in environ),
    }


def shown_statistics(document: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a statistics document that are on the list. Of those who wait for a place only
    how many wait for each is shown: who they are is an address."""
    shown = {name: part for name, part in document.items() if name in SHOWN_STATISTICS}
    admission = shown.get("admission")
    if isinstance(admission, Mapping) and "waiting_by_client" in admission:
        waiting = sorted(admission["waiting_by_client"].values(), reverse=True)
        shown["admission"] = {**admission, "waiting_by_client": waiting}
    return shown


def shown_request_id(request_id: str) -> str:
    """An id that this server drew, as it is; a client's own may be anything: a hash of it, the
    first 12 hex digits of its SHA-256."""
    if _OWN_REQUEST_ID.fullmatch(request_id):
        return request_id
    return f"sha256:{hashlib.sha256(request_id.encode()).hexdigest()[:12]}"


def shown_line(line: bytes) -> dict[str, Any] | None:
    """One line of the log, as far as it may be shown; None for what is no line of ours."""
    try:
        fields = msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    shown = {name: _word(fields[name]) for name in _LINE_FIELDS if fields.get(name) is not None}
    kind = fields.get("event_type")
    request_id, trace_id = fields.get("request_id"), fields.get("trace_id")
    if isinstance(request_id, str):
        shown["request_id"] = shown_request_id(request_id)
    if isinstance(trace_id, str) and _TRACE_ID.fullmatch(trace_id):
        shown["trace_id"] = trace_id
    if kind in _REASONED and isinstance(fields.get("reason"), str):
        shown["reason"] = fields["reason"]
    if kind in _SPOKEN and isinstance(fields.get("message"), str):
        shown["message"] = _message(fields, kind)
    if isinstance(fields.get("metadata"), dict):
        shown["metadata"] = {
            name: _word(value) for name, value in fields["metadata"].items() if name in _METADATA
        }
    return shown


def _message(fields: Mapping[str, Any], kind: str) -> str:
    """What our own modules say, without what a client chose. What a library says is hidden: an
    exception that it logs may quote anything."""
    if kind == "log" and str(fields.get("logger")).partition(".")[0] != _OWN_LOGGER:
        return HIDDEN
    message = str(fields["message"])
    request_id = fields.get("request_id")
    if isinstance(request_id, str) and request_id:
        message = message.replace(request_id, shown_request_id(request_id))
    return _PLACE.sub(f"path={HIDDEN}", message)


def _word(value: Any) -> Any:
    """Figures, and text that is one of our fixed words by its looks."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list):
        return [_word(one) for one in value]
    return value if isinstance(value, str) and _WORD.fullmatch(value) else HIDDEN


def shown_model(name: str) -> str:
    """What a model is called, without where it lies."""
    try:
        return identify(name).model_id
    except StartupError:
        return HIDDEN


class Sieve:
    """Replaces, in every text, secrets that are known and what looks like one. The last defence,
    not the first: what is not on a list does not get this far."""

    def __init__(self, known: Iterable[str]) -> None:
        # The longest first: one may contain another.
        self._known = sorted({secret for secret in known if secret}, key=len, reverse=True)

    def __call__(self, value: Any) -> Any:
        """A copy of a document without them."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self(key): self(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self(item) for item in value]
        return value

    def text(self, text: str) -> str:
        for secret in self._known:
            text = text.replace(secret, HIDDEN)
        for pattern in _LOOKS_SECRET:
            text = pattern.sub(HIDDEN, text)
        return text


def known_secrets(settings: Settings | None, environ: Mapping[str, str]) -> list[str]:
    """The server's keys, and the values of environment variables whose name says "secret"."""
    found: list[str] = []
    if settings is not None:
        found += [key for key in settings.api_key if len(key) >= _LEAST_KEY]
        if settings.admin_key is not None and len(settings.admin_key) >= _LEAST_KEY:
            found.append(settings.admin_key)
    for name, value in environ.items():
        # A number or a path is no secret, and would be found everywhere.
        plain = value.isdigit() or (value.startswith("/") and os.path.exists(value))
        if _SECRET_NAME.search(name) and len(value) >= _LEAST_VALUE and not plain:
            found.append(value)
    return found
