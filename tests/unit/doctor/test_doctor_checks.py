"""Every check on a machine where it has something to say, and on two where it has not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from doctor_machines import CUDA, GIB, OSS_20B, OSS_120B, SERVER, laptop, readings, server
from msgspec.structs import replace

from gpt_oss_server.doctor.checks import CHECKS, run_checks
from gpt_oss_server.doctor.findings import Examined
from gpt_oss_server.doctor.machine import TorchFacts
from gpt_oss_server.doctor.models import ModelFacts
from gpt_oss_server.telemetry.probes.nvml import DriverInfo

DOCS = Path(__file__).parents[3] / "docs" / "operations.md"
TENSOR = {"gpu_mode": "tensor"}
NOT_HERE = ModelFacts(OSS_20B.model_id, OSS_20B.config, "packaged")
MIG = DriverInfo(version="580.65.06", cuda="13.1", mig_gpus=("2",))
OLD = DriverInfo(version="550.54.15", cuda="12.4", mig_gpus=())
CPU_TORCH = TorchFacts(version="2.13.0+cpu")
NO_TRITON = {**SERVER.packages, "triton": None}
HUB_KERNELS = {**SERVER.packages, "triton": "3.4.0", "kernels": "0.18.2"}
THEIRS = {"experts": "transformers"}
OLDER = ((7, 5),)
NO_CUDA = replace(CUDA, cuda_usable=False, devices=(), cuda_error="CUDA unknown error")


def said(seen: Examined) -> dict[str, str]:
    """Check id -> level of what was found."""
    return {found.id: found.finding.level for found in run_checks(seen)}


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (laptop(), {"no-gpu": "note"}),
        (server(), {}),
        (server(settings=TENSOR), {}),
        (laptop(settings=TENSOR), {"no-gpu": "problem"}),
        (laptop(settings={**TENSOR, "device": "cpu"}), {"no-gpu": "note"}),
        (laptop(settings={"device": "cuda:0"}), {"no-gpu": "problem"}),
        (server(settings={**TENSOR, "gpus": 8}), {"too-few-gpus": "problem"}),
        (
            server(settings=TENSOR, gpus_visible=1),
            {"too-few-gpus": "problem", "gpus-hidden": "note"},
        ),
        (server(gpus_visible=2), {"gpus-hidden": "note"}),
        (server(gpus=(), nvml_error="NVML: Driver Not Loaded"), {"nvml-missing": "problem"}),
        (
            server(torch=CPU_TORCH),
            {"driver-torch-mismatch": "problem", "cpu-tensor": "problem"},
        ),
        (server(driver=OLD), {"driver-torch-mismatch": "problem"}),
        (
            server(torch=NO_CUDA),
            {"driver-torch-mismatch": "problem", "cpu-tensor": "problem"},
        ),
        (
            server(torch=TorchFacts(error="ended with signal 11")),
            {"torch-broken": "problem", "cpu-tensor": "problem"},
        ),
        (server(environ={"TRITON_INTERPRET": "1"}), {"cpu-tensor": "problem"}),
        (server(settings={"device": "cpu"}), {"cpu-tensor": "note"}),
        (server(driver=MIG), {"mig": "note"}),
        (server(driver=MIG, settings=TENSOR), {"mig": "problem"}),
        (server(gpus=readings(0.9, 0.1, 0.0, 0.0)), {"gpu-unbalanced": "note"}),
        (server(gpus=readings(0.9, 0.1, 0.9, 0.9), settings=TENSOR), {"gpu-unbalanced": "problem"}),
        (server(gpus=readings(0.9, 0.85, 0.9, 0.9)), {}),
        (server(gpus=readings(0.04, 0.0, 0.0, 0.0)), {}),
        (server(gpus=readings(0.9, None, None, None)), {}),
        (server(gpus=readings(0, 0, 0, 0, used_gib=9)), {"gpu-memory-taken": "note"}),
        (server(OSS_120B, gpus=readings(0, 0, used_gib=11)), {"gpu-memory-taken": "problem"}),
        (
            server(gpus=readings(0, 0, used_gib=70), port_error="x: y", port_answers=True),
            {"port-busy": "note"},
        ),
        (
            server(settings=TENSOR, environ={"NCCL_P2P_DISABLE": "1"}),
            {"nccl-overridden": "problem"},
        ),
        (server(environ={"NCCL_P2P_DISABLE": "1"}), {"nccl-overridden": "note"}),
        (
            server(settings=TENSOR, environ={"NCCL_BUFFSIZE": "1048576"}),
            {"nccl-overridden": "note"},
        ),
        (server(settings=TENSOR, environ={"NCCL_BUFFSIZE": "8388608"}), {}),
        (server(settings=TENSOR, shm_total_bytes=64 << 20), {"shm-small": "problem"}),
        (server(shm_total_bytes=64 << 20), {}),
        (laptop(python="3.10.2"), {"no-gpu": "note", "python-version": "problem"}),
        (laptop(python="3.14.0"), {"no-gpu": "note", "python-version": "problem"}),
        (
            laptop(minimums={"torch": "2.14", "kernels": "1"}),
            {"no-gpu": "note", "package-versions": "problem"},
        ),
        (laptop(minimums={"torch": "2.13.0"}), {"no-gpu": "note"}),
        (
            laptop(NOT_HERE, environ={"HF_HUB_OFFLINE": "1"}, ram_available_bytes=50 * 2**31),
            {"no-gpu": "note", "hub-offline": "problem"},
        ),
        (server(NOT_HERE, cache_free_bytes=12 * GIB), {"disk-too-small": "problem"}),
        (server(NOT_HERE, cache_free_bytes=13 * GIB), {}),
        (laptop(OSS_20B), {"no-gpu": "note", "ram-too-small": "problem"}),
        (
            laptop(OSS_20B, ram_available_bytes=40 * GIB, settings={"dtype": "bfloat16"}),
            {"no-gpu": "note"},
        ),
        (server(ram_available_bytes=GIB), {"ram-too-small": "problem"}),
        (server(OSS_120B, gpu_gib=48), {"model-too-large": "problem"}),
        # In four bits also over several GPUs, which need far less each.
        (server(OSS_120B, gpu_gib=20, settings=TENSOR), {"out-of-memory": "note"}),
        (server(OSS_120B, settings=TENSOR), {}),
        (server(gpu_gib=16), {"out-of-memory": "note"}),
        (server(settings={"gpu_memory_utilization": 0.99}), {"out-of-memory": "problem"}),
        (server(packages=NO_TRITON), {"mxfp4-kernels": "note"}),
        (server(packages={**NO_TRITON, "triton": "3.5.1"}), {"mxfp4-kernels": "note"}),
        (server(packages={**NO_TRITON, "triton": "3.10.0"}), {}),
        (server(packages=NO_TRITON, settings={"experts": "torch"}), {}),
        (
            server(OSS_120B, packages=NO_TRITON),
            {"mxfp4-kernels": "problem", "model-too-large": "problem"},
        ),
        (server(torch=replace(CUDA, capabilities=((7, 5),))), {"mxfp4-kernels": "note"}),
        (server(torch=replace(CUDA, capabilities=((8, 0),))), {}),
        (server(settings={"dtype": "float32"}, gpu_gib=141), {"mxfp4-kernels": "note"}),
        (server(settings={"dtype": "float32", "experts": "triton"}), {}),
        (server(settings=THEIRS), {"mxfp4-kernels": "note"}),
        (server(settings=THEIRS, packages=HUB_KERNELS), {}),
        (
            server(settings=THEIRS, packages=HUB_KERNELS, torch=replace(CUDA, capabilities=OLDER)),
            {},
        ),
        (server(settings={**THEIRS, **TENSOR}, packages=HUB_KERNELS), {"mxfp4-kernels": "note"}),
        (
            laptop(port_error="port 80 on ::1 needs privileges: choose --port above 1023"),
            {"no-gpu": "note", "port-busy": "problem"},
        ),
        (
            Examined(laptop().settings, laptop().machine, None, "model x does not exist"),
            {"no-gpu": "note", "model-unknown": "problem"},
        ),
    ],
)
def test_what_is_said(seen: Examined, expected: dict[str, str]) -> None:
    """Exactly these checks speak, with this level."""
    assert said(seen) == expected


@pytest.mark.parametrize(
    ("seen", "message", "cure"),
    [
        (
            server(driver=OLD),
            "torch 2.13.0+cu130 is built for CUDA 13.0, and the driver (550.54.15) runs CUDA 12.4 "
            "at most",
            "update the NVIDIA driver, or install torch built for CUDA 12",
        ),
        (
            server(OSS_120B, gpu_gib=48),
            "the model does not fit in gpu_mode single: 20,495,474,100 bytes (19.09 GiB) are "
            "missing per GPU",
            None,
        ),
        (
            server(gpu_gib=16),
            "requests over 1,424 tokens do not fit into the KV cache (the model's context is "
            "131,072): they are refused before they start, nothing runs out of memory",
            None,
        ),
        (
            server(packages={**NO_TRITON, "triton": "3.5.1"}),
            "MXFP4 kernels need triton 3.6 or newer: without, experts are held as bf16 (38.96 GiB "
            "in all)",
            "run make setup for triton; --experts torch keeps 4 bits on any GPU, and is slow",
        ),
        (
            server(settings={"dtype": "float32"}, gpu_gib=141),
            "MXFP4 kernels need a half type instead of float32: without, experts are held as "
            "float32 (77.91 GiB in all)",
            "leave --dtype at auto; --experts torch keeps 4 bits on any GPU, and is slow",
        ),
        (
            server(settings=THEIRS, torch=replace(CUDA, capabilities=((7, 0),))),
            "MXFP4 kernels need the package kernels and GPUs of compute capability 7.5 or newer: "
            "without, experts are held as bf16 (38.96 GiB in all)",
            "use --experts auto; --experts torch keeps 4 bits on any GPU, and is slow",
        ),
        (
            server(settings={**THEIRS, **TENSOR}, packages=HUB_KERNELS),
            "--experts transformers in gpu_mode tensor: MXFP4 experts are held as bf16 (38.96 GiB "
            "in all)",
            "use --experts auto; --experts torch keeps 4 bits on any GPU, and is slow",
        ),
        (
            server(gpus=readings(0.9, 0.1, None)),
            "utilisation is unbalanced at this moment (GPU 0 90%, GPU 1 10%; least / most = 0.11, "
            "balanced from 0.9)",
            None,
        ),
        (
            server(NOT_HERE, cache_free_bytes=12 * GIB),
            "openai/gpt-oss-20b is not downloaded yet: it takes 12.82 GiB, and 12.00 GiB are free "
            "in /models",
            "make room, or set HF_HOME to a larger disk",
        ),
        (
            server(settings={"port": 80}, port_error="port 80 on h is in use: stop the other"),
            "port 80 on h is in use",
            "stop the other",
        ),
    ],
)
def test_wording(seen: Examined, message: str, cure: str | None) -> None:
    """A finding has the figures in it, and the cure where it depends on them."""
    (found,) = run_checks(seen)
    assert found.finding.message == message
    assert cure is None or found.finding.cure == cure


def test_what_is_held_wide_and_does_not_fit_is_a_problem() -> None:
    """The cause before the consequence, which has the bytes."""
    kernels, large = run_checks(server(OSS_120B, packages=NO_TRITON))
    assert kernels.finding.message == (
        "MXFP4 kernels need triton 3.6 or newer: without, experts are held as bf16 (217.61 GiB in "
        "all), which does not fit"
    )
    assert large.finding.message.startswith("the model does not fit in gpu_mode single: 157,98")


def test_problems_come_before_notes() -> None:
    """What must be cured is read first."""
    found = run_checks(laptop(OSS_20B))
    assert [one.finding.level for one in found] == ["problem", "note"]


def test_every_check_is_documented() -> None:
    """docs/operations.md has one section per check, and none for a check that is gone."""
    sections = re.findall(r"^### `([a-z0-9-]+)`", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(sections) == sorted(check.id for check in CHECKS)
    assert len(set(sections)) == len(sections)


@pytest.mark.parametrize(
    "words",
    [
        "Pointer argument cannot be accessed from Triton (cpu tensor?)",
        "CUDA out of memory",
        "unbalanced",
        "libnvidia-ml.so.1",
        "MIG",
        "HF_HUB_OFFLINE",
        "/dev/shm",
        "NCCL_P2P_DISABLE",
        "built without CUDA",
        "host memory",
    ],
)
def test_what_people_see_is_in_the_docs(words: str) -> None:
    """The words of each trouble can be searched for."""
    assert words in DOCS.read_text(encoding="utf-8")
