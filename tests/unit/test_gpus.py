"""Counting GPUs without torch."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpt_oss_server.gpus import count_gpus


@pytest.fixture
def without_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    """No NVML binding, whatever is installed here."""
    monkeypatch.setitem(sys.modules, "pynvml", None)


def devices(tmp_path: Path, count: int) -> Path:
    """A folder with the driver's device files for `count` GPUs, and others beside them."""
    for name in (*(f"nvidia{i}" for i in range(count)), "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.usefixtures("without_nvml")
@pytest.mark.parametrize(
    ("present", "listed", "expected"),
    [
        (0, None, 0),
        (4, None, 4),
        (4, "0,2", 2),
        (4, "", 0),
        (4, "-1", 0),
        (4, "3,4,0", 1),
        (4, "GPU-8932f937, GPU-2a5b6f11", 2),
        (0, "0,1", 0),
    ],
)
def test_count(tmp_path: Path, present: int, listed: str | None, expected: int) -> None:
    """Device files count; CUDA_VISIBLE_DEVICES hides what it does not list, as CUDA does."""
    environ = {} if listed is None else {"CUDA_VISIBLE_DEVICES": listed}
    assert count_gpus(environ, devices(tmp_path, present)) == expected


@pytest.mark.usefixtures("without_nvml")
def test_no_device_folder(tmp_path: Path) -> None:
    """A machine without the folder has no GPU."""
    assert count_gpus({}, tmp_path / "none") == 0


def test_nvml_is_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the driver's library answers, its count holds, and it is shut down again."""
    calls: list[str] = []
    nvml = SimpleNamespace(
        nvmlInit=lambda: calls.append("init"),
        nvmlDeviceGetCount=lambda: 8,
        nvmlShutdown=lambda: calls.append("shutdown"),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert count_gpus({}, devices(tmp_path, 1)) == 8
    assert calls == ["init", "shutdown"]


def test_a_driver_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An NVML that raises is as good as none."""

    def fail() -> None:
        raise OSError("libnvidia-ml.so.1 not found")

    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(nvmlInit=fail))
    assert count_gpus({}, devices(tmp_path, 2)) == 2
