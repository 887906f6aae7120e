"""A real receiver of OTLP over HTTP: takes protobuf, keeps the spans, answers as told."""

from __future__ import annotations

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

WAIT_S = 30.0


def plain(value: AnyValue) -> Any:
    """An attribute's value as Python's own."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(one) for one in value.array_value.values]
    return getattr(value, str(kind))


def attributes(pairs: list[KeyValue]) -> dict[str, Any]:
    return {pair.key: plain(pair.value) for pair in pairs}


class OtlpReceiver:
    """`status` is what it answers. With `mute` it takes a request and never answers; with `slow`
    it answers once it was told to `release`."""

    def __init__(self, *, status: int = 200, mute: bool = False, slow: bool = False) -> None:
        self.status = status
        self.mute = mute
        self.slow = slow
        self.spans: list[Span] = []
        self.resources: list[dict[str, Any]] = []
        self.scopes: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.posts = 0
        self._changed = threading.Condition()
        self._released = threading.Event()
        receiver = self

        class Answer(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver._take(self.path, dict(self.headers), body)
                if receiver.mute or receiver.slow:
                    receiver._released.wait(WAIT_S)
                if receiver.mute:
                    self.close_connection = True
                    return
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(receiver.status)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> OtlpReceiver:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(WAIT_S)

    def release(self) -> None:
        """Answer what waits, and from now on at once."""
        self._released.set()

    def wait_for_posts(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.posts >= count, WAIT_S), self.posts

    def trace(self, name: str, count: int = 1) -> list[Span]:
        """All spans that have come, once `count` of this name are among them."""

        def there() -> bool:
            return sum(span.name == name for span in self.spans) >= count

        with self._changed:
            assert self._changed.wait_for(there, WAIT_S), [span.name for span in self.spans]
            return list(self.spans)

    def _take(self, path: str, headers: dict[str, str], body: bytes) -> None:
        assert path == "/v1/traces"
        lower = {name.lower(): value for name, value in headers.items()}
        if lower.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        request = ExportTraceServiceRequest.FromString(body)
        with self._changed:
            self.posts += 1
            self.headers.append(lower)
            if self.status == 200:
                for resource in request.resource_spans:
                    self.resources.append(attributes(list(resource.resource.attributes)))
                    for scope in resource.scope_spans:
                        self.scopes.append(scope.scope.name)
                        self.spans.extend(scope.spans)
            self._changed.notify_all()
