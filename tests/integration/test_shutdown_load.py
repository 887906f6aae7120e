"""The end of a real server that is busy: streams running, a prompt being read, others waiting."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import psutil
import pytest
from app_process import ServerProcess, client, complaints, running

FLAGS = ("--device", "cpu", "--load-format", "random", "--threads", "1", "--prefix-caching")
POOL = ("--kv-cache-memory", "384MiB", "--max-num-seqs", "3", "--max-batch-tokens", "64")
QUIET = ("--log-level", "warning", "--large-input-tokens", "1000000")
STREAMS, WAITING = 2, 3


def ask(url: str, *, tokens: int, stream: bool, prompt: str = "Hello") -> httpx.Response:
    body = {
        "model": "tiny",
        "prompt": prompt,
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": stream,
    }
    with client(url) as http:
        return http.post("/v1/completions", json=body, timeout=120)


class Load:
    """A server with every kind of request in it, and the answers to come."""

    def __init__(self, server: ServerProcess, url: str, pool: ThreadPoolExecutor, tokens: int):
        self._url = url
        (self.worker,) = psutil.Process(server.process.pid).children()
        self.streams = [pool.submit(ask, url, tokens=tokens, stream=True) for _ in range(STREAMS)]
        self.until("running", STREAMS)
        # Sixty-four tokens a step, of which the streams take theirs: this goes on for a while.
        self.prefill = pool.submit(ask, url, tokens=1, stream=False, prompt="word " * 10_000)
        self.until("running", STREAMS + 1)
        self.waiting = [
            pool.submit(ask, url, tokens=2, stream=number % 2 == 0) for number in range(WAITING)
        ]
        self.until("waiting", WAITING)

    @property
    def answers(self) -> list[Future[httpx.Response]]:
        return [*self.streams, self.prefill, *self.waiting]

    def until(self, name: str, number: int) -> None:
        with client(self._url) as http:
            while http.get("/stats").json()["admission"][name] != number:
                pass


@contextmanager
def busy(*flags: str, tokens: int) -> Iterator[tuple[ServerProcess, Load]]:
    """A server under load; at the end nothing of it may be left."""
    with running("real", *FLAGS, *POOL, *QUIET, *flags) as server, ThreadPoolExecutor(8) as pool:
        url = server.url()
        server.read_until("ready")
        load = Load(server, url, pool, tokens)
        try:
            yield server, load
            assert not load.worker.is_running()
        finally:
            server.process.kill()


def cut(answer: httpx.Response) -> bool:
    """Whether it ended in an error that says so, and not in silence."""
    if answer.status_code == 200:
        *_, last = answer.text.strip().split("\n\n")
        return '"error"' in last and "[DONE]" not in answer.text
    return answer.status_code == 503 and bool(answer.json()["error"]["message"])


def test_within_the_grace_everything_ends_well() -> None:
    """Running, being read, waiting: all that was taken is answered in full; status 0."""
    with busy("--shutdown-grace-s", "120", tokens=400) as (server, load):
        server.terminate()
        answers = [answer.result(timeout=120) for answer in load.answers]
        assert [answer.status_code for answer in answers] == [200] * len(answers)
        streamed = [a for a in answers if a.headers["content-type"].startswith("text/event")]
        assert len(streamed) == STREAMS + 2
        assert all(answer.text.endswith("data: [DONE]\n\n") for answer in streamed)
        status, _, err = server.end()
        assert (status, complaints(err)) == (0, [])


def test_after_the_grace_everything_is_told() -> None:
    """What does not end in time ends in an error of its own, and the status is 0."""
    with busy("--shutdown-grace-s", "0.3", tokens=100_000) as (server, load):
        server.terminate()
        assert all(cut(answer.result(timeout=60)) for answer in load.answers)
        status, _, err = server.end()
        assert status == 0
        (line,) = complaints(err)
        assert line.startswith("warning ")
        assert line.endswith(" requests still run after 0.3 s of grace: cancelled")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_everything_at_once(number: signal.Signals) -> None:
    """However long the grace: whoever insists is obeyed, and the status is the signal's."""
    with busy("--shutdown-grace-s", "3600", tokens=100_000) as (server, load):
        server.terminate()
        server.wait_for_refusal()
        server.process.send_signal(number)
        assert all(cut(answer.result(timeout=60)) for answer in load.answers)
        status, _, err = server.end()
        assert (status, complaints(err)) == (128 + number, [])


def test_a_killed_front_takes_its_worker_along() -> None:
    """Nobody ends a server well that is killed; its worker goes all the same."""
    with busy(tokens=100_000) as (server, load):
        server.process.kill()
        server.process.wait()
        load.worker.wait(30)
        for answer in load.answers:
            assert isinstance(answer.exception(timeout=30), httpx.TransportError)
