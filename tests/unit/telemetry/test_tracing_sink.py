"""The sink between requests and the collector: bounded, counted, never in the way."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from trace_records import record

from gpt_oss_server.config import Settings
from gpt_oss_server.errors import ConfigError
from gpt_oss_server.events import HttpAnswered, RequestEnded, TraceContext
from gpt_oss_server.telemetry.tracing import (
    BATCH,
    Tracing,
    check_tracing_settings,
    open_tracing,
)
from gpt_oss_server.telemetry.tracing_sampling import Sampling
from gpt_oss_server.telemetry.tracing_spans import RequestTrace

ENDED = RequestEnded(record())
NEVER_S = 3600.0


class Collector:
    """Takes batches and answers from a script, then for ever with the script's last word."""

    def __init__(self, *script: bool | Exception, gate: threading.Event | None = None) -> None:
        self.script = list(script) or [True]
        self.gate = gate
        self.batches: list[int] = []
        self.entered = threading.Event()
        self.closed = 0

    def __call__(self, traces: Sequence[RequestTrace]) -> bool:
        self.batches.append(len(traces))
        self.entered.set()
        if self.gate is not None:
            self.gate.wait()
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        self.closed += 1
        if self.gate is not None:
            self.gate.set()


def opened(collector: Collector, **options: Any) -> Tracing:
    return Tracing(collector, Sampling(1.0, 10.0), **{"send_every_s": NEVER_S, **options})


def test_what_waits_is_sent_at_the_end() -> None:
    """Closing sends the last requests, in batches, and says so to the collector once."""
    collector = Collector()
    sink = opened(collector)
    for _ in range(3):
        sink.emit(ENDED)
    sink.emit(HttpAnswered("/live", 200, 0.1))
    sink.close()
    assert sum(collector.batches) == 3
    assert (sink.exported, sink.dropped, collector.closed) == (3, 0, 1)


def test_a_full_batch_is_sent_at_once() -> None:
    """Nobody waits for the interval when a batch is full."""
    collector = Collector()
    sink = opened(collector)
    for _ in range(BATCH):
        sink.emit(ENDED)
    assert collector.entered.wait(30)
    sink.close()
    assert sink.exported == BATCH


def test_a_full_queue_drops_and_counts() -> None:
    """While the collector holds one batch, `capacity` requests wait and the rest is counted."""
    gate = threading.Event()
    collector = Collector(gate=gate)
    sink = opened(collector, capacity=BATCH)
    for _ in range(BATCH):
        sink.emit(ENDED)
    assert collector.entered.wait(30)
    for _ in range(BATCH + 5):
        sink.emit(ENDED)
    assert sink.dropped == 5
    gate.set()
    sink.close()
    assert (sink.exported, sink.dropped) == (2 * BATCH, 5)


@pytest.mark.parametrize("answer", [False, ValueError("secret words")])
def test_what_the_collector_does_not_take_is_counted_and_said_once(
    answer: bool | Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """A refusal or an exception loses the batch; the log says so once, and when it is over."""
    collector = Collector()
    caplog.set_level(logging.INFO)
    sink = opened(collector, where="there:4318")
    for turn, said in enumerate((answer, answer, True), 1):
        collector.script = [said]
        for _ in range(BATCH):
            sink.emit(ENDED)
        while sink.exported + sink.dropped < turn * BATCH:
            pass  # its thread may send a batch in parts
    sink.close()
    assert (sink.exported, sink.dropped) == (BATCH, 2 * BATCH)
    lines = [line.getMessage() for line in caplog.records]
    assert len(lines) <= 2
    assert lines[0].startswith("traces do not reach there:4318 (")
    assert "secret" not in " ".join(lines)


def test_closing_does_not_wait_for_a_collector_that_does_not_answer() -> None:
    """What is left then is dropped and counted; nothing is taken any more."""
    collector = Collector(gate=threading.Event())
    sink = opened(collector, close_wait_s=0.0)
    for _ in range(BATCH):
        sink.emit(ENDED)
    assert collector.entered.wait(30)
    collector.gate = None  # only the call under way hangs
    for _ in range(2):
        sink.emit(ENDED)
    sink.close()
    sink.emit(ENDED)
    assert sink.dropped == 3
    assert collector.closed == 1


def test_unsampled_requests_are_not_even_queued() -> None:
    """Nothing reaches the collector's thread for them."""
    collector = Collector()
    sink = Tracing(collector, Sampling(0.0, 10.0), send_every_s=NEVER_S)
    sink.emit(RequestEnded(record(trace=TraceContext("f" * 32, "1" * 16))))
    sink.close()
    assert (collector.batches, sink.dropped) == ([], 0)


def test_no_endpoint_no_sink() -> None:
    """Without the setting there is nothing to close and nothing imported."""
    check_tracing_settings(Settings())
    assert open_tracing(Settings()) is None


def test_an_endpoint_opens_the_real_exporter() -> None:
    """The settings reach the sampling; the sink starts and ends without a collector."""
    sink = open_tracing(Settings(otlp_endpoint="http://127.0.0.1:9", trace_sample_rate=1.0))
    assert sink is not None
    assert sink.sampled(record().trace)
    sink.close()
    assert (sink.exported, sink.dropped) == (0, 0)


BLOCKED = """
import sys
for name in list(sys.modules):
    assert not name.startswith("opentelemetry"), name
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(f"No module named {name!r}", name="opentelemetry")
sys.meta_path.insert(0, Refuse())
"""


def without_the_extra(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCKED + program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_core_needs_no_opentelemetry() -> None:
    """The composition root and every telemetry module but one import without the extra."""
    done = without_the_extra(
        "import gpt_oss_server.app, gpt_oss_server.telemetry.tracing_spans\n"
        "from gpt_oss_server.config import Settings\n"
        "from gpt_oss_server.telemetry.tracing import open_tracing\n"
        "print(open_tracing(Settings()))"
    )
    assert (done.returncode, done.stdout.strip()) == (0, "None"), done.stderr


def test_an_endpoint_without_the_extra_is_one_line() -> None:
    """`serve` ends with status 2 and says which package to install."""
    done = without_the_extra(
        "from gpt_oss_server.cli import main\n"
        "sys.exit(main(['serve', '--port', '0', '--otlp-endpoint', 'http://127.0.0.1:4318']))"
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: otlp_endpoint: traces need a package that is not here (opentelemetry): "
        "pip install 'gpt-oss-hf-server[otel]'\n"
    )


def test_the_check_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same in this process: a ConfigError, before anything has started."""
    monkeypatch.setitem(sys.modules, "gpt_oss_server.telemetry.tracing_otlp", None)
    with pytest.raises(ConfigError, match="otlp_endpoint: traces need a package"):
        check_tracing_settings(Settings(otlp_endpoint="http://h:1"))
