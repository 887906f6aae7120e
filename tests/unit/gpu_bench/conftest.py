"""Puts the GPU benchmark's folder on the path, as its own command does."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[3] / "benchmarks" / "gpu"))
