"""Checks of software, memory, disk, address and model.

Each function looks at what was found and returns what is to be said, or None where all is well.
"""

from __future__ import annotations

from gpt_oss_server.doctor.findings import Check, Examined, Finding
from gpt_oss_server.doctor.four_bits import lacking
from gpt_oss_server.doctor.models import is_offline
from gpt_oss_server.doctor.plan import gib, stored_form, widened
from gpt_oss_server.doctor.versions import numbers
from gpt_oss_server.memory.errors import ShapeUnknown
from gpt_oss_server.memory.weights import weights_of

_PYTHON = ((3, 11), (3, 14))
_HOST_LEAST_BYTES = 2 << 30


def python_version(seen: Examined) -> Finding | None:
    low, high = _PYTHON
    if low <= numbers(seen.machine.python)[:2] < high:
        return None
    return Finding(
        "problem",
        f"Python {seen.machine.python} is not one that this server runs on",
        "use Python 3.11, 3.12 or 3.13",
    )


def package_versions(seen: Examined) -> Finding | None:
    machine = seen.machine
    wrong = []
    for name, least in machine.minimums.items():
        if name not in machine.packages:
            continue
        version = machine.packages[name]
        if version is None or numbers(version) < numbers(least):
            wrong.append(f"{name} {version or 'missing'} (needs {least})")
    if not wrong:
        return None
    return Finding("problem", f"packages are too old: {', '.join(wrong)}", "run make setup")


def torch_broken(seen: Examined) -> Finding | None:
    error = seen.machine.torch.error
    if error is None:
        return None
    return Finding(
        "problem",
        f"torch cannot be used: {error}",
        "install it again (make setup); on a first start after an installation try once more, "
        "the disk may have been slow",
    )


def model_unknown(seen: Examined) -> Finding | None:
    if seen.model_error is None:
        return None
    return Finding(
        "problem",
        seen.model_error,
        "use tiny, 20b, 120b, a Hugging Face id or the path of a folder with config.json",
    )


def hub_offline(seen: Examined) -> Finding | None:
    model = seen.model
    if model is None or not model.on_hub or model.weights_here:
        return None
    if not is_offline(seen.machine.environ):
        return None
    return Finding(
        "problem",
        f"HF_HUB_OFFLINE is set, and the weights of {model.model_id} are not in the cache "
        f"({seen.machine.cache_folder})",
        f"unset HF_HUB_OFFLINE, or fetch them on a machine with a network (hf download "
        f"{model.model_id}) and copy the cache (HF_HOME), or give --model a folder",
    )


def disk_too_small(seen: Examined) -> Finding | None:
    model, free = seen.model, seen.machine.cache_free_bytes
    if model is None or not model.on_hub or model.weights_here or free is None:
        return None
    needed = _stored_bytes(seen)
    if needed is None or is_offline(seen.machine.environ) or free >= needed:
        return None
    return Finding(
        "problem",
        f"{model.model_id} is not downloaded yet: it takes {gib(needed)}, and {gib(free)} are "
        f"free in {seen.machine.cache_folder}",
        "make room, or set HF_HOME to a larger disk",
    )


def ram_too_small(seen: Examined) -> Finding | None:
    available = seen.machine.ram_available_bytes
    if seen.runs_on_gpu:
        if available >= _HOST_LEAST_BYTES:
            return None
        return Finding(
            "problem",
            f"{gib(available)} of host memory are available: loading a checkpoint needs "
            f"{gib(_HOST_LEAST_BYTES)} at least",
            "end other processes, or raise the container's memory limit",
        )
    needed = _cpu_bytes(seen)
    if needed is None or needed <= available:
        return None
    name = seen.model.model_id if seen.model else seen.settings.model
    return Finding(
        "problem",
        f"{name} on the CPU takes {gib(needed)} for weights in "
        f"{_cpu_dtype(seen)}, and {gib(available)} are available",
        "use --model tiny or a smaller one, --dtype bfloat16, or a GPU",
    )


def model_too_large(seen: Examined) -> Finding | None:
    mode = seen.mode_plan
    if not seen.runs_on_gpu or mode is None or mode.fits or mode.report is None:
        return None
    missing = mode.report.shortfall_bytes
    return Finding(
        "problem",
        f"the model does not fit in gpu_mode {mode.mode}: "
        + (
            f"{missing:,} bytes ({gib(missing)}) are missing per GPU"
            if missing
            else mode.report.reasons[0]
        ),
        "take a mode that fits (table above), more or larger GPUs, a smaller model or a smaller "
        "--max-batch-tokens",
    )


def out_of_memory(seen: Examined) -> Finding | None:
    """Large requests running out of memory: what can hold them, and what leaves no margin."""
    mode = seen.mode_plan
    if not seen.runs_on_gpu or mode is None or not mode.fits or mode.report is None:
        return None
    if seen.settings.gpu_memory_utilization > 0.97:
        return Finding(
            "problem",
            f"gpu_memory_utilization {seen.settings.gpu_memory_utilization:g} leaves too little "
            "for the CUDA context and kernels: a large request may run out of memory",
            "lower --gpu-memory-utilization to 0.9",
        )
    if mode.longest_limit == "context":
        return None
    context = seen.plan.context_tokens if seen.plan else None
    return Finding(
        "note",
        f"requests over {mode.report.longest_request:,} tokens do not fit into the KV cache"
        + (f" (the model's context is {context:,})" if context else "")
        + ": they are refused before they start, nothing runs out of memory",
        "use --gpu-mode tensor or larger GPUs for longer ones, or state the limit with "
        "--max-model-len",
    )


def mxfp4_kernels(seen: Examined) -> Finding | None:
    """MXFP4 experts that take the memory of plain numbers: why, and whether they fit so."""
    if seen.model is None or stored_form(seen.model.config) != "mxfp4" or not seen.runs_on_gpu:
        return None
    experts, mode = seen.settings.experts, seen.settings.gpu_mode
    plans = (seen.plan, seen.other_plan)
    wide = next((plan for plan in plans if plan is not None and plan.weights != "mxfp4"), None)
    form = "bf16" if wide is None or wide.weights == "bfloat16" else wide.weights
    missing = lacking(seen.settings, seen.machine, seen.model.config)
    if missing:
        why = f"MXFP4 kernels need {' and '.join(missing)}: without, experts are held as {form}"
    elif widened(seen.model.config, mode, experts):
        why = f"--experts {experts} in gpu_mode {mode}: MXFP4 experts are held as {form}"
    else:
        return None
    size = "" if wide is None else f" ({gib(wide.weights_bytes)} in all)"
    fits = wide is None or wide.of(mode).fits
    cure = "use --experts auto"
    if experts != "transformers":
        typed = all(need.startswith("a half type") for need in missing)
        cure = "leave --dtype at auto" if typed else "run make setup for triton"
    return Finding(
        "note" if fits else "problem",
        f"{why}{size}" + ("" if fits else ", which does not fit"),
        f"{cure}; --experts torch keeps 4 bits on any GPU, and is slow",
    )


def port_busy(seen: Examined) -> Finding | None:
    error = seen.machine.port_error
    if error is None:
        return None
    if seen.machine.port_answers:
        return Finding(
            "note",
            f"port {seen.settings.port} is in use by this server, which runs already",
            "nothing to do",
        )
    return Finding("problem", error.partition(":")[0], error.partition(": ")[2] or "choose --port")


def _stored_bytes(seen: Examined) -> int | None:
    """Bytes of the checkpoint on disk."""
    if seen.model is None:
        return None
    if seen.model.checkpoint_bytes is not None:
        return seen.model.checkpoint_bytes
    try:
        return weights_of(seen.model.config, dtype="bfloat16").total_bytes
    except ShapeUnknown:
        return None


def _cpu_dtype(seen: Examined) -> str:
    return "float32" if seen.settings.dtype == "auto" else seen.settings.dtype


def _cpu_bytes(seen: Examined) -> int | None:
    """Bytes of the weights in memory on the CPU, where only --experts torch keeps MXFP4."""
    if seen.model is None:
        return None
    try:
        return weights_of(
            seen.model.config,
            dtype=_cpu_dtype(seen),
            dequantized=seen.settings.experts != "torch",
        ).total_bytes
    except ShapeUnknown:
        return None


HOST_CHECKS = (
    Check("python-version", python_version),
    Check("package-versions", package_versions),
    Check("torch-broken", torch_broken),
    Check("model-unknown", model_unknown),
    Check("hub-offline", hub_offline),
    Check("disk-too-small", disk_too_small),
    Check("ram-too-small", ram_too_small),
    Check("mxfp4-kernels", mxfp4_kernels),
    Check("model-too-large", model_too_large),
    Check("out-of-memory", out_of_memory),
    Check("port-busy", port_busy),
)
