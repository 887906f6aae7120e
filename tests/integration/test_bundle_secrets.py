"""Secrets and prompts planted everywhere: none is in a bundle, neither as JSON nor as a zip."""

from __future__ import annotations

import io
import logging
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from bundle_server import bundle_server
from byte_format import ids_of
from planted import (
    ADMIN,
    ENVIRONMENT,
    HEADERS,
    MARK,
    USER,
    QuotingFormat,
    fail_in_the_background,
    places,
    plant,
    script,
)

from gpt_oss_server.config import Settings, load
from gpt_oss_server.engine.fake import FakeEngine

YAML = f"""
api_key: ["{USER}", "second-{MARK}-key"]
decision_log: {{folder}}/{MARK}-decisions
large_input_tokens: 100
pressure_input_tokens: 50
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    file = tmp_path / "settings.yaml"
    file.write_text(YAML.format(folder=tmp_path))
    environ = {"GPT_OSS_ADMIN_KEY": ADMIN}
    return load({"config": str(file), "log_file": f"{tmp_path}/{MARK}-log"}, environ)


def test_nothing_planted_is_found(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys in flags, environment and file; prompts, answers, users, sessions, ids, tools, paths;
    exceptions that quote them; requests that run while the bundle is read."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    engine = FakeEngine(script)
    log = tmp_path / f"{MARK}-log"
    admin = {"authorization": f"Bearer {ADMIN}"}
    with (
        bundle_server(
            log,
            settings,
            engine=engine,
            chat_format=QuotingFormat(),
            environ={"NCCL_BUFFSIZE": f"buffer-{MARK}"},
        ) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        statuses = plant(server)
        assert {200, 400, 401, 404, 500} <= set(statuses), statuses
        server.run(fail_in_the_background())
        logging.getLogger("some.library").error("could not parse %s", f"{MARK} text")
        try:
            raise KeyError(f"{MARK} in an exception")
        except KeyError:
            logging.getLogger("some.library").exception("failed on %s", MARK)
            logging.getLogger("gpt_oss_server.somewhere").exception("one of ours failed")
        while b"one of ours failed" not in log.read_bytes():
            pass  # a thread writes the log
        server.steer(engine.close_gate)
        running = pool.submit(
            server.http.post,
            "/v1/completions",
            json={"model": "tiny", "prompt": f"now {MARK}", "max_tokens": 3},
            headers=HEADERS,
        )
        server.until(lambda engine: engine.active == 1)
        document = server.bundle(**admin)
        answer = server.zip(**admin)
        text = server.http.get("/admin/debug/bundle", headers=admin).content
        server.steer(engine.open_gate)
        assert running.result().status_code == 200
    assert places(text) == []
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        for name in archive.namelist():
            assert MARK not in name
            assert places(archive.read(name)) == [], name
    as_ids = ",".join(map(str, ids_of(f"my password is {MARK}")))
    assert as_ids not in text.decode().replace(" ", "").replace("\n", "")
    _is_not_empty(document)


def _is_not_empty(document: dict[str, Any]) -> None:
    """The bundle has not been kept clean by being kept empty."""
    states = document["manifest"]["sections"]
    assert {name for name, state in states.items() if state["status"] != "ok"} == set()
    values = document["configuration"]["values"]
    assert (values["api_key"], values["admin_key"], values["decision_log"]) == ("set",) * 3
    assert document["gpu_routing"]["total_requests"] >= 4
    assert document["gpu_routing"]["trigger_breakdown"]["large_input"] >= 3
    kinds = {line["event_type"] for line in document["logs"]}
    assert {"log", "routing.decision", "request.end"} <= kinds
    said = {(line.get("logger"), line.get("message")) for line in document["logs"]}
    assert ("asyncio", "[hidden]") in said
    assert ("some.library", "[hidden]") in said
    assert any(
        logger == "gpt_oss_server.somewhere" and message.startswith("one of ours failed: KeyError")
        for logger, message in said
        if message is not None
    )
    outcomes = {line.get("outcome") for line in document["logs"]}
    assert {"ok", "internal", "bad_request", "unauthorized", "not_found"} <= outcomes
    assert document["nccl"]["kept_from_user"] == {"NCCL_BUFFSIZE": "set"}
    assert document["doctor"]["environment"]["NCCL_DEBUG"] == "set"
    assert any("completions" in str(task["frames"]) for task in document["tasks"])
