"""Which attention backend is made of a setting, and what is said when it cannot be triton."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from gpt_oss_server.engine import runner
from gpt_oss_server.engine.kernels.usable import why_not
from gpt_oss_server.engine.runner import make_backend
from gpt_oss_server.errors import StartupError
from kernel_device import DEVICE, HAVE_TRITON

CPU = torch.device("cpu")
CUDA = torch.device("cuda:0")


def usable_everywhere(device: torch.device) -> str | None:
    return None


def not_installed(device: torch.device) -> str | None:
    return "Triton is not installed"


def test_auto_on_a_cpu_is_tiled_without_a_word() -> None:
    """Even where kernels could be interpreted: that is for tests."""
    said: list[str] = []
    assert make_backend("auto", 16, [CPU], said.append).name == "tiled"
    assert said == []


@pytest.mark.skipif(not HAVE_TRITON, reason="needs Triton")
def test_auto_on_cuda_is_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it can run, on every device."""
    monkeypatch.setattr(runner, "why_not", usable_everywhere)
    assert make_backend("auto", 16, [CUDA, torch.device("cuda:1")]).name == "triton"


def test_auto_with_layers_on_a_cpu_is_tiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that were put on the CPU beside a GPU need a backend that runs on both."""
    monkeypatch.setattr(runner, "why_not", usable_everywhere)
    assert make_backend("auto", 16, [CUDA, CPU]).name == "tiled"


def test_auto_without_triton_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA, falling back is told in one line."""
    monkeypatch.setattr(runner, "why_not", not_installed)
    said: list[str] = []
    assert make_backend("auto", 16, [CUDA, CUDA], said.append).name == "tiled"
    assert said == ["attention backend tiled, which is slower than triton: Triton is not installed"]


def test_triton_that_cannot_run_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked for by name is never replaced."""
    monkeypatch.setattr(runner, "why_not", not_installed)
    with pytest.raises(StartupError, match="triton cannot be used: Triton is not installed"):
        make_backend("triton", 16, [CUDA])


@pytest.mark.skipif(not HAVE_TRITON or DEVICE == "cuda", reason="needs Triton, interpreted")
def test_an_interpreted_kernel_runs_on_a_cpu() -> None:
    """By its name, triton runs where Triton's interpreter does."""
    assert why_not(CPU) is None
    assert make_backend("triton", 16, [CPU]).name == "triton"


@pytest.mark.skipif(not HAVE_TRITON, reason="needs Triton")
def test_a_compiled_kernel_does_not_run_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason names the device and the way out."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert why_not(CPU) == "Triton needs a CUDA device, not cpu, or TRITON_INTERPRET=1"


def test_an_engine_without_triton_never_imports_it() -> None:
    """The core works where Triton is missing: importing it is made to fail."""
    code = (
        "import sys, torch; sys.modules['triton'] = None\n"
        "from gpt_oss_server.engine.runner import make_backend\n"
        "from gpt_oss_server.engine.kernels.usable import why_not\n"
        "assert why_not(torch.device('cuda:0')) == 'Triton is not installed'\n"
        "print(make_backend('auto', 16, [torch.device('cuda:0')], print).name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "0"},
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [
        "attention backend tiled, which is slower than triton: Triton is not installed",
        "tiled",
    ]
