"""`gpt-oss-server simulate`: from flags to a table and JSON."""

from __future__ import annotations

import json
from pathlib import Path

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
    figures = written["policies"]["earliest_completion"]
    assert figures["requests"]["served"] == written["workload"]["requests"] > 50
    assert sum(replica["requests"] for replica in figures["replicas"]) > 50
    status, out, _ = simulate(capsys, *QUICK, "--json", "-")
    assert (status, json.loads(out)["policies"]) == (0, written["policies"])


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


@pytest.mark.parametrize(
    ("argv", "status", "says"),
    [
        (["--pools", "four"], 2, "--pools four: write COUNTxtpN, COUNTxppN or COUNTxtpN@GPU"),
        (["--pools", "0xtp1"], 2, "a pool needs at least one replica, not 0"),
        (["--gpu", "v100"], 2, "unknown GPU type v100: use one of a100, "),
        (["--gpu", "l40s"], 1, "gpt_oss does not fit l40s-tp1: "),
        (["--pools", "1xtp3"], 2, "64 attention heads cannot be split over 3"),
        (["--policy", "best"], 2, "unknown policy best: use one of round_robin"),
        (["--slo", "2048:2"], 2, "--slo 2048:2: write TOKENS:TTFT_S:TPOT_S"),
        (["--slo", "2048:2:0.05"], 2, "SLO classes need rising up_to_tokens, the last one inf"),
        (["--workload", "nothing"], 2, "--workload nothing: no file, and no mix (chat, turns"),
        (["--workload", "none.csv"], 1, "cannot read none.csv: No such file or directory"),
        (["--load", "0"], 2, "a load factor must be above 0"),
        (["--rate", "0"], 2, "a workload needs requests_per_s > 0"),
        (["--json", "/nowhere/x.json", *QUICK], 1, "cannot write /nowhere/x.json"),
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
