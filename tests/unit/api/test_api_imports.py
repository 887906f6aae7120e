"""The front process stays light."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "transformers", "tokenizers", "numpy", "starlette")


def test_importing_the_surface_loads_no_model_library() -> None:
    """Importing the application and the fake engine loads neither torch nor transformers."""
    code = (
        "import sys, gpt_oss_server.api.app, gpt_oss_server.engine.fake;"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "[]\n"
