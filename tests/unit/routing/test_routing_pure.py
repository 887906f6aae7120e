"""The pure rooms stay pure: nothing they import, directly or through us, does I/O or tells time."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import gpt_oss_server

PACKAGE = Path(gpt_oss_server.__file__).parent
FORBIDDEN = {
    "aiohttp", "asyncio", "datetime", "fastapi", "httpx", "numpy", "opentelemetry",
    "prometheus_client", "pynvml", "requests", "secrets", "socket", "starlette", "subprocess",
    "time", "torch", "transformers", "uvicorn", "uvloop",
}  # fmt: skip


def imported(path: Path) -> set[str]:
    """Dotted names of everything that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def own_file(name: str) -> Path | None:
    """The file of one of our own modules, None for anything else."""
    parts = name.split(".")
    if parts[0] != "gpt_oss_server":
        return None
    base = PACKAGE.joinpath(*parts[1:])
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@pytest.mark.parametrize("room", ["routing", "admission"])
def test_a_pure_room_reaches_nothing_impure(room: str) -> None:
    """Followed through our own modules, no forbidden import is found."""
    waiting = sorted((PACKAGE / room).rglob("*.py"))
    assert len(waiting) > 5
    seen: set[Path] = set()
    found: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in imported(path):
            if name.split(".")[0] in FORBIDDEN:
                found.add(f"{path.relative_to(PACKAGE)} imports {name}")
            own = own_file(name)
            if own is not None:
                waiting.append(own)
    assert found == set()
