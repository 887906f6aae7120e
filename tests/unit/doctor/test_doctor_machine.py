"""Looking at a machine: every question bounded, nothing raises, NVML through its stub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from gpt_oss_server.doctor.machine import TorchFacts, ask_torch, examine, within
from gpt_oss_server.doctor.torch_probe import look
from gpt_oss_server.listener import listen

GIB = 2**30
ROOT = Path(__file__).parents[3]


def python(program: str) -> tuple[str, ...]:
    """A command that runs a program in place of the torch probe."""
    return (sys.executable, "-c", program)


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (
            'print(\'noise\'); print(\'{"version": "2.13", "cuda_build": null}\')',
            TorchFacts(version="2.13"),
        ),
        (
            'print(\'{"devices": ["H100"], "capabilities": [[9, 0]], "new": 1}\')',
            TorchFacts(devices=("H100",), capabilities=((9, 0),)),
        ),
        ("import os; os.abort()", TorchFacts(error="importing torch ended with signal 6")),
        ("raise OSError('libcudart.so')", TorchFacts(error="OSError: libcudart.so")),
        ("import sys; sys.exit(3)", TorchFacts(error="exit status 3")),
        (
            "print('hello')",
            TorchFacts(error="the torch probe printed something else than its answer"),
        ),
    ],
)
def test_the_torch_probe_cannot_harm(program: str, expected: TorchFacts) -> None:
    """An answer is read; a crash, an error and nonsense become an error in words."""
    assert ask_torch(os.environ, command=python(program)) == expected


def test_a_torch_that_hangs() -> None:
    """The question ends with its time."""
    hang = python("import threading; threading.Event().wait()")
    facts = ask_torch(os.environ, limit_s=0.2, command=hang)
    assert facts.error == "importing torch took longer than 0.2 s"


def test_a_python_that_is_not_there() -> None:
    """A command that cannot start is an error in words too."""
    assert ask_torch({}, command=("/nowhere/python",)).error == (
        "cannot start Python: No such file or directory"
    )


def test_what_torch_says_of_itself() -> None:
    """The probe's answer has the fields that are read, and JSON carries it."""
    import torch

    facts = json.loads(json.dumps(look()))
    assert facts["version"] == torch.__version__
    assert facts["cuda_usable"] == torch.cuda.is_available()
    assert set(facts) <= set(TorchFacts.__struct_fields__)


def test_questions_that_do_not_end() -> None:
    """An answer, an error, or nothing within the time."""
    release = threading.Event()
    assert within(30, lambda: 7) == (7, None)
    assert within(30, lambda: 1 // 0) == (None, "integer division or modulo by zero")
    assert within(0.05, lambda: release.wait(30)) == (None, "no answer for 0.05 s")
    release.set()


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not to import torch for every look at a machine."""
    monkeypatch.setattr(
        "gpt_oss_server.doctor.machine.ask_torch", lambda environ: TorchFacts(version="2.13")
    )


@pytest.mark.usefixtures("no_torch")
def test_a_machine_is_looked_at(tmp_path: Path) -> None:
    """Memory, disk, packages and the settings that matter, without a secret of the environment."""
    environ = {"HF_HOME": str(tmp_path), "HF_TOKEN": "hf_x", "NCCL_DEBUG": "INFO", "HOME": "/"}
    machine = examine(environ, "127.0.0.1", 0)
    assert machine.environ == {"HF_HOME": str(tmp_path), "NCCL_DEBUG": "INFO"}
    assert machine.cache_folder == str(tmp_path / "hub")
    assert machine.cache_free_bytes
    assert 0 < machine.ram_available_bytes <= machine.ram_total_bytes
    assert machine.packages["transformers"]
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'"torch>={machine.minimums["torch"]}"' in declared
    assert (machine.port_error, machine.port_answers) == (None, False)


@pytest.mark.usefixtures("no_torch")
def test_a_port_that_is_taken() -> None:
    """Who has it is found out: another program, or this server."""

    class Live(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"status":"live"}')

        def log_message(self, format: str, *args: object) -> None:
            pass

    with listen("127.0.0.1", 0) as silent:
        port = silent.getsockname()[1]
        machine = examine({}, "127.0.0.1", port)
        assert machine.port_error is not None
        assert machine.port_error.startswith(f"port {port} on 127.0.0.1 is in use")
        assert not machine.port_answers
    with HTTPServer(("127.0.0.1", 0), Live) as ours:
        threading.Thread(target=ours.serve_forever, daemon=True).start()
        assert examine({}, "127.0.0.1", ours.server_port).port_answers
        ours.shutdown()


def test_gpus_through_the_command(nvml_stub: Path, tmp_path: Path) -> None:
    """With the stub as driver: GPUs, driver, MIG and the CPU build of torch beside a GPU."""
    done = subprocess.run(
        [sys.executable, "-m", "gpt_oss_server", "doctor", "--json", "--port", "0"],
        env={**os.environ, "LD_LIBRARY_PATH": str(nvml_stub), "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    answer = json.loads(done.stdout)
    assert [gpu["id"] for gpu in answer["machine"]["gpus"]] == ["0", "1/0"]
    assert answer["machine"]["driver"] == {
        "version": "580.65.06",
        "cuda": "13.1",
        "mig_gpus": ["1"],
    }
    states = {check["id"]: check["state"] for check in answer["checks"]}
    assert states["mig"] == "note"
    assert states["nvml-missing"] == "ok"
    assert answer["plan"]["gpu_memory_bytes"] == 10 * GIB
    assert answer["plan"]["gpus"] == 1
    if answer["machine"]["torch"]["cuda_build"] is None:
        assert states["driver-torch-mismatch"] == "problem"
        assert done.returncode == 1
