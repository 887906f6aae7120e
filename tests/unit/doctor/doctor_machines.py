"""Machines for the checks: one without a GPU, one with four good ones, and changes to them."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from gpt_oss_server.config import Settings
from gpt_oss_server.doctor.findings import Examined
from gpt_oss_server.doctor.four_bits import form_held
from gpt_oss_server.doctor.machine import Machine, TorchFacts
from gpt_oss_server.doctor.models import ModelFacts, model_facts
from gpt_oss_server.doctor.plan import PlanRequest, make_plan
from gpt_oss_server.doctor.published import PUBLISHED
from gpt_oss_server.memory.fit import FitRequest
from gpt_oss_server.ports import GpuReading
from gpt_oss_server.telemetry.probes.nvml import DriverInfo

GIB = 2**30
PACKAGES = {
    "torch": "2.13.0+cu130",
    "transformers": "5.23.0",
    "triton": "3.6.0",
    "kernels": None,
    "nvidia-ml-py": "13.615.71",
}
LAPTOP = Machine(
    python="3.11.7",
    platform="Linux",
    packages={**PACKAGES, "torch": "2.13.0+cpu", "triton": None},
    minimums={"torch": "2.11", "transformers": "5.17"},
    torch=TorchFacts(version="2.13.0+cpu"),
    gpus_present=0,
    gpus_visible=0,
    gpus=(),
    nvml_error="NVML: NVML Shared Library Not Found",
    driver=None,
    ram_total_bytes=32 * GIB,
    ram_available_bytes=16 * GIB,
    shm_total_bytes=16 * GIB,
    cache_folder="/models",
    cache_free_bytes=100 * GIB,
    port_error=None,
    port_answers=False,
    environ={},
)
CUDA = TorchFacts(
    version="2.13.0+cu130",
    cuda_build="13.0",
    cuda_usable=True,
    devices=("NVIDIA H100 80GB HBM3",) * 4,
    memory_bytes=(79 * GIB,) * 4,
    capabilities=((9, 0),) * 4,
    peer_access=True,
    nccl="2.27.5",
)
GPU = GpuReading(
    id="0",
    name="NVIDIA H100 80GB HBM3",
    total_bytes=80 * GIB,
    used_bytes=GIB,
    free_bytes=79 * GIB,
    utilization=0.0,
)
SERVER = replace(
    LAPTOP,
    packages=PACKAGES,
    torch=CUDA,
    gpus_present=4,
    gpus_visible=4,
    gpus=tuple(replace(GPU, id=str(i)) for i in range(4)),
    nvml_error=None,
    driver=DriverInfo(version="580.65.06", cuda="13.1", mig_gpus=()),
    ram_available_bytes=200 * GIB,
)
TINY = model_facts("tiny", {})
OSS_20B = ModelFacts(
    "openai/gpt-oss-20b", PUBLISHED["openai/gpt-oss-20b"], "packaged", weights_here=True
)
OSS_120B = ModelFacts(
    "openai/gpt-oss-120b", PUBLISHED["openai/gpt-oss-120b"], "packaged", weights_here=True
)


def laptop(model: ModelFacts | None = TINY, *, settings: Any = None, **changes: Any) -> Examined:
    """A machine without a GPU, with some things different."""
    return Examined(Settings(**(settings or {})), replace(LAPTOP, **changes), model)


def server(
    model: ModelFacts = OSS_20B, *, settings: Any = None, gpu_gib: int = 80, **changes: Any
) -> Examined:
    """Four H100 (or of another size), with some things different, and the plan for them."""
    chosen = Settings(**(settings or {}))
    machine = FitRequest(
        gpu_gib * GIB,
        4,
        utilization=chosen.gpu_memory_utilization,
        max_num_seqs=64,
        max_batch_tokens=2048,
    )
    there = replace(SERVER, **changes)
    form = form_held(chosen, there, model.config)
    dtype = "bfloat16" if chosen.dtype == "auto" else chosen.dtype
    asked = PlanRequest(machine, dtype, form, experts=chosen.experts)
    other = PlanRequest(machine, dtype, "bf16" if form is None else "mxfp4")
    plans = [make_plan(model.config, one) for one in (asked, other)]
    return Examined(chosen, there, model, None, *plans)


def readings(*utilization: float | None, used_gib: int = 1) -> tuple[GpuReading, ...]:
    """GPUs with these shares of use."""
    used = used_gib * GIB
    return tuple(
        replace(GPU, id=str(i), utilization=share, used_bytes=used, free_bytes=80 * GIB - used)
        for i, share in enumerate(utilization)
    )
