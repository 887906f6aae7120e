"""The log's one schema: what each event and each logging call becomes, and its two forms.

Knows: `docs/logs.md`, field by field. Does not know: where lines go. A line never holds text of a
prompt or an answer, nor a key: of an exception only its class and the places it passed.
"""

from __future__ import annotations

import logging
import re
import traceback
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from gpt_oss_server.events import (
    DecisionTaken,
    Event,
    RequestEnded,
    RequestRecord,
    TurnedAway,
    WorkerRestarted,
)
from gpt_oss_server.telemetry.prometheus import SERVER_FAULTS
from gpt_oss_server.trail import CURRENT_IDS, Ids

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_LEVELS = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warning",
    logging.ERROR: "error",
    logging.CRITICAL: "critical",
}


class Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line. Fields that do not apply are left out; `metadata` depends on `event_type`."""

    timestamp: str
    level: str
    event_type: str
    request_id: str | UnsetType = UNSET
    trace_id: str | UnsetType = UNSET
    logger: str | UnsetType = UNSET
    message: str | UnsetType = UNSET
    route: str | UnsetType | None = UNSET
    reason: str | UnsetType = UNSET
    outcome: str | UnsetType = UNSET
    status: int | UnsetType | None = UNSET
    metadata: dict[str, Any] | UnsetType = UNSET


class Logged(msgspec.Struct, frozen=True):
    """A logging call, as it leaves the thread that made it."""

    unix_s: float
    level: int
    logger: str
    message: str
    ids: Ids | None


class Stamped(msgspec.Struct, frozen=True):
    """An event and when it was told, in Unix time."""

    unix_s: float
    event: Event
    ids: Ids | None


def logged(record: logging.LogRecord) -> Logged:
    """Taken in the thread that logs: its context knows which request it serves."""
    message = record.getMessage()
    if record.name == "asyncio":
        message = message.partition("\n")[0]  # what follows quotes exceptions
    if record.exc_info and record.exc_info[0] is not None:
        message += f": {_where(record.exc_info)}"
    return Logged(record.created, record.levelno, record.name, message, CURRENT_IDS.get())


def level_of(event: Event) -> int | None:
    """How severe an event is; None for one that makes no line."""
    if isinstance(event, DecisionTaken | TurnedAway):
        return logging.INFO
    if isinstance(event, RequestEnded):
        outcome = event.record.outcome
        if outcome in ("internal", "engine_failed"):
            return logging.ERROR
        return logging.WARNING if outcome in SERVER_FAULTS else logging.INFO
    return logging.WARNING if isinstance(event, WorkerRestarted) else None


def line_of(item: Logged | Stamped) -> Line:
    """The line that a logging call or an event makes. Raises TypeError for an event without."""
    if isinstance(item, Logged):
        return _line(
            item.unix_s,
            item.level,
            "log",
            item.ids,
            logger=item.logger,
            message=item.message,
        )
    event = item.event
    level = level_of(event) or logging.INFO
    if isinstance(event, DecisionTaken):
        return _decision(event, level)
    if isinstance(event, RequestEnded):
        return _request(event.record, level)
    if isinstance(event, TurnedAway):
        return _turned_away(event, item, level)
    if isinstance(event, WorkerRestarted):
        metadata = {"restarts": event.restarts}
        return _line(
            item.unix_s, level, "engine.restart", None, message=event.reason, metadata=metadata
        )
    raise TypeError(f"{type(event).__name__} makes no log line")


def as_json(line: Line) -> bytes:
    """One JSON object, without a line end. Raises UnicodeEncodeError for half a character."""
    return msgspec.json.encode(line)


def as_text(line: Line) -> bytes:
    """For people: time, level, what happened, the figures, the request id."""
    parts = [line.timestamp[11:23], f"{line.level.upper():<7}"]
    if line.event_type != "log":
        parts.append(line.event_type)
    for value in (line.outcome, line.status, line.route):
        if value is not UNSET and value is not None:
            parts.append(str(value))
    parts += [value for value in (line.reason, line.message) if value is not UNSET]
    if line.metadata is not UNSET:
        parts += [f"{k}={_short(v)}" for k, v in line.metadata.items() if v not in (None, [])]
    if line.request_id is not UNSET:
        parts.append(f"[{line.request_id}]")
    text = " ".join(parts)
    return _CONTROL.sub(lambda match: repr(match.group())[1:-1], text).encode()


def _decision(event: DecisionTaken, level: int) -> Line:
    decision, facts = event.decision, event.facts
    pressure = decision.pressure.value
    return _line(
        event.at_unix_s,
        level,
        "routing.decision",
        Ids(facts.request_id, facts.trace_id or ""),
        route=decision.route,
        reason=decision.reason,
        metadata={
            "input_tokens": decision.input_tokens,
            "predicted_kv_mb": round(decision.predicted_kv_mb, 3),
            "gpu_memory_pressure": None if pressure is None else round(pressure, 4),
            "trigger": decision.trigger,
            "executed": decision.executed,
            "unmet_recommendation": decision.unmet_recommendation,
            "gpu_mode": event.mode,
            "decide_us": round(1e6 * event.decide_s, 1),
        },
    )


def _request(record: RequestRecord, level: int) -> Line:
    decision = record.decision
    return _line(
        record.unix_s(record.ended_s),
        level,
        "request.end",
        Ids(record.request_id, record.trace.trace_id),
        route=record.executed,
        reason=UNSET if decision is None else decision.reason,
        outcome=record.outcome,
        status=record.status,
        metadata={
            "endpoint": record.endpoint,
            "model": record.model,
            "stream": record.stream,
            "n": record.n,
            "priority": record.priority,
            "client_class": record.client_class,
            "input_tokens": record.input_tokens,
            "cached_tokens": record.cached_tokens,
            "output_tokens": record.output_tokens,
            "reasoning_tokens": record.reasoning_tokens,
            "finish_reasons": list(record.finish_reasons),
            "queue_ms": _ms(record.queue_s),
            "prefill_ms": _ms(record.prefill_s),
            "ttft_ms": _ms(record.ttft_s),
            "tpot_ms": _ms(record.tpot_s),
            "e2e_ms": _ms(record.e2e_s),
        },
    )


def _turned_away(event: TurnedAway, item: Stamped, level: int) -> Line:
    trace_id = item.ids.trace_id if item.ids is not None else ""
    return _line(
        item.unix_s,
        level,
        "admission.turned_away",
        Ids(event.request_id, trace_id),
        route=event.decided,
        reason=event.reason,
        metadata={
            "priority": event.priority,
            "waited_ms": _ms(event.waited_s),
            "retry_after_s": event.retry_after_s,
        },
    )


def _line(unix_s: float, level: int, event_type: str, ids: Ids | None, **fields: Any) -> Line:
    second, microseconds = divmod(round(1e6 * unix_s), 1_000_000)
    return Line(
        timestamp=f"{_second(second)}.{microseconds // 1000:03}Z",
        level=_LEVELS.get(level, "info"),
        event_type=event_type,
        request_id=UNSET if ids is None else ids.request_id,
        trace_id=UNSET if ids is None or not ids.trace_id else ids.trace_id,
        **fields,
    )


@lru_cache(maxsize=8)
def _second(unix_s: int) -> str:
    # Most lines are of the same second as the one before.
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _where(exc_info: Any) -> str:
    """An exception's class and where it passed. Not its message: a library may quote in it the
    text that it choked on."""
    kind, _, trace = exc_info
    frames = traceback.extract_tb(trace)
    places = " > ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames)
    return f"{kind.__name__} at {places}" if places else str(kind.__name__)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1e3 * seconds, 3)


def _short(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
