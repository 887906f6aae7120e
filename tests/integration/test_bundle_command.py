"""`gpt-oss-server bundle`: of a server that answers, one that is stopped, and one that is gone."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from app_process import client, running

MARK = "xyzzy"
ADMIN = f"{MARK}-admin-key"
CHAT = {
    "model": "tiny",
    "messages": [{"role": "user", "content": f"my secret is {MARK}"}],
    "max_tokens": 5,
}


def bundle(*flags: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """The command as an operator runs it."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("GPT_OSS_")}
    return subprocess.run(
        [sys.executable, "-m", "gpt_oss_server", "bundle", *flags],
        env=clean | environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def statuses(document: dict[str, Any]) -> dict[str, str]:
    return {name: state["status"] for name, state in document["manifest"]["sections"].items()}


def test_a_server_that_answers_gives_its_own(tmp_path: Path) -> None:
    """A zip for the operator's eyes alone; the admin key comes from the environment."""
    out = tmp_path / "found.zip"
    with running("steered", "--admin-key", ADMIN) as server:
        url = server.url()
        server.read_until("ready")
        with client(url) as http:
            assert http.post("/v1/chat/completions", json=CHAT).status_code == 200
        done = bundle("--url", url, "--out", str(out), GPT_OSS_ADMIN_KEY=ADMIN)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr == f"{url} gave its bundle\nwrote {out}\n"
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    with zipfile.ZipFile(io.BytesIO(out.read_bytes())) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(files["manifest.json"])
    assert manifest["source"] == "server"
    assert {state["status"] for state in manifest["sections"].values()} == {"ok"}
    assert json.loads(files["gpu_routing.json"])["total_requests"] == 1
    assert not any(MARK.encode() in content for content in files.values())


def test_a_server_that_is_stopped_is_looked_at_from_beside(tmp_path: Path) -> None:
    """It accepts and never answers: its processes, settings and log say what can be said."""
    log, settings = tmp_path / "log", tmp_path / "settings.yaml"
    settings.write_text(
        f"log_file: {log}\napi_key: sk-{MARK}-key\n"
        "large_input_tokens: 5\npressure_input_tokens: 5\n"
    )
    flags = ("--config", str(settings), "--log-format", "json")
    with running("steered", *flags) as server:
        url = server.url()
        server.read_until("ready")
        with client(url) as http:
            key = {"authorization": f"Bearer sk-{MARK}-key", "x-request-id": f"id-{MARK}"}
            assert http.post("/v1/chat/completions", json=CHAT, headers=key).status_code == 200
            while b"request.end" not in log.read_bytes():
                pass
        server.process.send_signal(signal.SIGSTOP)
        done = bundle(
            *("--url", url, "--timeout", "0.5", "--out", "-", "--config", str(settings)),
            HF_TOKEN=f"token-{MARK}",
        )
        server.process.send_signal(signal.SIGCONT)
        pid = server.process.pid
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    assert said[0] == (
        f"no bundle from {url}: it did not answer within 0.5 s. What follows was found beside it"
    )
    document = json.loads(done.stdout)
    assert document["manifest"]["source"] == "local"
    assert statuses(document) == dict.fromkeys(
        ("server", "versions", "configuration", "processes", "logs", "doctor"), "ok"
    )
    assert document["server"] == {"answers": False, "reason": "it did not answer within 0.5 s"}
    front = document["processes"][0]
    assert (front["pid"], front["state"]) == (pid, "stopped")
    assert front["flags"] == ["--config", "--log-format", "--port"]
    assert document["configuration"]["values"]["large_input_tokens"] == 5
    assert document["configuration"]["values"]["api_key"] == "set"
    decision = next(one for one in document["logs"] if one["event_type"] == "routing.decision")
    assert decision["route"] == "multi_gpu"
    assert MARK not in done.stdout


def test_a_server_that_is_gone(tmp_path: Path) -> None:
    """The bundle says which sections are not to be had, and why; it is written all the same."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        out = tmp_path / "found.json"
        missing = tmp_path / "no-such-log"
        broken = tmp_path / "broken.yaml"
        broken.write_text("prot: 1\n")
        done = bundle(
            *("--url", url, "--out", str(out), "--log-file", str(missing)),
            *("--config", str(broken)),
        )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[0] == (
        f"no bundle from {url}: it cannot be reached: Connection refused. What follows was found "
        "beside it"
    )
    document = json.loads(out.read_bytes())
    assert statuses(document) == {
        "server": "ok",
        "versions": "ok",
        "configuration": "failed",
        "processes": "absent",
        "logs": "failed",
        "doctor": "failed",
    }
    states = document["manifest"]["sections"]
    assert states["logs"]["error"] == "FileNotFoundError: No such file or directory"
    assert states["configuration"]["error"] == (
        f"ConfigError: file {broken}: unknown setting 'prot'; did you mean port?"
    )
    for name in ("configuration", "processes", "logs", "doctor"):
        assert f"  {name}: {states[name]['status']}: {states[name]['error']}" in done.stderr


@pytest.mark.parametrize(
    ("flags", "status", "complaint"),
    [
        (("--url", "ftp://x"), 2, "flag --url: must be an http:// or https:// address"),
        (("--url", "http://x:99999"), 2, "flag --url: must be an http:// or https:// address"),
        (("--timeout", "0"), 2, "flag --timeout: must be a number > 0, got '0'"),
        (("--pid", "me"), 2, "flag --pid: must be an integer >= 1, got 'me'"),
        (("--nonsense",), 2, "unknown flag --nonsense"),
        (
            ("--url", "http://host.invalid:1"),
            1,
            "no bundle from http://host.invalid:1: it cannot be reached",
        ),
    ],
)
def test_what_is_wrong_is_one_line(flags: tuple[str, ...], status: int, complaint: str) -> None:
    """A wrong argument, or a server elsewhere that cannot be asked."""
    done = bundle(*flags)
    assert done.returncode == status
    assert done.stderr.startswith(f"error: {complaint}"), done.stderr
    assert done.stderr.count("\n") == 1


def test_a_wrong_key_is_said_and_a_bad_path_is_one_line(tmp_path: Path) -> None:
    """Without the key the server refuses; where the file cannot be written the status is 1."""
    with running("steered", "--admin-key", ADMIN) as server:
        url = server.url()
        server.read_until("ready")
        out = str(tmp_path / "no" / "such" / "folder.json")
        done = bundle("--url", url, "--out", out, GPT_OSS_ADMIN_KEY=ADMIN)
        refused = bundle("--url", url, "--out", "-", "--pid", str(server.process.pid))
    assert done.returncode == 1
    # Found before anything is asked or collected: nothing is said but that.
    assert done.stderr == f"error: cannot write {out}: No such file or directory\n"
    assert refused.stderr.startswith(
        f"no bundle from {url}: it wants its admin key, or another one: set GPT_OSS_ADMIN_KEY"
    )
    found = json.loads(refused.stdout)
    assert found["processes"][0]["flags"] == ["--admin-key", "--port"]
    assert MARK not in refused.stdout
