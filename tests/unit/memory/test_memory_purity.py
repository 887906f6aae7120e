"""The memory room is arithmetic: nothing heavy, nothing that tells the time."""

from __future__ import annotations

import subprocess
import sys

FORBIDDEN = ("torch", "transformers", "asyncio", "starlette", "prometheus_client", "uvicorn")


def test_importing_every_module_imports_nothing_heavy() -> None:
    """A fresh interpreter that imports the whole room has none of the forbidden modules."""
    code = (
        "import importlib, pkgutil, sys\n"
        "import gpt_oss_server.memory as room\n"
        "for module in pkgutil.iter_modules(room.__path__, room.__name__ + '.'):\n"
        "    importlib.import_module(module.name)\n"
        f"print([name for name in {FORBIDDEN!r} if name in sys.modules])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.strip() == "[]"
