"""One suite over every probe, and the things that only one of them does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from probe_contract import check

from gpt_oss_server.ports import GpuProbe, GpuReading
from gpt_oss_server.telemetry.probes.nvml import NvmlProbe, NvmlUnavailable
from gpt_oss_server.telemetry.probes.process import ProcessProbe
from gpt_oss_server.telemetry.probes.recorded import RecordedProbe

GIB = 2**30
HERE = Path(__file__).parent
READ = """
import json, sys
import msgspec
from gpt_oss_server.telemetry.probes.nvml import NvmlProbe, NvmlUnavailable
probe = NvmlProbe(sys.argv[1] if len(sys.argv) > 1 else None)
try:
    reads = [msgspec.to_builtins(list(probe.read())) for _ in range(2)]
    print(json.dumps([*reads, msgspec.to_builtins(probe.driver())]))
except NvmlUnavailable as error:
    print(json.dumps(str(error)))
"""


def run_with_stub(program: list[str], stub: Path, mode: str = "") -> str:
    """Run Python with the stub as the driver's library; returns its stdout."""
    done = subprocess.run(
        [sys.executable, *program],
        env={**os.environ, "LD_LIBRARY_PATH": str(stub), "NVML_STUB": mode},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "make",
    [
        lambda: RecordedProbe([[GpuReading(id="0", total_bytes=4, used_bytes=1, free_bytes=3)]]),
        lambda: ProcessProbe(GIB, lambda: [os.getpid()]),
    ],
    ids=["recorded", "process"],
)
def test_contract(make: Callable[[], GpuProbe]) -> None:
    """The probes that need no driver keep the contract."""
    check(make())


def test_contract_of_nvml(nvml_stub: Path) -> None:
    """So does NVML, through unmodified pynvml and a library with its ABI."""
    run_with_stub([str(HERE / "probe_contract.py")], nvml_stub)


def test_nvml_reads_gpus_and_slices(nvml_stub: Path) -> None:
    """A GPU has all values; a slice has no utilisation, power or energy, and says so by None."""
    first, second, driver = json.loads(run_with_stub(["-c", READ], nvml_stub))
    gpu = {
        "id": "0",
        "name": "Stub H100",
        "uuid": "GPU-aaaa",
        "total_bytes": 80 * GIB,
        "used_bytes": GIB,
        "free_bytes": 79 * GIB,
        "utilization": 0.65,
        "power_w": 312.5,
        "energy_j": 0.0,
        "temperature_c": 41.0,
    }
    mig = {
        "id": "1/0",
        "name": "Stub H100 MIG 1g.10gb",
        "uuid": "MIG-cccc",
        "total_bytes": 10 * GIB,
        "used_bytes": GIB,
        "free_bytes": 9 * GIB,
        "utilization": None,
        "power_w": None,
        "energy_j": None,
        "temperature_c": 41.0,
    }
    assert first == [gpu, mig]
    assert second == [{**gpu, "energy_j": 1.5}, mig]
    assert driver == {"version": "580.65.06", "cuda": "13.1", "mig_gpus": ["1"]}


@pytest.mark.parametrize(
    ("visible", "ids"),
    [
        ("0", ["0"]),
        ("1,0", ["1/0", "0"]),
        ("MIG-cc", ["1/0"]),
        ("GPU-aaaa,9,1", ["0"]),
    ],
)
def test_nvml_shows_what_cuda_shows(nvml_stub: Path, visible: str, ids: list[str]) -> None:
    """CUDA_VISIBLE_DEVICES selects by index or UUID, in its order, up to the first unknown."""
    first, *_ = json.loads(run_with_stub(["-c", READ, visible], nvml_stub))
    assert [reading["id"] for reading in first] == ids


@pytest.mark.parametrize(
    ("mode", "visible", "message"),
    [
        ("down", [], "NVML: Driver Not Loaded"),
        ("", [""], "NVML shows no GPU that this process may use"),
        ("lost", ["0"], "NVML shows no GPU that this process may use"),
    ],
)
def test_nvml_says_why_not(nvml_stub: Path, mode: str, visible: list[str], message: str) -> None:
    """No driver, nothing visible, a GPU fallen off the bus: one line each."""
    assert json.loads(run_with_stub(["-c", READ, *visible], nvml_stub, mode)) == message


def test_a_lost_gpu_leaves_the_others(nvml_stub: Path) -> None:
    """A GPU that does not answer is left out."""
    first, *_ = json.loads(run_with_stub(["-c", READ], nvml_stub, "lost"))
    assert [reading["id"] for reading in first] == ["1/0"]


def test_nvml_without_its_binding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing package is named."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NvmlUnavailable, match="nvidia-ml-py is missing"):
        NvmlProbe().read()


def test_energy_goes_on_when_the_counter_starts_anew() -> None:
    """A driver reload sets the counter to zero; what was used before stays counted."""
    probe = NvmlProbe()
    steps = [probe._energy_j("GPU-a", mj) for mj in (9000, 10000, 500, None, 1500)]
    assert steps == [0.0, 1.0, 1.5, None, 2.5]


def test_process_memory_against_a_budget() -> None:
    """Used is the resident memory of the processes; one listed twice counts once."""
    me = os.getpid()
    (reading,) = ProcessProbe(64 * GIB, lambda: [me, me]).read()
    resident = psutil.Process().memory_info().rss
    assert reading.id == "cpu"
    assert reading.total_bytes == 64 * GIB
    assert reading.used_bytes is not None
    assert 0.5 * resident < reading.used_bytes < 1.5 * resident
    assert reading.free_bytes == 64 * GIB - reading.used_bytes
    assert (reading.power_w, reading.energy_j, reading.temperature_c) == (None, None, None)


def test_process_memory_above_the_budget_is_all_of_it() -> None:
    """More than the budget is a full GPU, not an impossible one."""
    (reading,) = ProcessProbe(4096, lambda: [os.getpid()]).read()
    assert (reading.used_bytes, reading.free_bytes) == (4096, 0)


def test_process_utilisation_is_a_share_of_all_processors() -> None:
    """Unknown at first; then processor seconds over elapsed seconds times processors."""
    times = iter([10.0, 11.0, 11.0])
    probe = ProcessProbe(GIB, lambda: [os.getpid()], clock=lambda: next(times), processors=4)
    assert probe.read()[0].utilization is None
    before = sum(psutil.Process().cpu_times()[:2])
    while sum(psutil.Process().cpu_times()[:2]) < before + 0.1:
        pass
    share = probe.read()[0].utilization
    assert share is not None
    assert 0.02 <= share <= 1
    assert probe.read()[0].utilization is None, "no time has passed"


def test_processes_that_ended() -> None:
    """An ended process is left out; with none left the probe says so."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait(timeout=60)
    assert ProcessProbe(GIB, lambda: [child.pid, os.getpid()]).read()[0].used_bytes
    with pytest.raises(ProcessLookupError, match=str(child.pid)):
        ProcessProbe(GIB, lambda: [child.pid]).read()


def test_impossible_parameters() -> None:
    """A budget of nothing and a recording of nothing are refused."""
    with pytest.raises(ValueError, match="budget_bytes must be positive, not 0"):
        ProcessProbe(0, list)
    with pytest.raises(ValueError, match="at least one entry"):
        RecordedProbe([])


def test_a_recording_plays_its_errors_and_repeats_its_end() -> None:
    """Entries come in turn, exceptions are raised, the last one repeats."""
    one, two = [GpuReading(id="0")], [GpuReading(id="1")]
    probe = RecordedProbe([one, OSError("gone"), two])
    assert list(probe.read()) == one
    with pytest.raises(OSError, match="gone"):
        probe.read()
    assert [list(probe.read()) for _ in range(2)] == [two, two]
