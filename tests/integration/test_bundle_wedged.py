"""A server whose engine worker hangs: it is scraped, and tells of itself, all the same."""

from __future__ import annotations

import json
import signal
from concurrent.futures import ThreadPoolExecutor

import psutil
from app_process import client, running
from test_bundle_command import bundle

CHAT = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 3,
    "temperature": 0,
}


def test_a_hung_worker_keeps_no_bundle_away() -> None:
    """With the real worker stopped under a request, `/metrics` answers, and the command gets a
    complete bundle from the server itself: it shows the worker stopped and the request waiting."""
    with (
        running("real", "--load-format", "random", "--threads", "1") as server,
        ThreadPoolExecutor(1) as pool,
    ):
        url = server.url()
        server.read_until("ready")
        workers = psutil.Process(server.process.pid).children(recursive=True)
        with client(url) as http, client(url) as other:
            assert http.post("/v1/chat/completions", json=CHAT).is_success
            for worker in workers:
                worker.send_signal(signal.SIGSTOP)
            answer = pool.submit(http.post, "/v1/chat/completions", json=CHAT)
            while "\ngpt_oss_requests_in_flight 1.0\n" not in other.get("/metrics").text:
                pass
            done = bundle("--url", url, "--out", "-")
            for worker in workers:
                worker.send_signal(signal.SIGCONT)
            assert answer.result().is_success
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"{url} gave its bundle\n"
    document = json.loads(done.stdout)
    states = document["manifest"]["sections"]
    assert {name: state for name, state in states.items() if state["status"] != "ok"} == {}
    stopped = {one["pid"] for one in document["processes"] if one["state"] == "stopped"}
    assert stopped == {worker.pid for worker in workers}
    waiting = [task["frames"] for task in document["tasks"] if "chat_completions" in str(task)]
    assert len(waiting) == 1, document["tasks"]
    assert any("EngineClient.generate" in str(task) for task in document["tasks"])
    assert document["gpu_routing"]["total_requests"] == 2
