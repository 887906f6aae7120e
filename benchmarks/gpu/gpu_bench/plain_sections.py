"""What needs no model: the machine's ceilings, the attention kernel by itself, model files, sweeps.

Knows: `timing`, the two kernel benchmarks beside this package. Does not know: engines.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from timing import ceilings

from gpu_bench import models
from gpu_bench.settings import Settings
from gpu_bench.shapes import FORMS

DECODE_CASE = "decode 64 x 8k"
ROOT = Path(__file__).parents[3]
TESTS = (
    *("tests/gpu", "tests/unit/kernels"),
    *("tests/unit/engine/test_experts_choice.py", "tests/unit/engine/test_experts_stored.py"),
)
TESTS_LIMIT_S = 500


class PlainBench:
    """The sections by name."""

    def __init__(self, settings: Settings, form: str = "") -> None:
        self.settings = settings
        self.on_gpu = settings.device.startswith("cuda")

    def ceilings(self) -> dict[str, Any]:
        """A large copy and a large product, and what they ran on."""
        dtype = getattr(torch, self.settings.dtype)
        with torch.inference_mode():
            copy, product = ceilings(self.settings.device, dtype)
        return {
            "copy_bytes_per_s": copy,
            "product_flop_per_s": product,
            "device": torch.cuda.get_device_name() if self.on_gpu else "CPU, a rehearsal",
            "python": platform.python_version(),
            **{name: _version(name) for name in ("torch", "transformers", "triton")},
            "cuda": torch.version.cuda,
            "stand_ins": stand_ins(),
        }

    def models(self) -> dict[str, Any]:
        """Made before they are needed, so that no engine's start pays for it."""
        return {form: models.ensure(self.settings, form) for form in FORMS}

    def attention(self) -> dict[str, Any]:
        """The decode kernel in long contexts, against the copy of the same process."""
        import attention
        from attention_problem import FULL, TINY, cases, tiny_cases

        if self.on_gpu:
            chosen = [case for case in cases() if case.name == DECODE_CASE]
            shape = FULL
        else:
            chosen, shape = tiny_cases()[:1], TINY
            if not interpreted():
                return {"why_not": "kernels run on a CPU with TRITON_INTERPRET=1 only"}
        with torch.inference_mode():
            result = attention.run(shape, chosen, sweep=False)
        (row,) = result["rows"]
        if row["error"] < 0:
            raise RuntimeError(f"{row['case']}: wrong, or it did not run")
        return {**row, "copy_gb_s": result["copy_gb_s"]}

    def tune_attention(self) -> dict[str, Any]:
        """Every case with every trial of tiles."""
        import attention
        from attention_problem import FULL, TINY, cases, tiny_cases

        shape, chosen = (FULL, cases()) if self.on_gpu else (TINY, tiny_cases()[:1])
        with torch.inference_mode():
            result = attention.run(shape, chosen, sweep=self.on_gpu)
        return {"markdown": attention.markdown(result), **result}

    def tune_plain(self) -> dict[str, Any]:
        return self._tune_experts("bfloat16")

    def tune_mxfp4(self) -> dict[str, Any]:
        return self._tune_experts("mxfp4")

    def _tune_experts(self, form: str) -> dict[str, Any]:
        """A form of weights with every trial of tiles, at three sizes."""
        import experts

        shape = experts.full_shape(32) if self.on_gpu else experts.tiny_shape()
        shape = experts.replace(shape, tokens=(1, 64, 8192) if self.on_gpu else (1,))
        with torch.inference_mode():
            result = experts.run(shape, [form], self.on_gpu)
        return {"markdown": experts.markdown(result), **result, "shape": str(asdict(shape))}

    def tests(self) -> dict[str, Any]:
        """What of the test suite is for this device, in a process of its own."""
        # Other plugins that are installed may need what is not.
        plain = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        options = ["-q", "-W", "default", "-p", "pytest_timeout"]
        command = [sys.executable, "-m", "pytest", *options, *TESTS]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=plain,
            capture_output=True,
            text=True,
            timeout=TESTS_LIMIT_S,
            check=False,
        )
        lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines()
        if done.returncode != 0:
            print(done.stdout[-8000:], done.stderr[-2000:], file=sys.stderr)
        return {
            "command": " ".join(["python", *command[1:]]),
            "exit_status": done.returncode,
            "summary": lines[-1] if lines else "",
            "failed": [line for line in lines if line.startswith(("FAILED", "ERROR"))],
        }


def interpreted() -> bool:
    """Whether Triton's kernels are interpreted in this process."""
    import triton

    return bool(triton.knobs.runtime.interpret)


def stand_ins() -> list[str]:
    """Packages that are not there, for which this folder has a part of them."""
    names = ("msgspec", "llguidance")
    found = []
    for name in names:
        module = sys.modules.get(name) or __import__(name)
        if f"without_{name}" in str(module.__file__):
            found.append(name)
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
