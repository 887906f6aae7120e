"""`gpt-oss-server plan`: from flags to a layout, its file and its commands."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
import yaml
from sim_loops import SERVED
from test_sim_calibration_file import WHOLE

from gpt_oss_server import cli
from gpt_oss_server.commands import plan as command
from gpt_oss_server.simulate.calibrate.calibration_file import as_yaml
from gpt_oss_server.simulate.calibrate.served import OWN
from gpt_oss_server.simulate.cost.gpu_types import gpu_type

PAGE = Path(__file__).parents[3] / "docs" / "planning.md"
QUICK = ("--workload", "chat", "--budget-s", "3", "--jobs", "1", "--seeds", "2")
FEW = ("--policy", "earliest_completion", "--policy", "least_request")


def plan(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Exit status, stdout, stderr."""
    status = cli.main(["plan", *argv])
    return (status, *capsys.readouterr())


def a_log(path: Path, requests: int = 60) -> Path:
    """A request a second, in this project's own columns."""
    rows = "".join(f"{i}.0,{500 + 40 * (i % 7)},{20 + i % 5}\n" for i in range(requests))
    path.write_text(f"arrival_s,input_tokens,output_tokens\n{rows}")
    return path


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow this machine is, the budget is not used up: figures do not hang on it."""
    monkeypatch.setattr("gpt_oss_server.commands.plan.time.monotonic", lambda: 0.0)


@pytest.mark.usefixtures("unhurried")
def test_a_log_and_a_number_of_gpus_become_a_layout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it bears, what it does at its own pace, the fewest GPUs, the file, the commands; the
    same again from the same inputs."""
    log = a_log(tmp_path / "log.csv")
    files = ("--yaml", str(tmp_path / "fleet.yaml"), "--json", str(tmp_path / "plan.json"))
    argv = ("--gpus", "2@h100", "--current", "1xtp1", *QUICK, *FEW, "--workload", str(log), *files)
    status, out, err = plan(capsys, *argv)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "gpt-oss-120b on 2 h100, log: 60 requests in 59 s (1.00/s)"
    assert lines[1].startswith("  played: all of it, ")
    assert any("← proposed" in line for line in lines)
    assert any(
        line.startswith("  What runs today, 1×tp1 with least_request, bears ") for line in lines
    )
    assert "At 1.00 requests/s (its own pace):" in lines
    assert any(
        line.startswith("Fewest GPUs that keep the promises at this pace, in what is played: 1 (")
        for line in lines
    )
    serve = "gpt-oss-server serve --model 120b --gpu-mode tensor --gpus 2"
    assert f"  CUDA_VISIBLE_DEVICES=0,1 {serve}" in out
    fleet = yaml.safe_load((tmp_path / "fleet.yaml").read_text())
    assert [(p["name"], p["gpu_mode"], p["replicas"]) for p in fleet["pools"]] == [
        ("h100-tp2", "tensor", 1)
    ]
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["fleet"] == fleet
    assert written["proposed"]["layout"] == "1×h100-tp2"
    assert written["proposed"]["bears_per_s"] > 5
    assert written["fewest"]["gpus"] == 1
    assert [one["gpus"] for one in written["at_rate"]][-1] == 1
    assert written["cut"] == []
    assert written["does_not_fit"] == []
    costs = written["proposed"]["costs_at_that_load"]
    assert costs["per_million_output"] == pytest.approx(
        costs["gpu_hours_per_million_output"] * 3.35
    )
    assert plan(capsys, *argv)[1] == out


@pytest.mark.usefixtures("unhurried")
def test_what_does_not_fit_says_by_how_much(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One L40S is too small for the model, two hold it."""
    path = tmp_path / "plan.json"
    status, out, _ = plan(capsys, "--gpus", "2@l40s", *QUICK, *FEW, "--json", str(path))
    assert status == 0
    (lacking,) = json.loads(path.read_text())["does_not_fit"]
    assert lacking["shape"] == "l40s-tp1"
    assert lacking["missing_bytes"] > 65_000_000_000 - 0.9 * gpu_type("l40s").memory_bytes
    line = f"  Does not fit: l40s-tp1, {lacking['missing_bytes']:,} bytes are missing on each GPU."
    assert line in out.splitlines()


@pytest.mark.usefixtures("unhurried")
def test_processes_change_no_figure(capsys: pytest.CaptureFixture[str]) -> None:
    """One or two: the same document but for their number."""
    documents = []
    for jobs in ("1", "2"):
        argv = ("--gpus", "1@h100", *QUICK, *FEW, "--jobs", jobs, "--json", "-", "--price", "none")
        status, out, _ = plan(capsys, *argv)
        assert status == 0
        documents.append(json.loads(out))
    for document in documents:
        for name in ("processes", "inputs", "command"):
            del document[name]
    assert documents[0] == documents[1]
    assert documents[0]["prices"] is None
    assert documents[0]["proposed"]["draws_per_s"] != []


@pytest.mark.usefixtures("unhurried")
def test_only_the_file_goes_to_stdout_where_that_is_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """For a pipe: nothing but YAML. vLLM's ranks keep MXFP4, so that two GPUs suffice."""
    argv = ("--gpus", "2@h100", "--engine", "vllm", *QUICK, *FEW, "--yaml", "-")
    status, out, _ = plan(capsys, *argv)
    assert status == 0
    fleet = yaml.safe_load(out)
    assert (fleet["model"], fleet["served_by"]) == ("openai/gpt-oss-120b", "vllm")
    assert all(pool["engine"]["prefill_order"] == "fcfs" for pool in fleet["pools"])


def test_a_budget_that_is_over_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """One line, before any answer."""
    status, _, err = plan(capsys, "--gpus", "2@h100", *QUICK[:2], "--budget-s", "0.001", *FEW)
    assert status == 1
    assert err.startswith("error: the time was over before any layout's load was found")


@pytest.mark.parametrize(
    ("argv", "status", "says"),
    [
        ([], 2, "the following arguments are required: --gpus"),
        (["--gpus", "0@h100"], 2, "--gpus 0@h100: at least one GPU is needed"),
        (["--gpus", "8@v100"], 2, "unknown GPU type v100: use one of a100, "),
        (["--gpus", "8", "--price", "h100=-2"], 2, "--price h100: a price must not be negative"),
        (["--gpus", "8", "--policy", "best"], 2, "unknown policy best: use one of round_robin"),
        (["--gpus", "8", "--seeds", "0"], 2, "--seeds must be at least 1, not 0"),
        (["--gpus", "8", "--budget-s", "0"], 2, "--budget-s must be above 0, not 0"),
        (["--gpus", "8", "--jobs", "0"], 2, "--jobs must be at least 1, not 0"),
        (["--gpus", "8", "--jobs", "999"], 2, "--jobs must be at most 256, not 999"),
        (["--gpus", "8", "--seed", "-1"], 2, "--seed must be at least 0, not -1"),
        (["--gpus", "8", "--load", "2"], 2, "--load is a multiple of a record's own pace"),
        (["--gpus", "8", "--admission", "engine"], 2, "--admission engine: this server reserves"),
        (
            ["--gpus", "8", "--engine", "vllm", "--prefill-order", "shortest"],
            2,
            "--prefill-order shortest: vLLM takes all that come, in order of arrival",
        ),
        (
            ["--gpus", "8", "--engine", "vllm", "--max-waiting", "9"],
            2,
            "--max-waiting 9: vLLM takes all that come, in order of arrival",
        ),
        (
            ["--gpus", "8", "--current", "2xtp2-pp2"],
            2,
            "this server's modes are tensor or pipeline",
        ),
        (["--gpus", "8", "--rate", "0"], 2, "--rate must be above 0, not 0"),
        (["--gpus", "8", "--load", "0"], 2, "--load must be above 0, not 0"),
        (["--gpus", "8", "--machine-gpus", "0"], 2, "a machine has at least one GPU, not 0"),
        (["--gpus", "8", "--workload", "none.csv"], 1, "cannot read none.csv: No such file"),
        (["--gpus", "8", "--workload", "nothing"], 2, "--workload nothing: no file, and no mix"),
        (["--gpus", "8", "--slo", "inf:1"], 2, "--slo inf:1: write TOKENS:TTFT_S:TPOT_S"),
        (["--gpus", "8", "--current", "8xtp3"], 2, "64 attention heads cannot be split over 3"),
        (["--gpus", "8", "--current", "8xtp1/best"], 2, "unknown policy best"),
        (["--gpus", "8", "--current", "x"], 2, "--current x: write COUNTxtpN"),
        (["--gpus", "8", "--yaml", "-", "--json", "-"], 2, "only one of --yaml and --json"),
        (
            ["--gpus", "1@rtx4090"],
            1,
            "gpt-oss-120b fits none of the layouts on these GPUs; the nearest, rtx4090-tp1, lacks ",
        ),
        (
            ["--gpus", "8", "--slo", "2048:0.001:0.05,inf:10:0.05"],
            2,
            "--slo: no layout keeps what class short is promised (first token within 0.001 s",
        ),
    ],
)
def test_one_line_for_what_cannot_be(
    argv: list[str], status: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The setting at fault is named, on one line; no traceback."""
    found, _, err = plan(capsys, *argv)
    assert found == status
    assert err.startswith(f"error: {says}")
    assert err.count("\n") == 1


def test_an_empty_log_is_no_workload(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And one with two requests is too little to plan by."""
    empty = tmp_path / "empty.csv"
    empty.write_text("arrival_s,input_tokens,output_tokens\n")
    status, _, err = plan(capsys, "--gpus", "8", "--workload", str(empty))
    assert (status, err.count("\n")) == (2, 1)
    assert "has no request in a known format: it is empty" in err
    status, _, err = plan(capsys, "--gpus", "8", "--workload", str(a_log(empty, 2)))
    assert status == 2
    assert err == "error: empty has 2 requests: at least 20 are needed to plan by\n"


def test_a_calibration_is_of_the_server_that_is_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was measured on one is no figure for the other, which admits differently."""
    for engine, other in (("vllm", OWN), ("own", "vllm")):
        path = tmp_path / f"{other}.yaml"
        path.write_text(as_yaml(replace(WHOLE, served=replace(SERVED, server=other))))
        argv = ("--gpus", "1", "--calibration", str(path), "--engine", engine)
        status, _, err = plan(capsys, *argv)
        said = f"error: --engine {engine}: {path} was measured on another server ({other})\n"
        assert (status, err) == (2, said)


def test_every_flag_is_on_the_page() -> None:
    """docs/planning.md lists those that there are, and no others, with their defaults."""
    parser = argparse.ArgumentParser(add_help=False)
    command.add_arguments(parser)
    rows = re.findall(r"^\| (`--[^|]+) \|[^|]*\|([^|]*)\|$", PAGE.read_text(), re.M)
    told = {
        flag: default.strip(" `")
        for flags, default in rows
        for flag in re.findall(r"--[a-z-]+", flags)
    }
    known = {action.option_strings[0]: action.default for action in parser._actions}
    assert set(told) == set(known)
    for flag in ("--machine-gpus", "--engine", "--workload", "--seeds", "--seed", "--budget-s"):
        assert told[flag] == str(known[flag]).removesuffix(".0")


@pytest.mark.usefixtures("unhurried")
def test_the_commands_that_are_printed_can_be_typed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`serve` takes each, with the engine's limits that were simulated; `simulate` plays the same
    requests on the same replicas, of a type that only a file knows, at the pace that was asked
    for."""
    gpu = tmp_path / "mine.yaml"
    packaged = resources.files("gpt_oss_server.simulate.cost") / "gpus" / "h200.yaml"
    gpu.write_text(packaged.read_text().replace("name: h200", "name: mine"))
    log = a_log(tmp_path / "log.csv")
    limits = ("--max-num-seqs", "32", "--max-batch-tokens", "1024", "--max-wait-s", "5")
    argv = ("--gpus", f"3@{gpu}", *QUICK, *FEW, *limits, "--workload", str(log), "--rate", "2")
    status, out, _ = plan(capsys, *argv, "--price", "none")
    assert status == 0
    lines = [line.strip() for line in out.splitlines()]
    serves = [shlex.split(line.removesuffix("&")) for line in lines if " serve --model " in line]
    assert serves
    for words in serves:
        given = vars(cli.build_parser().parse_args(words[2:]))
        assert (str(given["max_num_seqs"]), str(given["max_batch_tokens"])) == ("32", "1024")
        assert float(given["max_wait_s"]) == 5.0
    closer = shlex.split(lines[lines.index("Look closer:") + 1])
    assert closer[:2] == ["gpt-oss-server", "simulate"]
    assert cli.main([*closer[1:], "--json", "-"]) == 0
    played = json.loads(capsys.readouterr().out)
    assert played["workload"]["requests_per_s"] == pytest.approx(2.0)
    assert {pool["gpu"]["name"] for pool in played["inputs"]["fleet"]["pools"]} == {"mine"}
    assert played["inputs"]["fleet"]["pools"][0]["engine"]["max_num_seqs"] == 32


def test_prompts_that_no_replica_holds_are_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not only that the promise to their class cannot be kept."""
    log = a_log(tmp_path / "log.csv", 40)
    log.write_text(log.read_text() + "".join(f"{40 + i}.0,150000,10\n" for i in range(3)))
    status, _, err = plan(capsys, "--gpus", "2@h100", *QUICK, "--workload", str(log))
    assert (status, err.count("\n")) == (2, 1)
    assert "--slo: no layout keeps what class long is promised" in err
    assert "; 3 of 3 that were looked at are longer than the 131,072 tokens that any" in err


@pytest.mark.usefixtures("unhurried")
def test_the_fewest_of_a_type_that_needs_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One L40S holds nothing: it is one of the parts that are gone through for the fewest."""
    log = a_log(tmp_path / "log.csv")
    status, out, err = plan(capsys, "--gpus", "4@l40s", *QUICK, *FEW, "--workload", str(log))
    assert (status, err) == (0, "")
    assert "Fewest GPUs that keep the promises at this pace, in what is played: 2 (1×tp2, " in out


@pytest.mark.usefixtures("unhurried")
def test_no_part_is_said_to_do_what_all_gpus_do_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A burst that only the whole record has: what all GPUs do not keep, no fewer do."""
    log = tmp_path / "log.csv"
    rows = "".join(f"{0 if i < 900 else i},100,10\n" for i in range(1900))
    log.write_text(f"arrival_s,input_tokens,output_tokens\n{rows}")
    status, out, err = plan(capsys, "--gpus", "1@h100", *QUICK, *FEW, "--workload", str(log))
    assert (status, err) == (0, "")
    assert "The promises are not kept at this pace: 1 h100 are too few." in out
    assert "Fewest GPUs" not in out
