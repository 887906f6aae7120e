"""The project's own files agree with each other: dependencies, pins, reasons, version."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gpt_oss_server import __version__

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins() -> dict[str, str]:
    """Package → version of every line of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = {}
    for line in (line for line in lines if not line.startswith("#")):
        name, _, version = line.partition("==")
        found[canonicalize_name(name)] = version
    return found


def test_every_dependency_is_pinned_within_its_bounds() -> None:
    """constraints.txt holds, for each declared dependency, one version that it allows. Triton's is
    PyTorch's choice where PyTorch is for GPUs."""
    extras = PROJECT["optional-dependencies"]
    declared = [*PROJECT["dependencies"], *extras["dev"], *extras["otel"]]
    pinned = pins()
    for requirement in map(Requirement, declared):
        if requirement.name == "triton":
            continue
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])


def test_pins_are_plain_versions() -> None:
    """A pin works on any machine: no path, no host, no hash, no local build."""
    for name, version in pins().items():
        assert re.fullmatch(r"[0-9]+(\.[0-9]+)*(b[0-9]+)?", version), name


def test_every_dependency_has_a_reason() -> None:
    """The first decision record names each runtime and optional dependency in its table."""
    record = (ROOT / "docs" / "adr" / "0001-dependencies.md").read_text(encoding="utf-8")
    table = "".join(line for line in record.splitlines() if line.startswith("| "))
    declared = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["otel"]]
    for requirement in map(Requirement, declared):
        assert re.search(rf"\b{re.escape(requirement.name)}\b", table), requirement.name


def test_the_version_is_said_once() -> None:
    """The package and the project file agree."""
    assert PROJECT["version"] == __version__


# What was there in Python 3.11 and is not in 3.12 or 3.13.
REMOVED = {
    *("asynchat", "asyncore", "distutils", "imp", "smtpd"),
    *("aifc", "audioop", "cgi", "cgitb", "chunk", "crypt", "imghdr", "mailcap", "msilib", "nis"),
    *("nntplib", "ossaudiodev", "pipes", "sndhdr", "spwd", "sunau", "telnetlib", "uu", "xdrlib"),
    "lib2to3",
}


def test_nothing_is_imported_that_a_supported_python_lacks() -> None:
    """The oldest and the newest version that pyproject.toml allows both have what is imported."""
    imported = set()
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 11))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    assert "asyncio" in imported
    assert not imported & REMOVED
