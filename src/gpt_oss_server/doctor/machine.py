"""What this machine is: looked at once, without importing torch here, every question bounded.

Knows: where to look. Does not know: what is good or bad (`checks` does). Anything that cannot be
found out is None, or an error in words.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import queue
import re
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec
import psutil

from gpt_oss_server.errors import StartupError
from gpt_oss_server.gpus import count_gpus
from gpt_oss_server.listener import listen
from gpt_oss_server.ports import GpuReading
from gpt_oss_server.telemetry.probes.nvml import DriverInfo, NvmlProbe

T = TypeVar("T")

DISTRIBUTION = "gpt-oss-hf-server"
PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "triton",
    "kernels",
    "huggingface-hub",
    "nvidia-ml-py",
)
TORCH_LIMIT_S = 120.0
NVML_LIMIT_S = 15.0
_ANSWER_S = 1.0
_SHM = Path("/dev/shm")
_MINIMUM = re.compile(r"([A-Za-z0-9_.-]+)>=([0-9.]+)")


class TorchFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What torch says in a process of its own; `error` when that process failed or hung.

    `cuda_build` is the CUDA version that torch was built for (None: a CPU build). `cuda_usable`
    means that a small sum ran on every device, `peer_access` that all pairs of devices reach each
    other.
    """

    error: str | None = None
    version: str | None = None
    cuda_build: str | None = None
    cuda_usable: bool = False
    cuda_error: str | None = None
    devices: tuple[str, ...] = ()
    memory_bytes: tuple[int, ...] = ()
    capabilities: tuple[tuple[int, int], ...] = ()
    peer_access: bool | None = None
    nccl: str | None = None


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was found. `gpus_present` counts device files or NVML's devices, hidden or
    not; `gpus_visible` what CUDA would show. `minimums` are the versions this package needs.
    `port_answers` is True where this server already answers on the port."""

    python: str
    platform: str
    packages: Mapping[str, str | None]
    minimums: Mapping[str, str]
    torch: TorchFacts
    gpus_present: int
    gpus_visible: int
    gpus: tuple[GpuReading, ...]
    nvml_error: str | None
    driver: DriverInfo | None
    ram_total_bytes: int
    ram_available_bytes: int
    shm_total_bytes: int | None
    cache_folder: str
    cache_free_bytes: int | None
    port_error: str | None
    port_answers: bool
    environ: Mapping[str, str]

    @property
    def gpu_memory_bytes(self) -> tuple[int, ...]:
        """Memory of each GPU that can be used, as far as NVML or torch knows it."""
        by_driver = tuple(gpu.total_bytes for gpu in self.gpus if gpu.total_bytes is not None)
        return by_driver or self.torch.memory_bytes


_READ_ENVIRON = re.compile(
    r"CUDA_.*|NVIDIA_(VISIBLE_DEVICES|DRIVER_CAPABILITIES)|(TORCH_)?NCCL_.*|TRITON_INTERPRET"
    r"|HF_(HUB_OFFLINE|HOME|HUB_CACHE)|TRANSFORMERS_OFFLINE|PYTORCH_(CUDA_)?ALLOC_CONF"
)


def examine(
    environ: Mapping[str, str],
    host: str,
    port: int,
    ask: Callable[[Mapping[str, str]], TorchFacts] | None = None,
) -> Machine:
    """Look at everything; takes as long as importing torch takes, unless something else is to be
    asked about torch."""
    probe = NvmlProbe(environ.get("CUDA_VISIBLE_DEVICES"))
    gpus, nvml_error = within(NVML_LIMIT_S, lambda: tuple(probe.read()))
    driver, _ = within(NVML_LIMIT_S, probe.driver) if nvml_error is None else (None, None)
    port_error, answers = _look_at_port(host, port)
    cache = _cache_folder(environ)
    everything = {k: v for k, v in environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    return Machine(
        python=platform.python_version(),
        platform=platform.platform(),
        packages={name: _version(name) for name in PACKAGES},
        minimums=_minimums(),
        torch=(ask or ask_torch)(environ),
        gpus_present=_count(everything),
        gpus_visible=_count(environ),
        gpus=gpus or (),
        nvml_error=nvml_error,
        driver=driver,
        ram_total_bytes=psutil.virtual_memory().total,
        ram_available_bytes=psutil.virtual_memory().available,
        shm_total_bytes=shutil.disk_usage(_SHM).total if _SHM.is_dir() else None,
        cache_folder=str(cache),
        cache_free_bytes=_free_bytes(cache),
        port_error=port_error,
        port_answers=answers,
        environ={k: v for k, v in sorted(environ.items()) if _READ_ENVIRON.fullmatch(k)},
    )


def ask_torch(
    environ: Mapping[str, str],
    limit_s: float = TORCH_LIMIT_S,
    command: tuple[str, ...] = (sys.executable, "-m", "gpt_oss_server.doctor.torch_probe"),
) -> TorchFacts:
    """Run the torch probe; never raises, and returns after `limit_s` at the latest."""
    try:
        done = subprocess.run(
            command, env=dict(environ), capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        return TorchFacts(error=f"importing torch took longer than {limit_s:g} s")
    except OSError as error:
        return TorchFacts(error=f"cannot start Python: {error.strerror}")
    if done.returncode == 0 and done.stdout.strip():
        try:
            return msgspec.json.decode(done.stdout.strip().splitlines()[-1], type=TorchFacts)
        except msgspec.DecodeError:
            return TorchFacts(error="the torch probe printed something else than its answer")
    if done.returncode < 0:
        return TorchFacts(error=f"importing torch ended with signal {-done.returncode}")
    lines = done.stderr.strip().splitlines()
    return TorchFacts(error=lines[-1][:300] if lines else f"exit status {done.returncode}")


def within(limit_s: float, ask: Callable[[], T]) -> tuple[T | None, str | None]:
    """The answer, or why there is none; a question that hangs is left behind in its thread."""
    answers: queue.SimpleQueue[tuple[T | None, str | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((ask(), None))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
            answers.put((None, (str(error) or type(error).__name__).splitlines()[0][:300]))

    threading.Thread(target=run, daemon=True).start()
    try:
        return answers.get(timeout=limit_s)
    except queue.Empty:
        return None, f"no answer for {limit_s:g} s"


def _count(environ: Mapping[str, str]) -> int:
    """GPUs of an environment; 0 where the driver does not answer."""
    return within(NVML_LIMIT_S, lambda: count_gpus(environ))[0] or 0


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _minimums() -> dict[str, str]:
    """Of the packages that this one declares, the lowest version it works with."""
    try:
        declared = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found = (_MINIMUM.match(line) for line in declared if "extra ==" not in line)
    return {match[1]: match[2] for match in found if match is not None}


def _cache_folder(environ: Mapping[str, str]) -> Path:
    home = environ.get("HF_HOME") or "~/.cache/huggingface"
    return Path(environ.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()


def _free_bytes(folder: Path) -> int | None:
    for existing in (folder, *folder.parents):
        if existing.is_dir():
            try:
                return shutil.disk_usage(existing).free
            except OSError:
                return None
    return None


def _look_at_port(host: str, port: int) -> tuple[str | None, bool]:
    """Why the address cannot be had, and whether that is because this server has it."""
    try:
        listen(host, port).close()
    except StartupError as error:
        return str(error), _is_ours(host, port)
    return None, False


def _is_ours(host: str, port: int) -> bool:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    name = f"[{reachable}]" if ":" in reachable else reachable
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{name}:{port}/live", timeout=_ANSWER_S) as reply:
            body = json.loads(reply.read(65536))
    except (OSError, ValueError):
        return False
    return bool(body == {"status": "live"})
