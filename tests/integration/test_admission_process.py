"""A server process: its decision log replays, and impossible thresholds stop it by name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from app_process import client, complaints, running

BODIES = (
    {"model": "tiny", "prompt": "Hello", "max_tokens": 5},
    {"model": "tiny", "prompt": "word " * 300, "max_tokens": 5},
    {"model": "tiny", "prompt": "word " * 40, "max_tokens": 5, "n": 2},
)


def cli(*argv: str, **environ: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the real command line."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("GPT_OSS_")}
    done = subprocess.run(
        [sys.executable, "-m", "gpt_oss_server", *argv],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=clean | environ,
    )
    return done.returncode, done.stdout, done.stderr


def test_what_a_server_decided_can_be_decided_again(tmp_path: Path) -> None:
    """The log of a real run replays to the same decisions; with other thresholds it says what
    would have been; and the server warned and counted as it logged."""
    log = tmp_path / "decisions.jsonl"
    flags = ("--large-input-tokens", "100", "--pressure-input-tokens", "100")
    with running("steered", "--decision-log", str(log), *flags) as server:
        url = server.url()
        server.read_until("ready")
        with client(url) as http:
            reasons = [
                http.post("/v1/completions", json=body).headers["x-route-reason"] for body in BODIES
            ]
            triggers = http.get("/stats").json()["gpu_routing"]["route4_triggers"]
        server.terminate()
        status, _, err = server.end()
    assert status == 0
    assert triggers == {"large_input": 1, "large_kv": 0, "memory_pressure": 0}
    assert [reason.partition(":")[0] for reason in reasons] == ["default", "large_input", "default"]
    (warning,) = complaints(err)
    assert warning.startswith(
        "warning Large request detected but model in single GPU mode (large_input: "
    )
    assert len(log.read_text().splitlines()) == 3

    status, out, err = cli("replay", str(log))
    assert (status, err) == (0, "")
    assert out.endswith("0 of 3 differ, 0 rerouted\n")
    status, out, err = cli("replay", str(log), "--set", "large_input_tokens=2000")
    assert (status, err) == (0, "")
    assert out.endswith("1 of 3 differ, 1 rerouted\n")

    log.write_text(log.read_text() + '{"version": 1, "facts"')
    status, out, err = cli("replay", str(log))
    assert (status, out) == (1, "")
    assert err == f"error: {log} line 4: not a decision record: Input data was truncated\n"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ["--large-input-tokens", "-1"],
            "flag --large-input-tokens: must be an integer >= 0, got '-1'",
        ),
        (["--memory-pressure", "nan"], "flag --memory-pressure: "),
        (["--memory-pressure", "1.5"], "flag --memory-pressure: "),
        (["--large-kv-mb", "inf"], "flag --large-kv-mb: "),
        (["--max-wait-s", "-0.1"], "flag --max-wait-s: "),
        (
            ["--large-input-tokens", "3000"],
            "pressure_input_tokens (4000) must not exceed large_input_tokens (3000)",
        ),
        (
            ["--large-kv-mb", "10"],
            "pressure_kv_mb (3000.0) must not exceed large_kv_mb (10.0)",
        ),
        (
            ["--open-output-tokens", "8"],
            "min_open_output_tokens (256) must not exceed open_output_tokens (8)",
        ),
    ],
)
def test_impossible_thresholds_stop_the_start(flags: list[str], says: str) -> None:
    """Negative, not a number, out of range, contradictory: one line with the name, status 2."""
    status, out, err = cli("serve", "--port", "0", *flags)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {says}")
    assert err.count("\n") == 1


def test_impossible_thresholds_from_the_environment() -> None:
    """The same, and the line names the variable."""
    status, out, err = cli("serve", "--port", "0", GPT_OSS_STALE_AFTER_S="NaN")
    assert (status, out) == (2, "")
    assert err.startswith("error: environment GPT_OSS_STALE_AFTER_S: ")


def test_a_decision_log_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    """Neither a folder nor a file in a missing one: wrong settings, found before anything else."""
    status, _, err = cli("serve", "--port", "0", "--decision-log", str(tmp_path))
    assert (status, err) == (2, f"error: decision_log: {tmp_path} is a folder\n")
    missing = tmp_path / "none" / "log.jsonl"
    with running("steered", "--decision-log", str(missing)) as server:
        status, out, err = server.end()
    assert (status, out) == (2, "")
    assert err == f"error: decision_log: cannot write to {missing}: No such file or directory\n"
