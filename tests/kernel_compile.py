"""Compiles what functions launch, for a GPU that need not be there, and reports on each kernel.

A script, because whether kernels are interpreted is settled for a process by its environment:

    python tests/kernel_compile.py MODULE:FUNCTION CAPABILITY   (90 for compute capability 9.0)

FUNCTION calls kernels with tensors on the CPU; nothing runs. Prints JSON: for each compiled kernel
its name, registers per thread, bytes of stack (where spilled numbers go) and of shared memory, and
how many warpgroup products, 16-byte copies to shared memory and 2-byte loads its PTX has.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


class AbsentDriver:
    """Says what Triton asks of a driver before it launches."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def resources(cubin: bytes) -> dict[str, int]:
    """Of a compiled kernel, by the tool that comes with Triton."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        text = subprocess.run(
            [knobs.nvidia.cuobjdump.path, "-res-usage", str(file)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise RuntimeError(f"no resources in {text!r}")
    return {"registers": int(found.group(1)), "stack_bytes": int(found.group(2))}


def report(kernel: Any) -> dict[str, Any]:
    ptx = kernel.asm["ptx"]
    return {
        "name": kernel.metadata.name,
        **resources(kernel.asm["cubin"]),
        "shared_bytes": kernel.metadata.shared,
        "warps": kernel.metadata.num_warps,
        "warpgroup_products": ptx.count("wgmma.mma_async"),
        "wide_copies": len(re.findall(r"cp\.async\.cg\.shared\.global .*, 0x10", ptx)),
        "narrow_loads": len(re.findall(r"ld\.global[.\w:]*\.b16", ptx)),
    }


def main(function: str, capability: int) -> int:
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    driver.set_active(AbsentDriver(capability))
    launch = JITFunction.run
    compiled: dict[str, Any] = {}

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = launch(self, *args, grid=grid, warmup=True, **options)
        compiled[kernel.hash] = kernel
        return kernel

    JITFunction.run = compile_only
    module, name = function.split(":")
    sys.path.insert(0, str(Path(__file__).parent))
    getattr(importlib.import_module(module), name)()
    print(json.dumps([report(kernel) for kernel in compiled.values()]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], int(sys.argv[2])))
