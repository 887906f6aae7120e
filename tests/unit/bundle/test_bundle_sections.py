"""Sections are read each on its own: what fails or hangs is missing, and the manifest says so."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import zipfile
from typing import Any

import pytest

from gpt_oss_server import __version__
from gpt_oss_server.bundle.pack import as_document, as_json, as_zip, file_name
from gpt_oss_server.bundle.redact import Sieve
from gpt_oss_server.bundle.sections import (
    Absent,
    Collected,
    InThread,
    OnLoop,
    Section,
    collect,
    describe,
)
from gpt_oss_server.errors import NotReady, StartupError

SECRET = "the prompt's own words"


def raising(error: Exception) -> OnLoop:
    def read() -> Any:
        raise error

    return OnLoop(read)


def collected(*sections: Section) -> Collected:
    return asyncio.run(collect(sections, "server", clock=lambda: 5.0, unix_clock=lambda: 86400.0))


def test_what_can_be_read_is_there_and_the_rest_is_explained() -> None:
    """Each way of not being readable has its status; the order is that of the sections."""
    release = threading.Event()

    async def for_ever() -> None:
        await asyncio.Event().wait()

    try:
        found = collected(
            Section("plain", OnLoop(lambda: {"a": 1})),
            Section("bug", raising(ValueError(SECRET))),
            Section("early", raising(NotReady("the engine is loading"))),
            Section("none", raising(Absent("nothing to see"))),
            Section("stuck", InThread(release.wait), 0.01),
            Section("endless", for_ever, 0.01),
            Section("odd", OnLoop(lambda: object())),
            Section("thread", InThread(lambda: "text")),
        )
    finally:
        release.set()
    assert found.content == {"plain": {"a": 1}, "thread": "text"}
    assert list(found.states) == [
        *("plain", "bug", "early", "none", "stuck", "endless", "odd", "thread")
    ]
    states = {name: (state.status, state.error) for name, state in found.states.items()}
    bug = states.pop("bug")
    odd = states.pop("odd")
    assert states == {
        "plain": ("ok", None),
        "early": ("absent", "the engine is loading"),
        "none": ("absent", "nothing to see"),
        "stuck": ("timed_out", "no answer within 0.01 s"),
        "endless": ("timed_out", "no answer within 0.01 s"),
        "thread": ("ok", None),
    }
    assert (bug[0], odd[0]) == ("failed", "failed")
    assert str(bug[1]).startswith("ValueError at test_bundle_sections.py:")
    assert SECRET not in str(found.manifest())


def test_a_reading_that_hangs_is_not_started_again() -> None:
    """While one thread is away the section is absent: bundles do not pile up threads."""
    release = threading.Event()
    section = Section("stuck", InThread(release.wait), 0.01)

    async def story() -> list[str]:
        first = await collect([section], "server")
        second = await collect([section], "server")
        release.set()
        while (third := await collect([section], "server")).states["stuck"].status != "ok":
            pass
        return [c.states["stuck"].status for c in (first, second, third)]

    assert asyncio.run(story()) == ["timed_out", "absent", "ok"]


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (StartupError("port 1 is in use"), "StartupError: port 1 is in use"),
        (PermissionError(13, "Permission denied", "/home/x"), "PermissionError: Permission denied"),
        (RuntimeError(SECRET), "RuntimeError"),
    ],
)
def test_only_our_own_words_are_quoted(fault: Exception, text: str) -> None:
    """Our messages and the system's are shown; a library's may quote a prompt."""
    assert describe(fault) == text


def test_the_manifest() -> None:
    """Exactly these fields."""
    found = collected(Section("a", OnLoop(lambda: 1)), Section("b", raising(Absent("why"))))
    assert found.manifest() == {
        "format": 1,
        "created": "1970-01-02T00:00:00Z",
        "source": "server",
        "version": __version__,
        "sections": {
            "a": {"status": "ok", "seconds": 0.0},
            "b": {"status": "absent", "seconds": 0.0, "error": "why"},
        },
    }


def test_both_forms_hold_the_same() -> None:
    """The zip has a file per section; text and log lines stay readable with plain tools."""
    found = collected(
        Section("stats", OnLoop(lambda: {"a": [1, None]})),
        Section("metrics", OnLoop(lambda: "up 1\n")),
        Section("logs", OnLoop(lambda: [{"level": "info"}, {"level": "error"}])),
        Section("gone", raising(Absent("why"))),
    )
    document = as_document(found, Sieve([]))
    assert json.loads(as_json(document)) == document
    assert list(document) == ["manifest", "stats", "metrics", "logs"]
    with zipfile.ZipFile(io.BytesIO(as_zip(document))) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    assert set(files) == {"manifest.json", "stats.json", "metrics.txt", "logs.jsonl"}
    assert json.loads(files["manifest.json"]) == document["manifest"]
    assert json.loads(files["stats.json"]) == {"a": [1, None]}
    assert files["metrics.txt"] == b"up 1\n"
    assert files["logs.jsonl"] == b'{"level":"info"}\n{"level":"error"}\n'


def test_the_file_says_when() -> None:
    """UTC, without a colon, so that every file system takes it."""
    assert file_name(86400.0, "zip") == "gpt-oss-bundle-19700102T000000Z.zip"
