"""A trace collector that takes everything and keeps nothing, as a process of its own.

    python -m telemetry_bench.collector [--hang]

Prints its address. With `--hang` it takes a request and never answers. Ends with its stdin.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Take(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Hang(_Take):
    def do_POST(self) -> None:
        threading.Event().wait()


@contextlib.contextmanager
def collector(*flags: str) -> Iterator[str]:
    """One while the block runs; its address."""
    environ = os.environ | {"PYTHONPATH": os.path.dirname(os.path.dirname(__file__))}
    command = [sys.executable, "-m", __name__, *flags]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ
    ) as process:
        try:
            yield process.stdout.readline().strip() if process.stdout is not None else ""
        finally:
            process.kill()


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hang if "--hang" in sys.argv else _Take)
    server.daemon_threads = True
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
