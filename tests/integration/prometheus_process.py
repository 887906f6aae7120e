"""A real Prometheus beside the server under test."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None,
    reason="needs the program prometheus (Debian package `prometheus`)",
)
_TRIES = 300
_PAUSE_S = 0.1


def free_port() -> int:
    """A port that was free a moment ago: Prometheus cannot choose its own and tell."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Prometheus:
    """Its HTTP API."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = httpx.Client(base_url=url, trust_env=False, timeout=10)

    def get(self, path: str, params: Mapping[str, str] | None = None) -> Any:
        response = self._http.get(f"/api/v1/{path}", params=dict(params or {}))
        assert response.status_code == 200, response.text
        return response.json()["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The result of an instant query, a list of `{"metric", "value"}`."""
        result: list[dict[str, Any]] = self.get("query", {"query": expression})["result"]
        return result

    def until(self, expression: str) -> list[dict[str, Any]]:
        """The result of a query, once it has one."""
        pause = threading.Event()
        for _ in range(_TRIES):
            with contextlib.suppress(httpx.TransportError, AssertionError):
                if result := self.query(expression):
                    return result
            pause.wait(_PAUSE_S)  # another process gives no event to wait for
        raise AssertionError(f"no result within {_TRIES * _PAUSE_S:g} s: {expression}")

    def close(self) -> None:
        self._http.close()


@contextlib.contextmanager
def prometheus(folder: Path, targets: Sequence[str], **config: Any) -> Iterator[Prometheus]:
    """One that scrapes `targets` (`host:port`) each second; `config` adds to its file."""
    port = free_port()
    file = folder / "prometheus.yml"
    content = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "scrape_configs": [
            {"job_name": "gpt-oss-server", "static_configs": [{"targets": list(targets)}]}
        ],
        **config,
    }
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={file}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--enable-feature=exemplar-storage",
            ],
            stdout=log,
            stderr=log,
        )
    api = Prometheus(f"http://127.0.0.1:{port}")
    try:
        yield api
    finally:
        api.close()
        process.terminate()
        process.wait(timeout=30)


def exemplars(api: Prometheus, name: str) -> list[dict[str, Any]]:
    """What Prometheus stored of the exemplars of a series."""
    series = api.get("query_exemplars", {"query": name, "start": "0", "end": "9999999999"})
    return [exemplar for one in series for exemplar in one["exemplars"]]
