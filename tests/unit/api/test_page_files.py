"""The chat page is part of what is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "src" / "gpt_oss_server" / "api" / "page"


def test_the_wheel_has_the_page(tmp_path: Path) -> None:
    """A wheel built from the sources holds every file of the page, unchanged."""
    pytest.importorskip("setuptools", "77")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    package = tmp_path / "src" / "gpt_oss_server"
    shutil.copytree(PAGE, package / "api" / "page")
    for init in (package / "__init__.py", package / "api" / "__init__.py"):
        init.touch()
    build = "from setuptools.build_meta import build_wheel; build_wheel('.')"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as held:
        for file in PAGE.iterdir():
            assert held.read(f"gpt_oss_server/api/page/{file.name}") == file.read_bytes()


def test_every_file_is_small() -> None:
    """Nobody has to read more than a few screens, and no line is endless."""
    for file in PAGE.iterdir():
        text = file.read_text(encoding="utf-8")
        assert text.count("\n") <= 250, file.name
        assert max(map(len, text.splitlines())) <= 240, file.name
