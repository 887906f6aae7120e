"""A bundle as one JSON document, or as a zip with a file for each section.

Knows: the two forms. Does not know: what is in a section. Both take milliseconds to write: not on
an event loop.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from gpt_oss_server.bundle.redact import Sieve
from gpt_oss_server.bundle.sections import Collected

LINES = "logs"


def as_document(collected: Collected, sieve: Sieve) -> dict[str, Any]:
    """The manifest and the sections side by side, sieved."""
    document: dict[str, Any] = sieve({"manifest": collected.manifest(), **collected.content})
    return document


def as_json(document: Mapping[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(document), indent=1)


def as_zip(document: Mapping[str, Any]) -> bytes:
    """`SECTION.json` for each; text as `SECTION.txt`, log lines as `logs.jsonl`."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in document.items():
            if isinstance(content, str):
                archive.writestr(f"{name}.txt", content)
            elif name == LINES:
                lines = b"".join(msgspec.json.encode(line) + b"\n" for line in content)
                archive.writestr(f"{name}.jsonl", lines)
            else:
                text = msgspec.json.format(msgspec.json.encode(content), indent=1)
                archive.writestr(f"{name}.json", text)
    return written.getvalue()


def file_name(created_unix_s: float, ending: str) -> str:
    moment = datetime.fromtimestamp(created_unix_s, UTC).strftime("%Y%m%dT%H%M%SZ")
    return f"gpt-oss-bundle-{moment}.{ending}"
