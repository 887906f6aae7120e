"""`/admin/debug/bundle` of a live server: what it holds, who gets it, and in which form."""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from bundle_server import PATH, BundleServer, bundle_server
from live_server import Serve

from gpt_oss_server import __version__
from gpt_oss_server.api.bundle import BundleEndpoint
from gpt_oss_server.bundle.sections import InThread, OnLoop, Section
from gpt_oss_server.bundle.server import ServerBundle, Sources
from gpt_oss_server.config import Settings
from gpt_oss_server.engine.fake import FakeEngine
from gpt_oss_server.pending import PendingEngine

SECTIONS = {
    *("gpu_routing", "versions", "configuration", "engine", "gpus", "memory_stats", "stats"),
    *("decisions", "nccl", "metrics", "logs", "threads", "tasks", "processes", "doctor"),
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[BundleServer]:
    settings = Settings(large_input_tokens=100, pressure_input_tokens=50)
    with bundle_server(tmp_path / "log", settings) as running:
        yield running


def complete(server: BundleServer, tokens: int) -> str:
    """One completion with so many prompt tokens; returns its request id."""
    body = {"model": "tiny", "prompt": "x" * tokens, "max_tokens": 2}
    answer = server.http.post("/v1/completions", json=body)
    assert answer.status_code == 200
    return str(answer.headers["x-request-id"])


def test_the_kept_part_is_exact(server: BundleServer) -> None:
    """Names, nesting and figures of `gpu_routing`; what is not known is absent."""
    before = server.bundle()["gpu_routing"]
    for tokens in (101, 10, 10, 200, 10):
        complete(server, tokens)
    after = server.bundle()["gpu_routing"]
    assert before == {
        "current_mode": "single",
        "total_requests": 0,
        "route4_percentage": 0.0,
        "trigger_breakdown": {"large_input": 0, "large_kv": 0, "memory_pressure": 0},
        "performance_metrics": {},
    }
    assert after.pop("performance_metrics").keys() == {"avg_single_gpu_latency_ms"}
    assert after == {
        "current_mode": "single",
        "total_requests": 5,
        "route4_percentage": 40.0,
        "trigger_breakdown": {"large_input": 2, "large_kv": 0, "memory_pressure": 0},
    }


def test_every_section_is_there_and_says_what_it_should(server: BundleServer) -> None:
    """One request can be followed through decisions, log and metrics; all sections are well."""
    request_id = complete(server, 101)
    document = server.bundle()
    assert set(document) == SECTIONS | {"manifest"}
    manifest = document["manifest"]
    assert (manifest["source"], manifest["version"]) == ("server", __version__)
    assert {name: state["status"] for name, state in manifest["sections"].items()} == (
        dict.fromkeys(SECTIONS, "ok")
    )
    assert document["versions"]["gpt_oss_server"] == __version__
    assert document["configuration"]["values"]["large_input_tokens"] == 100
    assert document["engine"]["state"] == {"ready": True, "reason": "ready", "restarts": 0}
    assert document["memory_stats"]["kv"]["block_size"] == 16
    assert document["stats"]["gpu_routing"]["total_requests"] == 1
    assert [one["request_id"] for one in document["decisions"]] == [request_id]
    assert document["decisions"][0]["reason"].startswith("large_input")
    assert "# TYPE llm_ttft_ms histogram" in document["metrics"]
    assert document["nccl"]["applied"]["NCCL_BUFFSIZE"] == "8388608"
    assert {"MainThread", "gpu-probe", "log-writer"} <= {one["name"] for one in document["threads"]}
    assert any("_serve" in str(one["frames"]) for one in document["tasks"])
    assert document["processes"][0]["state"] in ("running", "sleeping", "disk-sleep")
    assert {check["state"] for check in document["doctor"]["checks"]} <= {"ok", "note", "problem"}


def test_the_log_of_a_request_is_in_it(server: BundleServer) -> None:
    """The decision and the end of a request, under its id, once they are written."""
    request_id = complete(server, 101)
    while not (
        lines := [line for line in server.bundle()["logs"] if line.get("request_id") == request_id]
    ):
        pass
    decision = next(line for line in lines if line["event_type"] == "routing.decision")
    assert (decision["route"], decision["metadata"]["input_tokens"]) == ("multi_gpu", 101)


def test_the_zip_holds_the_same(server: BundleServer) -> None:
    """A file per section, to be saved under a name with a date, and not to be cached."""
    complete(server, 10)
    answer = server.zip()
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-disposition"].startswith('attachment; filename="gpt-oss-bundle-')
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        names = set(archive.namelist())
        routing = json.loads(archive.read("gpu_routing.json"))
        lines = archive.read("logs.jsonl").splitlines()
        metrics = archive.read("metrics.txt").decode()
    texts = {"metrics.txt", "logs.jsonl"}
    assert names == {"manifest.json", *texts} | {
        f"{name}.json" for name in SECTIONS - {"metrics", "logs"}
    }
    assert routing["total_requests"] == 1
    assert all(json.loads(line)["timestamp"] for line in lines)
    assert metrics.startswith("# HELP ")


def test_another_format_is_refused(server: BundleServer) -> None:
    """400, naming the parameter."""
    answer = server.http.get(PATH, params={"format": "tar"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "format"


def test_only_an_administrator_gets_it(tmp_path: Path) -> None:
    """With an admin key that key is needed; an API key does not open it."""
    settings = Settings(api_key=("sk-user",), admin_key="sk-admin")
    with bundle_server(tmp_path / "log", settings) as server:
        assert server.http.get(PATH).status_code == 401
        user = {"authorization": "Bearer sk-user"}
        assert server.http.get(PATH, headers=user).status_code == 401
        assert server.bundle(authorization="Bearer sk-admin")["gpu_routing"]["total_requests"] == 0


def bundle_over(
    serve: Serve, engine: Any, *extra: Section, **sources: Any
) -> tuple[ServerBundle, BundleServer]:
    """A bundle with further sections, served without the rest of telemetry."""
    bundle = ServerBundle(Sources(settings=Settings(), engine=engine, **sources), extra)
    endpoint = BundleEndpoint(bundle).endpoint()
    return bundle, serve(services={"extra_endpoints": (endpoint,)})


def test_sections_that_fail_or_hang_are_only_missing(serve: Serve) -> None:
    """The rest is there, and the manifest says what became of them."""

    def fail() -> NoReturn:
        raise RuntimeError("with a message that nobody sees")

    async def hang() -> None:
        await asyncio.Event().wait()

    engine = FakeEngine()
    asyncio.run(engine.start())
    _, server = bundle_over(
        serve,
        engine,
        Section("bad", OnLoop(fail)),
        Section("worse", InThread(fail)),
        Section("slow", hang, 0.01),
        stats=fail,
    )
    document = server.http.get(PATH).json()
    states = {name: state["status"] for name, state in document["manifest"]["sections"].items()}
    assert {name: states[name] for name in ("bad", "worse", "slow", "stats", "gpu_routing")} == {
        "bad": "failed",
        "worse": "failed",
        "slow": "timed_out",
        "stats": "failed",
        "gpu_routing": "ok",
    }
    assert not {"bad", "worse", "slow", "stats"} & set(document)
    assert document["gpu_routing"]["total_requests"] == 0
    assert "nobody sees" not in json.dumps(document)


def test_a_server_that_is_coming_up_has_one(serve: Serve) -> None:
    """With nothing but an engine that is not there, the kept part is complete."""
    _, server = bundle_over(serve, PendingEngine("downloading the model"))
    document = server.http.get(PATH).json()
    assert document["gpu_routing"]["total_requests"] == 0
    assert document["engine"]["state"]["reason"] == "downloading the model"
    states = document["manifest"]["sections"]
    assert states["memory_stats"] == {
        "status": "absent",
        "seconds": states["memory_stats"]["seconds"],
        "error": "the server is coming up",
    }


def test_requests_at_the_same_time_share_one_reading(serve: Serve) -> None:
    """A second request does not start a second reading; a later one does."""
    reads: list[int] = []
    entered, gate = asyncio.Event(), asyncio.Event()

    async def count() -> int:
        reads.append(1)
        entered.set()
        await gate.wait()
        return len(reads)

    engine = FakeEngine()
    asyncio.run(engine.start())
    bundle, server = bundle_over(serve, engine, Section("count", count, 30.0))

    async def story() -> tuple[Any, Any, Any]:
        first, second = (
            asyncio.ensure_future(bundle.document()),
            asyncio.ensure_future(bundle.document()),
        )
        await entered.wait()
        gate.set()
        both = await asyncio.gather(first, second)
        return (*both, await bundle.document())

    first, second, later = server.run(story())
    assert (first["count"], second["count"], later["count"]) == (1, 1, 2)
    assert first is second
