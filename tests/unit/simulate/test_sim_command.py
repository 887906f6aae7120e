"""`gpt-oss-server simulate`: from flags to a table and JSON."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from gpt_oss_server import cli

QUICK = ("--pools", "2xtp1+1xtp2", "--rate", "4", "--duration", "20", "--workload", "chat")


def simulate(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Exit status, stdout, stderr."""
    status = cli.main(["simulate", *argv])
    return (status, *capsys.readouterr())


def test_a_table_per_policy_and_class(capsys: pytest.CaptureFixture[str]) -> None:
    """The fleet, the workload, and each policy's classes; the same again from the same seed."""
    argv = (*QUICK, "--policy", "earliest_completion", "--policy", "round_robin")
    status, out, err = simulate(capsys, *argv)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("2×h100-tp1 + 1×h100-tp2 (4 GPUs), chat: ")
    assert [line.split()[:2] for line in lines[2:6]] == [
        ["earliest_completion", "short"],
        ["earliest_completion", "long"],
        ["round_robin", "short"],
        ["round_robin", "long"],
    ]
    assert lines[6].startswith("earliest_completion: goodput ")
    assert simulate(capsys, *argv)[1] == out


def test_json_holds_inputs_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Enough to run it again, and what came of it."""
    path = tmp_path / "out.json"
    assert simulate(capsys, *QUICK, "--json", str(path))[0] == 0
    written = json.loads(path.read_text())
    assert written["inputs"]["pools"] == "2xtp1+1xtp2"
    assert written["inputs"]["seed"] == 0
    assert written["inputs"]["slo"]["classes"][1]["up_to_tokens"] is None
    assert [pool["replicas"] for pool in written["inputs"]["fleet"]["pools"]] == [2, 1]
    assert written["inputs"]["fleet"]["pools"][0]["gpu"]["bandwidth_bytes_s"] == 3.35e12
    assert written["inputs"]["fleet"]["pools"][0]["efficiency"]["overhead"] > 0
    assert written["inputs"]["calibrated"] is None
    assert written["command"] == (
        "gpt-oss-server simulate --pools 2xtp1+1xtp2 --workload chat --rate 4.0 --duration 20.0"
    )
    assert set(written["versions"]) == {"gpt-oss-server", "Python", "numpy"}
    figures = written["policies"]["earliest_completion"]
    assert figures["requests"]["served"] == written["workload"]["requests"] > 50
    assert sum(replica["requests"] for replica in figures["replicas"]) > 50
    status, out, _ = simulate(capsys, *QUICK, "--json", "-")
    assert (status, json.loads(out)["policies"]) == (0, written["policies"])


def test_the_command_that_is_written_repeats_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Flags of all kinds come back: the same digest, the same figures."""
    path = tmp_path / "a b.csv"
    path.write_text(
        "arrival_s,input_tokens,output_tokens\n" + "".join(f"{n},900,90\n" for n in range(40))
    )
    argv = (
        *("--workload", str(path), "--pools", "2xtp1", "--policy", "random", "--seed", "3"),
        *("--policy", "least_request", "--fail", "1@5+10", "--fail", "0@30", "--max-waiting", "9"),
        *("--sample-every", "0.5", "--load", "2.0"),
    )
    first = json.loads(simulate(capsys, *argv, "--json", "-")[1])
    words = shlex.split(first["command"])
    assert words[:2] == ["gpt-oss-server", "simulate"]
    assert json.loads(simulate(capsys, *words[2:], "--json", "-")[1]) == first


def test_failures_come_when_they_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """The only replica is down for a while: what comes then fails, what comes later is served."""
    argv = ("--workload", "chat", "--rate", "2", "--duration", "60", "--json", "-")
    whole = json.loads(simulate(capsys, *argv, "--fail", "0@20+20")[1])
    figures = whole["policies"]["earliest_completion"]
    assert whole["inputs"]["fleet"]["failures"] == [{"replica": 0, "at_s": 20.0, "for_s": 20.0}]
    failed = figures["ends"]["counts"]["failed"]
    moments = [figures["ends"]["bin_s"] * (place + 1) for place, n in enumerate(failed) if n]
    assert figures["requests"]["failed"] == sum(failed) > 20
    assert moments[0] > 10
    assert moments[-1] < 42
    for_good = json.loads(simulate(capsys, *argv, "--fail", "0@20")[1])
    assert for_good["inputs"]["fleet"]["failures"][0]["for_s"] is None
    lost = for_good["policies"]["earliest_completion"]["requests"]["failed"]
    assert lost > figures["requests"]["failed"]


def test_clients_of_a_closed_loop(capsys: pytest.CaptureFixture[str]) -> None:
    """No more requests at a time than clients: the head says so, and it takes its time."""
    status, out, _ = simulate(capsys, *QUICK, "--clients", "1", "--sample-every", "1")
    assert (status, out.splitlines()[0].endswith(", one at a time")) == (0, True)
    found = json.loads(simulate(capsys, *QUICK, "--clients", "1", "--json", "-")[1])
    figures = found["policies"]["earliest_completion"]
    assert figures["end_s"] == pytest.approx(sum_of_e2e(found), rel=0.05)
    assert max(figures["samples"]["waiting_most"]) <= 1


def sum_of_e2e(found: dict[str, Any]) -> float:
    """About the time that all requests take one after the other: means from curves."""
    curves = found["policies"]["earliest_completion"]["curves"]
    classes = found["policies"]["earliest_completion"]["classes"]
    return sum(one["requests"] * sum(curves[one["name"]]["e2e_s"][:101]) / 101 for one in classes)


def test_looking_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """How often the fleet is sampled is seen in the samples alone."""
    runs = [
        json.loads(simulate(capsys, *QUICK, "--json", "-", "--sample-every", every)[1])
        for every in ("0.1", "5")
    ]
    often, seldom = (run["policies"]["earliest_completion"] for run in runs)
    assert often.pop("samples")["bin_s"] < seldom.pop("samples")["bin_s"]
    assert often == seldom


def test_sweep_points_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    """Every load tried, by load; the knee is the largest that is borne below one that is not."""
    argv = ("--workload", "chat", "--rate", "10", "--duration", "10", "--sweep", "--json", "-")
    figures = json.loads(simulate(capsys, *argv)[1])["policies"]["earliest_completion"]
    points = figures["sweep"]["points"]
    assert [p["factor"] for p in points] == sorted(p["factor"] for p in points)
    (knee,) = [p for p in points if p["factor"] == figures["sweep"]["knee_factor"]]
    assert (knee["met"], knee["requests_per_s"]) == (True, figures["capacity_per_s"])
    assert all(share >= 0.95 for share in knee["share_met"].values())
    assert any(not p["met"] for p in points)


def test_several_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mix is made anew with the next seeds; of a record, variants are drawn."""
    seeds = [
        json.loads(simulate(capsys, *QUICK, "--seed", seed, "--json", "-")[1])["policies"]
        for seed in ("5", "6")
    ]
    goodputs = [found["earliest_completion"]["goodput_per_s"] for found in seeds]
    status, out, _ = simulate(capsys, *QUICK, "--seed", "5", "--seeds", "2")
    assert status == 0
    assert "over 2 draws of the mix:" in out.splitlines()
    assert out.splitlines()[-1].startswith(
        f"earliest_completion: goodput {sum(goodputs) / 2:.2f}/s ("
    )
    path = tmp_path / "t.csv"
    path.write_text(
        "arrival_s,input_tokens,output_tokens\n" + "".join(f"{n},{n + 9},9\n" for n in range(40))
    )
    found = json.loads(simulate(capsys, "--workload", str(path), "--seeds", "3", "--json", "-")[1])
    repeats = found["policies"]["earliest_completion"]["repeats"]
    assert (repeats["runs"], repeats["independent"]) == (3, False)


def test_the_page_has_the_terminal_s_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every figure of the terminal's table is in the page's, text for text."""
    path = tmp_path / "page.html"
    status, out, _ = simulate(capsys, *QUICK, "--html", str(path))
    assert status == 0
    html = path.read_text(encoding="utf-8")
    cells = re.findall(r"<data [^>]*>([^<]*)</data>", html)
    for line in out.splitlines()[2:4]:
        figures = re.findall(r"\d[\d.]* (?:s|ms|%)", line)
        assert len(figures) == 7
        assert set(figures) <= set(cells), line
    status, stdout, _ = simulate(capsys, *QUICK, "--html", "-")
    assert (status, stdout) == (0, html)


def test_what_is_wrong_with_the_input_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bad rows are counted in the head; requests that no replica holds in the last lines."""
    path = tmp_path / "t.csv"
    path.write_text(
        "arrival_s,input_tokens,output_tokens\n0,100,10\n1,-4,10\n2,200000,10\n3,100,10\n"
    )
    status, out, _ = simulate(capsys, "--workload", str(path))
    assert status == 0
    assert "  input: 1 × negative input_tokens (line 3)\n" in out
    assert out.rstrip().endswith("1 refused")


def test_a_sweep_finds_the_load_that_is_borne(capsys: pytest.CaptureFixture[str]) -> None:
    """One line per policy."""
    argv = ("--workload", "chat", "--rate", "10", "--duration", "10", "--sweep")
    status, out, _ = simulate(capsys, *argv)
    assert status == 0
    assert "earliest_completion: bears " in out.splitlines()[-1]


def test_hindsight_is_no_worse_than_any_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under a load that is too much for all: the best of them, at least, in text and JSON."""
    path = tmp_path / "out.json"
    argv = ("--pools", "2xtp1+1xtp2", "--rate", "30", "--duration", "20", "--hindsight")
    status, out, _ = simulate(capsys, *argv, "--policy", "all", "--json", str(path))
    assert status == 0
    written = json.loads(path.read_text())
    each = [figures["goodput_per_s"] for figures in written["policies"].values()]
    best_per_s = written["hindsight_goodput_per_s"]
    assert 0 < max(each) <= best_per_s
    assert min(each) < best_per_s
    assert "in hindsight, knowing every answer's length: goodput " in out


def test_how_requests_of_a_mix_come(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three patterns, three workloads; a day's nights are quieter than its afternoons."""
    written = {}
    for pattern in ("poisson", "bursty", "day"):
        path = tmp_path / f"{pattern}.json"
        argv = ("--workload", "chat", "--rate", "0.02", "--duration", "86400")
        status = simulate(capsys, *argv, "--arrivals", pattern, "--json", str(path))[0]
        assert status == 0
        written[pattern] = json.loads(path.read_text())
    assert len({one["workload"]["sha256"] for one in written.values()}) == 3
    ends = written["day"]["policies"]["earliest_completion"]["ends"]["counts"]["as_promised"]
    assert sum(ends[: len(ends) // 4]) < 0.6 * sum(ends[len(ends) // 2 : 3 * len(ends) // 4])


@pytest.mark.parametrize(
    ("argv", "status", "says"),
    [
        (["--pools", "four"], 2, "--pools four: write COUNTxtpN, COUNTxppN or COUNTxtpN@GPU"),
        (["--clients", "2", "--hindsight", *QUICK], 2, "--hindsight compares what comes at"),
        (["--arrivals", "day", "--workload", __file__], 2, "--arrivals is of a mix"),
        (["--pools", "0xtp1"], 2, "--pools 0xtp1: a pool needs at least one replica"),
        (["--gpu", "v100"], 2, "unknown GPU type v100: use one of a100, "),
        (["--gpu", "l40s"], 1, "gpt_oss does not fit l40s-tp1: "),
        (["--pools", "1xtp3"], 2, "64 attention heads cannot be split over 3"),
        (["--policy", "best"], 2, "unknown policy best: use one of round_robin"),
        (["--slo", "2048:2"], 2, "--slo 2048:2: write TOKENS:TTFT_S:TPOT_S"),
        (["--slo", "2048:2:0.05"], 2, "--slo 2048:2:0.05: SLO classes need rising up_to_tokens"),
        (["--workload", "nothing"], 2, "--workload nothing: no file, and no mix (chat, turns"),
        (["--workload", "none.csv"], 1, "cannot read none.csv: No such file or directory"),
        (["--load", "0"], 2, "--load must be above 0, not 0"),
        (["--rate", "0"], 2, "--rate must be above 0, not 0"),
        (["--fail", "one@5"], 2, "--fail one@5: write REPLICA@AT or REPLICA@AT+FOR, in seconds"),
        (["--fail", "1@5"], 2, "no replica 1: the fleet has 1"),
        (["--clients", "0"], 2, "--clients must be at least 1, not 0"),
        (["--clients", "2", "--sweep"], 2, "--sweep varies how fast requests come; with --clients"),
        (["--seeds", "0"], 2, "--seeds must be at least 1, not 0"),
        (["--seeds", "1001"], 2, "--seeds must be at most 1000, not 1001"),
        (["--seed", "-1"], 2, "--seed must be at least 0, not -1"),
        (["--load", "1e-300"], 2, "mixed: played 1e-300 times as fast it would be over in"),
        (["--load", "1e300"], 2, "mixed: played 1e+300 times as fast it would be over in"),
        (["--duration", "1e12", "--rate", "1e-10"], 2, "mixed: played 1 times as fast"),
        (["--slo", "inf:inf:0.05"], 2, "--slo inf:inf:0.05: a promise of any time is none"),
        (["--slo", "inf:1:1e-300"], 2, "--slo: nobody is promised less than 1e-06 s"),
        (["--fail", "0@" + "9" * 400], 2, "--fail 0@999"),
        (["--pools", "9" * 5000 + "xtp1"], 2, "--pools 999"),
        (["--sample-every", "0"], 2, "--sample-every must be above 0, not 0"),
        (["--json", "-", "--html", "-"], 2, "only one of --json and --html can go to stdout"),
        (["--html", "/nowhere/x.html", *QUICK], 1, "--html: cannot write /nowhere/x.html: "),
        (["--json", "/nowhere/x.json", *QUICK], 1, "--json: cannot write /nowhere/x.json"),
    ],
)
def test_one_line_for_what_cannot_be(
    argv: list[str], status: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The setting at fault is named, on one line; no traceback."""
    found, _, err = simulate(capsys, *argv)
    assert found == status
    assert err.startswith(f"error: {says}")
    assert err.count("\n") == 1


def a_record(path: Path, *moments: float) -> Path:
    """A short request at each moment."""
    rows = "".join(f"{moment},100,10\n" for moment in moments)
    path.write_text(f"arrival_s,input_tokens,output_tokens\n{rows}")
    return path


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--rate", "5"), "--rate is of a mix; a record has its own: --load plays it faster"),
        (("--duration", "60"), "--duration is of a mix; a record has its own: --load"),
        (("--rate", "nan"), "--rate must be a finite number, not nan"),
        (("--seeds", "2"), "--seeds: all requests of t come at one moment: it has no variants"),
        (("--json", "FILE"), "--workload and --json are the same file, "),
    ],
)
def test_what_a_record_has_of_its_own_is_not_asked_of_it(
    argv: tuple[str, ...], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said, not passed over; and the record is never written over."""
    path = a_record(tmp_path / "t.csv", 3.0, 3.0)
    before = path.read_text()
    given = [str(path) if word == "FILE" else word for word in argv]
    status, _, err = simulate(capsys, "--workload", str(path), *given)
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: {says}")
    assert path.read_text() == before


def test_classes_of_long_prompts_keep_names_of_their_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Bounds of seven digits that differ in the last one are two classes."""
    slo = "1048576:2:0.05,1048577:2:0.05,inf:10:0.05"
    found = json.loads(simulate(capsys, *QUICK, "--slo", slo, "--json", "-")[1])
    names = [one["name"] for one in found["inputs"]["slo"]["classes"]]
    assert names == ["≤1048576", "≤1048577", "≤inf"]
    assert set(found["policies"]["earliest_completion"]["curves"]) == set(names)


def test_names_that_are_no_text_can_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file's name is bytes: what of it is no text is written as what it is."""
    path = a_record(Path(os.fsdecode(os.fsencode(tmp_path / "t") + b"\xff.csv")), 0.0, 1.0)
    status, out, err = simulate(capsys, "--workload", str(path), "--html", "-")
    assert (status, err) == (0, "")
    assert "t\\udcff" in out


def test_a_replica_that_is_back_at_once_is_not_drawn_as_dead(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A failure of no time is none; of some, it is."""
    pages = [simulate(capsys, *QUICK, "--fail", f"0@5+{s}", "--html", "-")[1] for s in (0, 5)]
    assert ["<title>down</title>" in page for page in pages] == [False, True]


@pytest.mark.parametrize(
    ("errors", "status", "says"),
    [(None, 0, "2\\xd7h100-tp1"), (errno.ENOSPC, 1, "error: cannot write to stdout: No space")],
)
def test_a_poor_terminal_is_no_bug(
    errors: int | None,
    status: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Letters that it has not are spelt out; that nothing more can be written is said."""

    class Poor(io.TextIOWrapper):
        def flush(self) -> None:
            if errors is not None:
                raise OSError(errors, os.strerror(errors))
            super().flush()

    stdout = Poor(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stdout)
    found = cli.main(["simulate", *QUICK])
    errors = None
    stdout.flush()
    stdout.seek(0)
    assert found == status
    assert says in stdout.read() + capsys.readouterr().err
