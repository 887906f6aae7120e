"""The front process never loads the grammar library."""

from __future__ import annotations

import subprocess
import sys


def test_the_front_does_without_the_library() -> None:
    """With the library made impossible to import, everything that the front is made of still is."""
    program = (
        "import sys; sys.modules['llguidance'] = None\n"
        "import gpt_oss_server.app, gpt_oss_server.cli, gpt_oss_server.engine.fake\n"
        "import gpt_oss_server.engine.client, gpt_oss_server.harmony.formats\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
