"""`python src/server.py …` from a checkout is `gpt-oss-server serve …`."""

import importlib.util
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    python = Path(__file__).resolve().parents[1] / ".venv" / "bin" / "python"
    if importlib.util.find_spec("uvloop") is None and python.exists():
        # A python other than the one `make setup` made ready: go on in that one.
        os.execv(python, [str(python), *sys.argv])
    from gpt_oss_server.cli import main

    sys.exit(main(["serve", *sys.argv[1:]]))
