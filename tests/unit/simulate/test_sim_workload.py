"""Workloads from files and from a seed: what is read, what is wrong, what is counted."""

from __future__ import annotations

import json
import statistics
import sys
from itertools import pairwise
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from gpt_oss_server.errors import ConfigError, StartupError
from gpt_oss_server.simulate.workload.files import read_workload
from gpt_oss_server.simulate.workload.made import (
    MIXES,
    Arrivals,
    Kind,
    Lengths,
    make_workload,
)
from gpt_oss_server.simulate.workload.requests import Request, workload_of


def lines(path: Path, *rows: object) -> Path:
    """Write rows as JSON lines (text as it is)."""
    texts = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(texts) + "\n")
    return path


def test_plain_columns_as_csv(tmp_path: Path) -> None:
    """Arrival, tokens, and what else may be there; from 0 s on, in order."""
    path = tmp_path / "trace.csv"
    path.write_text(
        "arrival_s,input_tokens,output_tokens,hash_ids,client,priority,max_output_tokens\n"
        '11.5,600,20,"[4, 5]",ann,7,100\n'
        "10.0,5,6,,,,\n"
    )
    read = read_workload(path)
    assert read.requests == (
        Request(0.0, 5, 6),
        Request(1.5, 600, 20, (4, 5), (), 100, "ann", 7),
    )
    assert (read.name, read.duration_s, read.problems.total) == ("trace", 1.5, 0)


def test_azure_as_published(tmp_path: Path) -> None:
    """Seven decimals of a second, context and generated tokens."""
    path = tmp_path / "azure.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:50.9951690,396,109\n"
        "2024-05-10 00:00:00.009930+00:00,10,10\n"
    )
    read = read_workload(path)
    assert read.requests[1].arrival_s == pytest.approx(4.314579, abs=2e-6)
    assert (read.requests[0].input_tokens, read.requests[0].output_tokens) == (374, 44)
    assert read.problems.counts == {"gap": 1}


def test_mooncake_as_published(tmp_path: Path) -> None:
    """Milliseconds and hashes; a coarse clock's ticks are spread over their length, in order,
    the same each time, and said so."""
    rows = [
        {"timestamp": 3000 * (i // 4), "input_length": i + 1, "output_length": 9, "hash_ids": [i]}
        for i in range(40)
    ]
    path = lines(tmp_path / "mooncake.jsonl", *rows)
    read = read_workload(path)
    assert [r.input_tokens for r in read.requests] == list(range(1, 41))
    assert read.requests[7].units == (7,)
    moments = [r.arrival_s for r in read.requests]
    assert moments == sorted(set(moments))
    assert all(3 * (i // 4) <= moment < 3 * (i // 4) + 3 for i, moment in enumerate(moments))
    assert read.problems.counts == {"coarse clock": 1}
    assert read == read_workload(path)


def ended(stamp: str, tokens: int, e2e_ms: float, **metadata: object) -> dict[str, object]:
    """A line of the server's log."""
    figures = {"input_tokens": tokens, "output_tokens": 7, "e2e_ms": e2e_ms, "priority": 3}
    return {"timestamp": stamp, "event_type": "request.end", "metadata": figures | metadata}


def test_our_own_log(tmp_path: Path) -> None:
    """Ends become arrivals; other events pass; requests that never counted their prompt are
    reported."""
    path = lines(
        tmp_path / "server.log",
        {"timestamp": "2024-01-01T12:00:00.000Z", "event_type": "log", "message": "hello"},
        ended("2024-01-01T12:00:09.000Z", 100, 8000.0),
        ended("2024-01-01T12:00:05.000Z", 200, 1000.0),
        ended("2024-01-01T12:00:06.000Z", 0, 1.0),
        {"timestamp": "2024-01-01T12:00:06.000Z", "event_type": "request.end"},
    )
    read = read_workload(path)
    assert read.requests == (
        Request(0.0, 100, 7, priority=3),
        Request(3.0, 200, 7, priority=3),
    )
    assert read.problems.counts == {
        "refused before its prompt was counted": 1,
        "missing metadata": 1,
    }


GOOD = {"arrival_s": 1.0, "input_tokens": 5, "output_tokens": 5}


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ("{", "no JSON object"),
        ("[1]", "no JSON object"),
        ({**GOOD, "input_tokens": -5}, "negative input_tokens"),
        ({**GOOD, "input_tokens": None}, "missing input_tokens"),
        ({"arrival_s": 2.0, "input_tokens": 5}, "missing output_tokens"),
        ({**GOOD, "output_tokens": 1.5}, "unreadable output_tokens"),
        ({**GOOD, "arrival_s": "soon"}, "unreadable arrival_s"),
        ({**GOOD, "arrival_s": "nan"}, "unreadable arrival_s"),
        ({**GOOD, "hash_ids": "[1,"}, "unreadable hash_ids"),
        ({**GOOD, "hash_ids": ["x"]}, "unreadable hash_ids"),
        ({**GOOD, "output_tokens": 0}, "empty answer"),
        ({**GOOD, "input_tokens": 0}, "empty prompt"),
        ({**GOOD, "arrival_s": 9000.0}, "gap"),
    ],
)
def test_a_bad_row_is_counted_and_named(row: object, kind: str, tmp_path: Path) -> None:
    """One problem, with the place; the rows around it are read."""
    path = lines(tmp_path / "t.jsonl", GOOD, row, {**GOOD, "arrival_s": 9000.5})
    read = read_workload(path)
    assert read.problems.counts[kind] == 1
    assert ("2" in read.problems.examples[kind][0]) or kind == "gap"
    kept = kind in ("empty answer", "empty prompt", "gap")
    assert len(read.requests) == (3 if kept else 2)
    assert min(min(r.input_tokens, r.output_tokens) for r in read.requests) >= 1


def test_a_clock_that_jumps_back(tmp_path: Path) -> None:
    """A little is sorted in; more makes the rest follow on, and is said."""
    rows = [{**GOOD, "arrival_s": s} for s in (5000.0, 4990.0, 100.0, 101.0)]
    read = read_workload(lines(tmp_path / "t.jsonl", *rows))
    assert [r.arrival_s for r in read.requests] == [0.0, 10.0, 10.0, 11.0]
    assert read.problems.counts == {"clock jumps back": 1}
    assert read.problems.lines() == ["1 × clock jumps back (request 3 by 4900 s: follows on)"]


def test_files_that_are_no_workload(tmp_path: Path) -> None:
    """Missing, not text, unknown columns, empty: one clear line."""
    with pytest.raises(StartupError, match="cannot read"):
        read_workload(tmp_path / "none.csv")
    binary = tmp_path / "b.csv"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StartupError, match="not UTF-8"):
        read_workload(binary)
    with pytest.raises(ConfigError, match="no request in a known format: 2 × unknown columns"):
        read_workload(lines(tmp_path / "x.jsonl", {"a": 1}, {"b": 2}))
    with pytest.raises(ConfigError, match="it is empty"):
        read_workload(lines(tmp_path / "y.jsonl"))


def test_parquet_is_read_like_json_lines(tmp_path: Path) -> None:
    """The same requests, lists of hashes and problems, whichever of the two holds them; a file that
    is none says so."""
    rows = [
        {"arrival_s": 0.0, "input_tokens": 600, "output_tokens": 3, "hash_ids": [7, 8]},
        {"arrival_s": 1.5, "input_tokens": 20, "output_tokens": None, "hash_ids": []},
        {"arrival_s": 2.5, "input_tokens": 20, "output_tokens": 9, "hash_ids": [9]},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    stored = read_workload(tmp_path / "t.parquet")
    plain = read_workload(lines(tmp_path / "t.jsonl", *rows))
    assert stored.requests == plain.requests
    assert [r.output_tokens for r in stored.requests] == [3, 9]
    assert stored.problems.counts == plain.problems.counts
    assert "row 2" in str(stored.problems.examples)
    (tmp_path / "no.parquet").write_bytes(b"PAR1")
    with pytest.raises(StartupError, match="as parquet"):
        read_workload(tmp_path / "no.parquet")


def test_parquet_needs_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the error says which, and what else to do."""
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(StartupError, match="needs the package pyarrow"):
        read_workload(path)


def test_faster_and_cut() -> None:
    """Load scales time alone; a stretch starts at 0 s."""
    asked = workload_of("t", [Request(float(s), 10, 10) for s in range(11)])
    assert asked.requests_per_s == 1.0
    assert asked.at_load(2).requests_per_s == 2.0
    assert [r.arrival_s for r in asked.between(3, 5).requests] == [0.0, 1.0]
    assert len(asked.first(4).requests) == 4
    with pytest.raises(ConfigError, match="above 0"):
        asked.at_load(0)


@pytest.mark.parametrize("mix", sorted(MIXES))
def test_made_workloads_repeat(mix: str) -> None:
    """The same seed gives the same requests, another one others, at about the rate asked for."""
    first = make_workload(mix, requests_per_s=3, duration_s=1200, seed=7)
    assert first == make_workload(mix, requests_per_s=3, duration_s=1200, seed=7)
    assert first != make_workload(mix, requests_per_s=3, duration_s=1200, seed=8)
    assert first.requests_per_s == pytest.approx(3, rel=0.2)
    assert all(r.input_tokens >= 1 and r.output_tokens >= 1 for r in first.requests)


def test_made_lengths_have_the_published_statistics() -> None:
    """Azure's conversation trace: median 1,020 and 129, 90th percentile 2,734 and 424."""
    asked = make_workload("chat", requests_per_s=20, duration_s=1000, seed=1)
    for of, median, p90 in (("input_tokens", 1020, 2734), ("output_tokens", 129, 424)):
        values = sorted(getattr(r, of) for r in asked.requests)
        assert statistics.median(values) == pytest.approx(median, rel=0.05)
        assert values[int(0.9 * len(values))] == pytest.approx(p90, rel=0.05)


def test_conversations_grow() -> None:
    """Each turn's prompt holds all before it; its units begin with the kind's and the last
    turn's."""
    kind = Kind("k", 1.0, Lengths(600, 900), Lengths(300, 500), turns=4.0, system_tokens=1024)
    asked = make_workload((kind,), requests_per_s=2, duration_s=600, seed=2)
    chats: dict[str, list[Request]] = {}
    for request in asked.requests:
        chats.setdefault(request.client, []).append(request)
    assert statistics.mean(len(turns) for turns in chats.values()) == pytest.approx(4.0, rel=0.25)
    openings = {request.units[:2] for request in asked.requests}
    assert len(openings) == 1
    for turns in chats.values():
        for before, after in pairwise(turns):
            known = before.units + before.tail_units
            assert after.units[: len(known)] == known
            assert after.input_tokens > before.input_tokens + before.output_tokens


def test_days_and_bursts() -> None:
    """A day curve moves the load to its peak; bursts make some minutes several times as full."""
    day = make_workload(
        "chat",
        requests_per_s=0.5,
        duration_s=86_400,
        seed=3,
        arrivals=Arrivals(day_swing=0.8, peak_hour=12.0),
    )
    noon = sum(10 * 3600 <= r.arrival_s < 14 * 3600 for r in day.requests)
    night = sum(r.arrival_s < 2 * 3600 or r.arrival_s >= 22 * 3600 for r in day.requests)
    assert noon / night == pytest.approx(1.76 / 0.24, rel=0.25)
    bursty = make_workload(
        "chat",
        requests_per_s=2,
        duration_s=3600,
        seed=3,
        arrivals=Arrivals(bursts_per_hour=10, burst_factor=8),
    )
    minutes = [0] * 60
    for request in bursty.requests:
        minutes[int(request.arrival_s // 60)] += 1
    assert max(minutes) > 2.5 * statistics.median(minutes)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: make_workload("x", requests_per_s=1, duration_s=1), "unknown workload mix x"),
        (lambda: make_workload("chat", requests_per_s=0, duration_s=1), "requests_per_s > 0"),
        (lambda: Lengths(10, 5), "0 < median <= p90"),
        (lambda: Lengths(10, 20, 5, 2), "1 <= least <= most"),
        (lambda: Arrivals(burstiness=0), "burstiness > 0"),
    ],
)
def test_impossible_workloads(make: object, says: str) -> None:
    """Refused by name."""
    with pytest.raises(ConfigError, match=says):
        make()  # type: ignore[operator]


def test_a_long_answer_turns_no_clock_back(tmp_path: Path) -> None:
    """A line is written when a request ends: one of half an hour came half an hour before it."""
    path = lines(
        tmp_path / "server.log",
        ended("2024-01-01T12:00:00.000Z", 100, 1000.0),
        ended("2024-01-01T12:40:00.000Z", 200, 1_800_000.0),
        ended("2024-01-01T12:40:01.000Z", 300, 1000.0),
    )
    read = read_workload(path)
    assert [(r.arrival_s, r.input_tokens) for r in read.requests] == [
        (0.0, 100),
        (601.0, 200),
        (2401.0, 300),
    ]
    assert read.problems.total == 0


def test_what_a_log_cannot_mean_is_counted(tmp_path: Path) -> None:
    """A request that ended before it came is skipped; one of several answers is played as one."""
    path = lines(
        tmp_path / "server.log",
        ended("2024-01-01T12:00:00.000Z", 100, -1000.0),
        ended("2024-01-01T12:00:05.000Z", 200, 1000.0, n=3),
        ended("2024-01-01T12:00:06.000Z", 200, 1000.0, n=1),
    )
    read = read_workload(path)
    assert len(read.requests) == 2
    assert read.problems.lines() == [
        "1 × negative e2e_ms (line 1)",
        "1 × several answers, played as one (line 2)",
    ]


def test_hashes_of_less_than_the_prompt_are_counted(tmp_path: Path) -> None:
    """The rest of the prompt is new to every cache; a prompt's last, partial stretch needs none."""
    rows = [
        {"timestamp": 1000 * place, "input_length": 1500, "output_length": 9, "hash_ids": hashes}
        for place, hashes in enumerate(([1, 2], [1], [], [1, 2, 3]))
    ]
    read = read_workload(lines(tmp_path / "t.jsonl", *rows))
    assert len(read.requests) == 4
    assert read.problems.lines() == [
        "1 × hashes of less than the prompt (request 2: the rest is new)"
    ]


def test_hashes_too_deep_to_be_read_are_counted(tmp_path: Path) -> None:
    """Whatever stands in the column."""
    path = tmp_path / "t.csv"
    path.write_text(
        f'arrival_s,input_tokens,output_tokens,hash_ids\n0,5,5,"{"[" * 100_000}"\n1,5,5,\n'
    )
    read = read_workload(path)
    assert (len(read.requests), read.problems.counts) == (1, {"unreadable hash_ids": 1})


def test_packed_logs_are_said_to_be(tmp_path: Path) -> None:
    """As rotation leaves them."""
    with pytest.raises(StartupError, match="it is packed, by its name: unpack it first"):
        read_workload(tmp_path / "server.log.1.gz")


def test_a_coarse_clock_fills_no_pause(tmp_path: Path) -> None:
    """What came in the last tick before ten hours of nothing came in that tick."""
    moments = [place // 4 for place in range(40)] + [36_000 + place // 4 for place in range(40)]
    read = read_workload(lines(tmp_path / "t.jsonl", *({**GOOD, "arrival_s": m} for m in moments)))
    assert set(read.problems.counts) == {"coarse clock", "gap"}
    assert read.requests[39].arrival_s < 9 + 10
    assert read.requests[40].arrival_s >= 36_000


@pytest.mark.parametrize("factor", [1e-300, 1e300])
def test_loads_beyond_all_sense_are_refused(factor: float) -> None:
    """Moments could no longer be told apart."""
    asked = workload_of("t", [Request(float(s), 10, 10) for s in range(11)])
    with pytest.raises(ConfigError, match=r"t: played 1e.300 times as fast it would be over in"):
        asked.at_load(factor)


def test_rare_requests_take_no_time_to_make() -> None:
    """Some in a thousand million years: nothing is counted off second by second."""
    made = make_workload("chat", requests_per_s=1e-15, duration_s=3e16, seed=1)
    assert 5 < len(made.requests) < 100
