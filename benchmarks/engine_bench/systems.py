"""The systems under test as processes: started, waited for, asked, stopped.

Knows: command lines, readiness, environments. Does not know: what is measured. Every system runs
with one torch thread; each has a log in the work folder, quoted when it does not come up.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
READY_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 20.0


class BenchError(Exception):
    """One line that says what went wrong; the benchmark ends with it."""


def environment() -> dict[str, str]:
    """The same for all: one thread, no network, this checkout's packages first."""
    paths = [str(ROOT / "src"), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def peer_is_usable(python: str) -> bool:
    """Whether this interpreter has what `transformers serve` needs."""
    probe = "from transformers.utils.import_utils import is_serve_available as f; exit(not f())"
    try:
        done = subprocess.run(
            [python, "-c", probe], env=environment(), capture_output=True, check=False
        )
    except OSError:
        return False
    return done.returncode == 0


def version_of(python: str, package: str) -> str:
    code = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "not installed"


class HttpSystem:
    """A server of completions on a free port. `start` returns when it has answered a request."""

    def __init__(
        self, name: str, command: Sequence[str], model: str, log: Path, health: str = "/health"
    ) -> None:
        """`{port}` in the command becomes the port; `model` is the name requests ask for."""
        self.name = name
        self.model = model
        self.port = 0
        self._command = list(command)
        self._log = log
        self._health = health
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Bring it up; returns the seconds that took. Raises BenchError."""
        began_s = time.monotonic()
        self.port = free_port()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [part.format(port=self.port) for part in self._command],
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        while not self._healthy():
            if self._process.poll() is not None:
                raise BenchError(f"{self.name} ended while starting:\n{self._last_lines()}")
            if time.monotonic() - began_s > READY_TIMEOUT_S:
                self.stop()
                raise BenchError(f"{self.name} did not come up:\n{self._last_lines()}")
            time.sleep(0.1)
        return time.monotonic() - began_s

    def cpu_s(self) -> float:
        """CPU seconds that all its processes have used so far."""
        if self._process is None:
            return 0.0
        import psutil

        parent = psutil.Process(self._process.pid)
        total = 0.0
        for process in (parent, *parent.children(recursive=True)):
            times = process.cpu_times()
            total += times.user + times.system
        return total

    def stop(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _healthy(self) -> bool:
        url = f"http://127.0.0.1:{self.port}{self._health}"
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return bool(response.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def _last_lines(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-8:])


class LineSystem:
    """A process that answers one JSON line with another."""

    def __init__(
        self,
        name: str,
        module: str,
        folder: Path,
        log: Path,
        extra_environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._command = [sys.executable, "-m", f"engine_bench.{module}", str(folder)]
        self._environment = environment() | dict(extra_environment or {})
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> float:
        began_s = time.monotonic()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C is for the benchmark, which stops them itself
            )
        self._read()
        return time.monotonic() - began_s

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """Raises BenchError if the process ends instead of answering."""
        if self._process is None or self._process.stdin is None:
            raise BenchError(f"{self.name} was not started")
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._read()

    def stop(self) -> None:
        if self._process is None:
            return
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process and self._process.stdout else ""
        if not line:
            tail = self._log.read_text(errors="replace").splitlines()[-8:]
            raise BenchError(f"{self.name} ended:\n" + "\n".join(tail))
        answer: dict[str, Any] = json.loads(line)
        return answer


def our_server(folder: Path, log: Path) -> HttpSystem:
    command = [sys.executable, "-m", "gpt_oss_server", "serve", "--model", str(folder)]
    command += ["--served-model-name", "bench", "--port", "{port}", "--threads", "1"]
    return HttpSystem("ours", command, "bench", log)


def peer_server(python: str, folder: Path, log: Path, extra: Sequence[str]) -> HttpSystem:
    code = "from transformers.cli.transformers import main; main()"
    command = [python, "-c", code, "serve", str(folder), "--continuous-batching"]
    command += ["--device", "cpu", "--port", "{port}", *extra]
    return HttpSystem("transformers serve", command, str(folder), log)
