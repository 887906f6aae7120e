"""Checks of GPUs, their driver, and what several of them need.

Each function looks at what was found and returns what is to be said, or None where all is well.
"""

from __future__ import annotations

from gpt_oss_server.doctor.findings import Check, Examined, Finding
from gpt_oss_server.doctor.plan import gib
from gpt_oss_server.nccl import WANTED, nccl_environment
from gpt_oss_server.routing.balance import BALANCED_FROM

_SHM_LEAST_BYTES = 1 << 30
_BUSY_FROM = 0.05
_TAKEN_FROM = 0.1


def no_gpu(seen: Examined) -> Finding | None:
    if seen.has_gpu:
        return None
    settings = seen.settings
    if seen.gpu_wanted:
        asked = f"gpu_mode {settings.gpu_mode}" if seen.several else f"device {settings.device}"
        return Finding(
            "problem",
            f"this machine has no NVIDIA GPU, and {asked} needs one",
            "use --gpu-mode single --device cpu; in a container start it with --gpus all; on a "
            "GPU machine install the NVIDIA driver (nvidia-smi must work)",
        )
    return Finding(
        "note",
        "no NVIDIA GPU: the model runs on the CPU, which is right for tiny and slow for others",
        "nothing to do for tiny; for gpt-oss use a machine with a GPU",
    )


def too_few_gpus(seen: Examined) -> Finding | None:
    wanted = max(2, seen.settings.gpus or 2)
    visible = seen.machine.gpus_visible
    if not seen.several or not seen.has_gpu or visible >= wanted:
        return None
    return Finding(
        "problem",
        f"gpu_mode {seen.settings.gpu_mode} needs {wanted} GPUs, and {visible} can be used",
        "use --gpu-mode single, or lower --gpus, or show more GPUs (CUDA_VISIBLE_DEVICES)",
    )


def gpus_hidden(seen: Examined) -> Finding | None:
    machine = seen.machine
    hidden = machine.gpus_present - machine.gpus_visible
    if hidden <= 0:
        return None
    listed = machine.environ.get("CUDA_VISIBLE_DEVICES", "")
    return Finding(
        "note" if machine.gpus_visible else "problem",
        f"CUDA_VISIBLE_DEVICES={listed!r} hides {hidden} of {machine.gpus_present} GPUs",
        "unset it, or list the GPUs that this server may use",
    )


def nvml_missing(seen: Examined) -> Finding | None:
    if not seen.has_gpu or seen.machine.nvml_error is None or seen.machine.gpus_visible == 0:
        return None
    return Finding(
        "problem",
        f"GPUs cannot be watched: {seen.machine.nvml_error}. Memory pressure and utilisation are "
        "unknown (never shown as 0), and the memory_pressure trigger cannot fire",
        "install nvidia-ml-py and the driver's libnvidia-ml.so.1; in a container set "
        "NVIDIA_DRIVER_CAPABILITIES=compute,utility; after a driver update restart the machine",
    )


def driver_torch_mismatch(seen: Examined) -> Finding | None:
    torch, driver = seen.machine.torch, seen.machine.driver
    if not seen.has_gpu or torch.error is not None or seen.machine.gpus_visible == 0:
        return None
    if torch.cuda_build is None:
        return Finding(
            "problem",
            f"torch {torch.version} is built without CUDA, and this machine has a GPU",
            "install the CUDA build of torch (pytorch.org/get-started names the index to use)",
        )
    newest = driver.cuda if driver is not None else None
    if newest is not None and _major(newest) < _major(torch.cuda_build):
        return Finding(
            "problem",
            f"torch {torch.version} is built for CUDA {torch.cuda_build}, and the driver "
            f"({driver.version if driver else None}) runs CUDA {newest} at most",
            f"update the NVIDIA driver, or install torch built for CUDA {_major(newest)}",
        )
    if not torch.cuda_usable:
        return Finding(
            "problem",
            f"torch {torch.version} (CUDA {torch.cuda_build}) cannot use the GPU: "
            f"{torch.cuda_error or 'it sees no device'}",
            "check that nvidia-smi works, that driver and torch belong together, and after a "
            "driver update restart the machine",
        )
    return None


def cpu_tensor(seen: Examined) -> Finding | None:
    machine = seen.machine
    if not seen.has_gpu:
        return None
    error = '"Pointer argument cannot be accessed from Triton (cpu tensor?)"'
    if machine.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        return Finding(
            "problem",
            "TRITON_INTERPRET is set: Triton kernels are interpreted on the CPU, very slowly",
            "unset TRITON_INTERPRET",
        )
    if not machine.packages.get("triton"):
        return None
    if seen.settings.device == "cpu":
        return Finding(
            "note",
            f"device is cpu on a machine with a GPU and Triton: {error} means that a kernel for "
            "the GPU was given a tensor of the CPU",
            "leave --device at auto",
        )
    if not machine.torch.cuda_usable:
        return Finding(
            "problem",
            "Triton is installed and torch cannot use the GPU, so that all tensors are the CPU's: "
            f"{error} would follow",
            "cure driver-torch-mismatch or torch-broken first",
        )
    return None


def mig(seen: Examined) -> Finding | None:
    driver = seen.machine.driver
    if driver is None or not driver.mig_gpus:
        return None
    which = ", ".join(driver.mig_gpus)
    if seen.several:
        return Finding(
            "problem",
            f"GPU {which} is partitioned (MIG): a process can use one slice only, so gpu_mode "
            f"{seen.settings.gpu_mode} cannot work",
            "use --gpu-mode single with one server per slice, or turn MIG off "
            "(nvidia-smi -i N -mig 0)",
        )
    return Finding(
        "note",
        f"GPU {which} is partitioned (MIG): utilisation, power and energy of a slice are unknown "
        "and left out of metrics; memory is that of the slice",
        "nothing to do; choose the slice with CUDA_VISIBLE_DEVICES=MIG-…",
    )


def gpu_unbalanced(seen: Examined) -> Finding | None:
    known = {g.id: g.utilization for g in seen.machine.gpus if g.utilization is not None}
    if len(known) < 2 or max(known.values()) < _BUSY_FROM:
        return None
    coefficient = min(known.values()) / max(known.values())
    if coefficient >= BALANCED_FROM:
        return None
    shares = ", ".join(f"GPU {name} {share:.0%}" for name, share in known.items())
    return Finding(
        "problem" if seen.several else "note",
        f"utilisation is unbalanced at this moment ({shares}; least / most = {coefficient:.2f}, "
        f"balanced from {BALANCED_FROM})",
        "a model on one GPU leaves the others idle: run one replica per GPU, or --gpu-mode "
        "tensor; pipeline stages take turns by nature; look for other processes with nvidia-smi",
    )


def gpu_memory_taken(seen: Examined) -> Finding | None:
    taken = {
        gpu.id: gpu.used_bytes
        for gpu in seen.machine.gpus
        if gpu.used_bytes and gpu.total_bytes and gpu.used_bytes > _TAKEN_FROM * gpu.total_bytes
    }
    if not taken or seen.machine.port_answers:
        return None
    spare = None
    mode = seen.mode_plan
    if mode is not None and mode.report is not None and mode.fits and seen.plan is not None:
        spare = min(mode.report.kv_bytes) + seen.plan.asked.machine.workspace_bytes
    shown = ", ".join(f"GPU {name} {gib(used)}" for name, used in taken.items())
    tight = spare is not None and max(taken.values()) > spare
    return Finding(
        "problem" if tight else "note",
        f"other processes hold GPU memory: {shown}"
        + (f"; the model leaves {gib(spare)}" if tight and spare is not None else ""),
        "end them (nvidia-smi lists them), choose other GPUs with CUDA_VISIBLE_DEVICES, or lower "
        "--gpu-memory-utilization",
    )


def nccl_overridden(seen: Examined) -> Finding | None:
    gpus = seen.machine.gpus_visible
    mode = seen.settings.gpu_mode if seen.several else "tensor"
    overridden = nccl_environment(seen.settings.gpus or gpus, mode, seen.machine.environ).overridden
    if not overridden:
        return None
    slow = overridden.get("NCCL_P2P_DISABLE", "0") != "0"
    shown = ", ".join(f"{name}={value} (not {WANTED[name]})" for name, value in overridden.items())
    return Finding(
        "problem" if slow and seen.several else "note",
        f"NCCL settings of yours are kept: {shown}"
        + (
            "; without P2P, GPUs exchange data through host memory, several times slower"
            if slow
            else ""
        ),
        f"unset {' '.join(overridden)} unless you know why it is set",
    )


def shm_small(seen: Examined) -> Finding | None:
    total = seen.machine.shm_total_bytes
    if not seen.several or total is None or total >= _SHM_LEAST_BYTES:
        return None
    return Finding(
        "problem",
        f"/dev/shm holds {gib(total)}: NCCL needs more between the processes of several GPUs",
        "start the container with --shm-size=1g or --ipc=host; in Kubernetes mount an emptyDir "
        "of medium Memory at /dev/shm",
    )


def _major(version: str) -> int:
    first = version.partition(".")[0]
    return int(first) if first.isdigit() else 0


GPU_CHECKS = (
    Check("no-gpu", no_gpu),
    Check("too-few-gpus", too_few_gpus),
    Check("gpus-hidden", gpus_hidden),
    Check("nvml-missing", nvml_missing),
    Check("driver-torch-mismatch", driver_torch_mismatch),
    Check("cpu-tensor", cpu_tensor),
    Check("mig", mig),
    Check("gpu-unbalanced", gpu_unbalanced),
    Check("gpu-memory-taken", gpu_memory_taken),
    Check("nccl-overridden", nccl_overridden),
    Check("shm-small", shm_small),
)
