"""The rooms that decide are pure: the same code runs in the server, a simulator and a gateway."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "gpt_oss_server"
PURE_ROOMS = ("memory", "routing", "admission", "simulate")
FORBIDDEN = {
    "aiohttp",
    "anyio",
    "asyncio",
    "fastapi",
    "httpx",
    "multiprocessing",
    "opentelemetry",
    "prometheus_client",
    "requests",
    "socket",
    "starlette",
    "time",
    "torch",
    "transformers",
    "uvicorn",
    "uvloop",
}
IMPURE_ROOMS = {"api", "app", "cli", "commands", "engine", "fleet", "harmony", "telemetry"}
# Loaded by every interpreter, so that only the source can tell.
ALWAYS_LOADED = {"time"}


def imported_modules(source: str) -> set[str]:
    """Every module that a source file imports, at any depth, by its full dotted name."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def impurities(source: str) -> set[str]:
    """The imports that a pure room must not have."""
    found = set()
    for name in imported_modules(source):
        first, *rest = name.split(".")
        own = first == PACKAGE.name and bool(rest) and rest[0] in IMPURE_ROOMS
        if first in FORBIDDEN or own or (first == "" and name.startswith("..")):
            found.add(name)
    return found


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import math\nfrom gpt_oss_server.memory import kv", set()),
        ("import time as t", {"time"}),
        ("def f():\n    from time import monotonic", {"time", "time.monotonic"}),
        ("if TYPE_CHECKING:\n    import torch.nn", {"torch.nn"}),
        ("from gpt_oss_server import engine", {"gpt_oss_server.engine"}),
        ("from ..engine import blocks", {"..engine", "..engine.blocks"}),
        ("import timeit, asyncio.queues", {"asyncio.queues"}),
    ],
)
def test_the_check_itself(source: str, expected: set[str]) -> None:
    """The check sees imports in functions, under aliases and through the package."""
    assert impurities(source) == expected


@pytest.mark.parametrize("room", PURE_ROOMS)
def test_pure_rooms_import_nothing_impure(room: str) -> None:
    """No file of a pure room imports torch, a web framework, asyncio, metrics or a clock."""
    files = sorted((PACKAGE / room).rglob("*.py"))
    assert files, f"{room} has no source files"
    found = {str(file.relative_to(PACKAGE)): impurities(file.read_text()) for file in files}
    assert {file: names for file, names in found.items() if names} == {}


@pytest.mark.parametrize("room", PURE_ROOMS)
def test_pure_rooms_load_nothing_impure(room: str) -> None:
    """Importing every module of a pure room loads none of them either, through any dependency."""
    files = (PACKAGE / room).rglob("*.py")
    modules = [".".join(f.relative_to(PACKAGE.parent).with_suffix("").parts) for f in files]
    names = sorted(module.removesuffix(".__init__") for module in modules)
    unwanted = (FORBIDDEN - ALWAYS_LOADED) | {f"{PACKAGE.name}.{own}" for own in IMPURE_ROOMS}
    program = (
        "import importlib, sys\n"
        f"before = set(sys.modules)\nfor name in {names!r}: importlib.import_module(name)\n"
        f"print(*sorted((set(sys.modules) - before) & {unwanted!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
