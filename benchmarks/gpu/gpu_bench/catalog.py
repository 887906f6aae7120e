"""Which sections there are, in what kind of process each runs, and how long it should take.

Knows: names and expectations. Does not know: what a section does. Sections of one host share a
process, and so one loaded model, until one of them fails: those behind it get a new process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpu_bench.shapes import FORMS


@dataclass(frozen=True)
class Section:
    """`seconds`: expected on an H100, the host's start not counted. `usual`: run without being
    asked for."""

    name: str
    host: str
    method: str
    seconds: float
    usual: bool = True

    @property
    def topic(self) -> str:
        return self.name.partition(":")[0]


HOST_SECONDS = {
    "plain": 10.0,
    "engine:bf16": 60.0,
    "engine:mxfp4": 55.0,
    "transformers:bf16": 25.0,
    "transformers:mxfp4": 55.0,
}
"""Expected from a process's start to its first section: imports, weights, kernels, capture."""

_ENGINE = {
    "start": 0.0,
    "decode": 14.0,
    "prefill": 5.0,
    "hidden": 6.0,
    "answers": 6.0,
    "chats": 15.0,
    "requests": 22.0,
    "memory": 6.0,
    "profile": 15.0,
}
_PLAIN = {"ceilings": 5.0, "attention": 20.0, "models": 25.0}
_SELDOM = ("chats:mxfp4", "requests:mxfp4")
_TUNE = {
    "tune_attention": ("tune_attention", 240.0),
    "tune_experts:bf16": ("tune_plain", 280.0),
    "tune_experts:mxfp4": ("tune_mxfp4", 280.0),
}


def catalog() -> tuple[Section, ...]:
    """All of them, in the order in which they run."""
    sections = [Section(name, "plain", name, took) for name, took in _PLAIN.items()]
    for form in FORMS:
        host = f"engine:{form}"
        sections += [
            Section(f"{name}:{form}", host, name, took, f"{name}:{form}" not in _SELDOM)
            for name, took in _ENGINE.items()
        ]
    theirs = "transformers:bf16"
    sections += [
        Section("generate:bf16", theirs, "generate", 10.0),
        Section("compare:bf16", theirs, "compare", 30.0),
        Section("generate_batch:bf16", theirs, "generate_batch", 80.0),
        Section("compare:mxfp4", "transformers:mxfp4", "compare", 30.0),
    ]
    sections += [
        Section(name, "plain", method, took, False) for name, (method, took) in _TUNE.items()
    ]
    return (*sections, Section("tests", "plain", "tests", 300.0, False))


def chosen(names: Sequence[str], *, tune: bool) -> list[Section]:
    """By topic or full name; the usual ones for no names. Raises ValueError for an unknown one."""
    known = catalog()
    for name in names:
        if not any(name in (one.name, one.topic) for one in known):
            topics = ", ".join(dict.fromkeys(one.topic for one in known))
            raise ValueError(f"no section {name!r}; there are {topics}")
    return [
        one
        for one in known
        if (one.name in names or one.topic in names or (not names and one.usual))
        or (tune and one.name in _TUNE)
    ]


def by_host(sections: Sequence[Section]) -> list[tuple[str, list[Section]]]:
    """Neighbours of one host together."""
    groups: list[tuple[str, list[Section]]] = []
    for one in sections:
        if not groups or groups[-1][0] != one.host:
            groups.append((one.host, []))
        groups[-1][1].append(one)
    return groups


def expected_s(sections: Sequence[Section]) -> float:
    """Of all, each host started once."""
    hosts = {one.host for one in sections}
    return sum(HOST_SECONDS[host] for host in hosts) + sum(one.seconds for one in sections)
