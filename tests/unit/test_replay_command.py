"""`gpt-oss-server replay`: decisions made again from a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpt_oss_server import cli
from gpt_oss_server.facts import MB_BYTES, FleetView, ReplicaView, RequestFacts
from gpt_oss_server.routing import RoutingConfig, TriggerPolicy
from gpt_oss_server.routing.replay import DecisionRecord, to_line

FLEET = FleetView(
    gpu_mode="single",
    now_s=100.0,
    machine_gpus=1,
    replicas=(
        ReplicaView(
            id="local",
            gpus=1,
            measured_at_s=100.0,
            kv_capacity_bytes=10_000 * MB_BYTES,
            kv_free_bytes=10_000 * MB_BYTES,
            capacity_tokens=400_000,
            load_tokens=0,
        ),
    ),
)


def line(request_id: str, input_tokens: int, kv_mb: int) -> str:
    """A decision as the server writes it."""
    facts = RequestFacts(
        request_id=request_id,
        input_tokens=input_tokens,
        max_output_tokens=100,
        predicted_kv_bytes=kv_mb * MB_BYTES,
    )
    config = RoutingConfig()
    decision = TriggerPolicy(config).decide(facts, FLEET)
    return to_line(DecisionRecord(facts=facts, fleet=FLEET, config=config, decision=decision))


@pytest.fixture
def decisions(tmp_path: Path) -> Path:
    """Three decisions: small, long input, much KV; a blank line does no harm."""
    path = tmp_path / "decisions.jsonl"
    lines = [line("small", 5000, 120), line("long", 9000, 220), "", line("wide", 6000, 7000)]
    path.write_text("\n".join(lines) + "\n")
    return path


def replay(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Exit status, stdout, stderr."""
    status = cli.main(["replay", *argv])
    return (status, *capsys.readouterr())


def test_the_same_thresholds_give_the_same_decisions(
    decisions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 0, the triggers before and after, and that nothing differs."""
    assert replay(capsys, str(decisions)) == (
        0,
        "3 decisions\n"
        "trigger             recorded  replayed\n"
        "large_input                1         1\n"
        "large_kv                   1         1\n"
        "none                       1         1\n"
        "0 of 3 differ, 0 rerouted\n",
        "",
    )


def test_what_if(decisions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other thresholds: what would have been, request by request; a difference is no failure."""
    status, out, err = replay(
        capsys, str(decisions), "--set", "large_input_tokens=5500", "--set", "large_kv_mb=8000"
    )
    assert (status, err) == (0, "")
    assert out.splitlines()[2:] == [
        "large_input                1         2",
        "large_kv                   1         0",
        "none                       1         1",
        "  long: multi_gpu (large_input: 9000 > 8000 tokens) -> multi_gpu "
        "(large_input: 9000 > 5500 tokens) [reasons]",
        "  wide: multi_gpu (large_kv: 7000 > 6000 MB) -> multi_gpu "
        "(large_input: 6000 > 5500 tokens) [trigger, reasons]",
        "2 of 3 differ, 0 rerouted",
    ]


def test_the_report_as_json(decisions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same report for programs, with every difference whole."""
    _, out, _ = replay(capsys, str(decisions), "--json", "--set", "large_input_tokens=9000")
    report = json.loads(out)
    assert report["total"] == 3
    assert report["replayed_triggers"] == {"none": 2, "large_kv": 1}
    (difference,) = report["differences"]
    assert (difference["request_id"], difference["replayed"]["route"]) == ("long", "single_gpu")


def test_a_changed_decision_fails(decisions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a what-if, a decision that comes out otherwise is status 1."""
    decisions.write_text(decisions.read_text().replace('"trigger":"large_kv"', '"trigger":null'))
    status, out, _ = replay(capsys, str(decisions))
    assert status == 1
    assert out.endswith("1 of 3 differ, 0 rerouted\n")


def test_a_long_list_of_differences_is_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twenty are shown, the rest counted."""
    path = tmp_path / "many.jsonl"
    path.write_text("".join(line(f"r{n}", 9000, 1) + "\n" for n in range(25)))
    _, out, _ = replay(capsys, str(path), "--set", "large_input_tokens=9000")
    assert out.count("\n  r") == 20
    assert "  … and 5 more (--json shows all)\n25 of 25 differ, 25 rerouted\n" in out


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("{", "line 2: not a decision record: Input data was truncated"),
        ('{"version": 1}', "line 2: not a decision record: Object missing required field `facts`"),
        (line("x", 1, 1)[:-40], "line 2: not a decision record: Input data was truncated"),
        (
            line("x", 1, 1).replace('"large_input_tokens":8000', '"large_input_tokens":-1'),
            "line 2: large_input_tokens must be at least 0, not -1",
        ),
        (
            line("x", 1, 1).replace('"version":1', '"version":9'),
            "line 2: record version 9, this reads 1",
        ),
    ],
)
def test_a_corrupt_line_is_one_clear_error(
    bad: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """File, line and what is wrong, on one line; status 1, nothing on stdout."""
    path = tmp_path / "decisions.jsonl"
    path.write_text(line("ok", 1, 1) + "\n" + bad + "\n")
    assert replay(capsys, str(path)) == (1, "", f"error: {path} {says}\n")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--set", "large_inputs=1"], "--set large_inputs=1: unknown threshold large_inputs"),
        (["--set", "large_kv_mb"], "--set large_kv_mb: write THRESHOLD=NUMBER"),
        (["--set", "large_kv_mb=nan"], "--set large_kv_mb=nan: write THRESHOLD=NUMBER"),
        (["--set", "large_kv_mb=inf"], "large_kv_mb must be finite, not inf"),
        (["--set", "large_input_tokens=-3"], "large_input_tokens must be at least 0, not -3"),
        (
            ["--set", "large_kv_mb=100"],
            "pressure_kv_mb (3000.0) must not exceed large_kv_mb (100)",
        ),
    ],
)
def test_an_impossible_threshold_is_named(
    argv: list[str], says: str, decisions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line on stderr, status 2."""
    status, out, err = replay(capsys, str(decisions), *argv)
    assert (status, out) == (2, "")
    assert err == f"error: {says}\n"


def test_a_typing_error_is_found_in_an_empty_file_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The name is checked before the first record."""
    path = tmp_path / "empty.jsonl"
    path.touch()
    assert replay(capsys, str(path), "--set", "large_inputs=1")[0] == 2
    assert replay(capsys, str(path))[0] == 0


def test_a_file_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Missing, or a folder: one line, status 1."""
    missing = tmp_path / "none.jsonl"
    assert replay(capsys, str(missing)) == (
        1,
        "",
        f"error: cannot read {missing}: No such file or directory\n",
    )
    assert replay(capsys, str(tmp_path)) == (
        1,
        "",
        f"error: cannot read {tmp_path}: Is a directory\n",
    )
