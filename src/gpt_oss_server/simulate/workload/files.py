"""Traces and logs as workloads: read what is there, count what is wrong, drop nothing silently.

Knows: the columns of CSV, JSON lines and parquet (`arrival_s, input_tokens, output_tokens`,
optionally `hash_ids, client, priority, max_output_tokens`), the Azure LLM inference traces
(`TIMESTAMP, ContextTokens, GeneratedTokens`), Mooncake's (`timestamp` in ms, `input_length,
output_length, hash_ids`), this server's own log (`event_type: request.end`). Does not know:
simulations.

Rules for what is wrong, each counted in `Problems` with examples: a row with a missing, negative or
unreadable field is skipped; a clock that jumps back is sorted in (within `REORDER_S`) or, further
back, makes the rest follow on from the latest moment seen; a gap of more than `GAP_S` is kept and
reported; so are an empty prompt or answer, and hashes of less than the prompt; where a coarse clock
gives several requests one moment (Mooncake's ticks of 3 s), they are spread over the time to the
next moment, in order, by a seed. A log's clock is that of its lines, which are written when
requests end: one that took half an hour did not turn it back.
"""

from __future__ import annotations

import csv
import importlib
import json
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from gpt_oss_server.errors import ConfigError, StartupError
from gpt_oss_server.simulate.workload.requests import (
    UNIT_TOKENS,
    Problems,
    Request,
    Workload,
    workload_of,
)

REORDER_S = 900.0
GAP_S = 3600.0
COARSE = 2.0
LONGEST_TICK = 10.0
"""Times the usual one; beyond it is a pause, in which nothing of what came before it came."""
MOST_TOKENS = 1_000_000_000
MOST_MOMENT = 1e13
"""Milliseconds since 1970 are below it. Beyond, a moment's last bit is worth a millisecond."""
_PACKED = (".gz", ".bz2", ".xz", ".zst")

Row = Mapping[str, Any]
Rows = Iterable[tuple[str, Row | None]]
"""Where a row stands ("line 7") and what it says; None: it cannot be read at all."""


class _Read(NamedTuple):
    """A row's request, what the clock said when the row was written, what there is to remark."""

    request: Request
    clock_s: float
    remark: str = ""


class _SkipRow(ValueError):
    """A row that makes no request; the first argument is the kind of problem."""


def read_workload(path: Path, *, unit_tokens: int = UNIT_TOKENS) -> Workload:
    """The workload in a file, whatever of the known formats it has.

    The format follows from the name (`.csv`, `.jsonl`, `.json`, `.log`, `.parquet`) and from the
    columns. Raises StartupError where the file cannot be read or parquet needs a package that is
    missing, ConfigError where no row of it makes a request.
    """
    problems = Problems()
    suffix = path.suffix.lower()
    if suffix in _PACKED:
        raise StartupError(f"cannot read {path}: it is packed, by its name: unpack it first")
    try:
        if suffix == ".parquet":
            rows = _read_rows(_parquet_rows(path), problems)
        elif suffix == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as lines:
                rows = _read_rows(_csv_rows(lines), problems)
        else:
            with path.open("rb") as raw:
                rows = _read_rows(_json_rows(raw), problems)
    except OSError as error:
        raise StartupError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise StartupError(f"cannot read {path}: not UTF-8 text") from error
    except csv.Error as error:
        raise StartupError(f"cannot read {path} as CSV: {error}") from error
    except ValueError as error:  # a name that no file can have
        raise StartupError(f"cannot read {str(path)!r}: {error}") from error
    if not rows:
        found = "; ".join(problems.lines()) or "it is empty"
        if _UNKNOWN_COLUMNS in problems.counts:
            found += f"; known are {_KNOWN_COLUMNS}"
        raise ConfigError(f"{path} has no request in a known format: {found}")
    requests = _in_time(rows, unit_tokens, problems)
    name = path.stem.encode(errors="backslashreplace").decode()  # bytes that are no text
    return _spread(workload_of(name, requests, unit_tokens, problems))


def _csv_rows(lines: Iterable[str]) -> Rows:
    for number, row in enumerate(csv.DictReader(lines), 2):
        yield f"line {number}", row


def _json_rows(lines: Iterable[bytes]) -> Rows:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        yield f"line {number}", row if isinstance(row, dict) else None


def _parquet_rows(path: Path) -> Rows:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise StartupError(
            f"{path}: reading parquet needs the package pyarrow "
            "(pip install 'gpt-oss-hf-server[parquet]'), or convert the file to CSV or JSON lines"
        ) from error
    try:
        rows = parquet.read_table(path).to_pylist()
    except Exception as error:
        raise StartupError(f"cannot read {path} as parquet: {error}") from error
    for number, row in enumerate(rows, 1):
        yield f"row {number}", row


def _read_rows(rows: Rows, problems: Problems) -> list[_Read]:
    read: Callable[[Row], _Read] | None = None
    found: list[_Read] = []
    for place, row in rows:
        if row is None:
            problems.add("no JSON object", place)
            continue
        if read is None:
            read = _reader(row)
        try:
            if read is None:
                raise _SkipRow(_UNKNOWN_COLUMNS)
            one = read(row)
        except _SkipRow as skip:
            if skip.args[0] is not _OTHER_EVENT:
                problems.add(str(skip.args[0]), place)
            continue
        found.append(one)
        if one.remark:
            problems.add(one.remark, place)
    return found


_OTHER_EVENT = "other event"
_UNKNOWN_COLUMNS = "unknown columns"
_KNOWN_COLUMNS = (
    "arrival_s, input_tokens, output_tokens; TIMESTAMP, ContextTokens, GeneratedTokens; timestamp, "
    "input_length, output_length; event_type"
)


def _reader(row: Row) -> Callable[[Row], _Read] | None:
    """How to read a file whose first row has these columns."""
    if "event_type" in row:
        return _from_log
    if "arrival_s" in row and "input_tokens" in row:
        return _from_columns
    if "TIMESTAMP" in row and "ContextTokens" in row:
        return _from_azure
    if "timestamp" in row and "input_length" in row:
        return _from_mooncake
    return None


def _from_columns(row: Row) -> _Read:
    bound = row.get("max_output_tokens")
    priority = row.get("priority")
    request = Request(
        arrival_s=_moment(row, "arrival_s"),
        input_tokens=_count(row, "input_tokens"),
        output_tokens=_count(row, "output_tokens"),
        units=_hashes(row.get("hash_ids")),
        max_output_tokens=_count(row, "max_output_tokens") if bound not in (None, "") else 0,
        client=str(row.get("client") if row.get("client") is not None else ""),
        priority=_count(row, "priority") if priority not in (None, "") else 5,
    )
    return _Read(request, request.arrival_s)


def _from_azure(row: Row) -> _Read:
    """https://github.com/Azure/AzurePublicDataset, LLM inference traces of 2023 and 2024."""
    request = Request(
        arrival_s=_date(row, "TIMESTAMP"),
        input_tokens=_count(row, "ContextTokens"),
        output_tokens=_count(row, "GeneratedTokens"),
    )
    return _Read(request, request.arrival_s)


def _from_mooncake(row: Row) -> _Read:
    """https://github.com/kvcache-ai/Mooncake, FAST'25 traces: milliseconds, blocks of 512."""
    request = Request(
        arrival_s=_moment(row, "timestamp") / 1000,
        input_tokens=_count(row, "input_length"),
        output_tokens=_count(row, "output_length"),
        units=_hashes(row.get("hash_ids")),
    )
    return _Read(request, request.arrival_s)


def _from_log(row: Row) -> _Read:
    """`request.end` lines of this server's log (docs/logs.md). The line is written at the end, so
    the arrival is its timestamp less `e2e_ms`."""
    if row.get("event_type") != "request.end":
        raise _SkipRow(_OTHER_EVENT)
    metadata = row.get("metadata")
    if not isinstance(metadata, Mapping):
        raise _SkipRow("missing metadata")
    if metadata.get("input_tokens") in (None, 0):
        raise _SkipRow("refused before its prompt was counted")
    ended_s, lasted_s = _date(row, "timestamp"), _moment(metadata, "e2e_ms") / 1000
    if lasted_s < 0:
        raise _SkipRow("negative e2e_ms")
    request = Request(
        arrival_s=ended_s - lasted_s,
        input_tokens=_count(metadata, "input_tokens"),
        output_tokens=_count(metadata, "output_tokens"),
        priority=_count(metadata, "priority") if metadata.get("priority") is not None else 5,
    )
    answers = metadata.get("n")
    several = isinstance(answers, int) and answers > 1
    return _Read(request, ended_s, "several answers, played as one" if several else "")


def _count(row: Row, name: str) -> int:
    """A whole number, not negative."""
    number = _moment(row, name)
    if number < 0:
        raise _SkipRow(f"negative {name}")
    if number > MOST_TOKENS:
        raise _SkipRow(f"too large {name}")
    if number != int(number):
        raise _SkipRow(f"unreadable {name}")
    return int(number)


def _moment(row: Row, name: str) -> float:
    """A finite number, small enough for moments to be told apart."""
    value = row.get(name)
    if value is None or value == "":
        raise _SkipRow(f"missing {name}")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise _SkipRow(f"unreadable {name}") from None
    except OverflowError:
        raise _SkipRow(f"too large {name}") from None
    if not math.isfinite(number):
        raise _SkipRow(f"unreadable {name}")
    if abs(number) > MOST_MOMENT:
        raise _SkipRow(f"too large {name}")
    return number


def _date(row: Row, name: str) -> float:
    """ISO 8601, with up to any number of decimals; naive means UTC. Only differences matter."""
    value = row.get(name)
    if not value:
        raise _SkipRow(f"missing {name}")
    text = str(value).strip()
    head, dot, rest = text.partition(".")
    if dot:
        digits = len(rest) - len(rest.lstrip("0123456789"))
        text = f"{head}.{rest[:digits][:6]:0<6}{rest[digits:]}"
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
        return (
            moment.timestamp() if moment.tzinfo else (moment - datetime(1970, 1, 1)).total_seconds()
        )
    except (ValueError, OverflowError):
        raise _SkipRow(f"unreadable {name}") from None


def _hashes(value: Any) -> tuple[int, ...]:
    """A list of numbers, or (in CSV) its JSON text."""
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise _SkipRow("unreadable hash_ids") from None
    if not isinstance(value, list) or not all(isinstance(v, int) for v in value):
        raise _SkipRow("unreadable hash_ids")
    return tuple(value)


def _in_time(rows: list[_Read], unit_tokens: int, problems: Problems) -> Iterator[Request]:
    """From 0 s on, on one clock that does not jump."""
    latest = -math.inf
    shift = 0.0
    moved: list[Request] = []
    for number, (request, clock_s, _) in enumerate(rows, 1):
        clock_s += shift
        if clock_s < latest - REORDER_S:
            back_s = latest - clock_s
            problems.add("clock jumps back", f"request {number} by {back_s:.0f} s: follows on")
            shift += back_s
            clock_s = latest
        elif clock_s > latest + GAP_S and number > 1:
            gap_s = clock_s - latest
            problems.add("gap", f"{gap_s:.0f} s before request {number}: kept")
        latest = max(latest, clock_s)
        if request.output_tokens < 1 or request.input_tokens < 1:
            what = "prompt" if request.input_tokens < 1 else "answer"
            problems.add(f"empty {what}", f"request {number}: counted as one token")
            request = request._replace(
                input_tokens=max(1, request.input_tokens),
                output_tokens=max(1, request.output_tokens),
            )
        if 0 < len(request.units) < request.input_tokens // unit_tokens:
            problems.add("hashes of less than the prompt", f"request {number}: the rest is new")
        moved.append(request._replace(arrival_s=request.arrival_s + shift))
    start_s = min(request.arrival_s for request in moved)
    return (request._replace(arrival_s=request.arrival_s - start_s) for request in moved)


def _spread(workload: Workload) -> Workload:
    """Requests of one tick of a coarse clock at moments of their own, if at least `COARSE` requests
    share a moment on average. What arrives at once in the file did not in fact."""
    requests = workload.requests
    moments = sorted({request.arrival_s for request in requests})
    if len(moments) < 2 or len(requests) < COARSE * len(moments):
        return workload
    ticks = [after - before for before, after in pairwise(moments)]
    usual_s = sorted(ticks)[len(ticks) // 2]
    # The last tick is as long as most.
    ends = [min(tick, LONGEST_TICK * usual_s) for tick in [*ticks, usual_s]]
    lasts_s = dict(zip(moments, ends, strict=True))
    rng = random.Random(len(requests))
    spread = [
        request._replace(arrival_s=request.arrival_s + offset_s)
        for moment_s, group in groupby(requests, key=lambda r: r.arrival_s)
        for request, offset_s in _offsets(list(group), lasts_s[moment_s], rng)
    ]
    workload.problems.add(
        "coarse clock", f"{len(requests)} requests at {len(moments)} moments: spread in between"
    )
    return replace(workload, requests=tuple(spread))


def _offsets(
    group: list[Request], lasts_s: float, rng: random.Random
) -> Iterator[tuple[Request, float]]:
    offsets = sorted(rng.random() * lasts_s for _ in group)
    return zip(group, offsets, strict=True)
