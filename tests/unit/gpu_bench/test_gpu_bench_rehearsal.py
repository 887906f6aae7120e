"""The GPU benchmark runs here, tiny and on the CPU, so that it runs where there is a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gpu_bench.catalog import chosen
from gpu_bench.hosts import run_host
from gpu_bench.records import read_all
from gpu_bench.settings import Settings

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "gpu" / "run.py"
# As absent as on a machine that has PyTorch and transformers only. Whoever stands in is found.
BARE = """
import sys
from importlib.machinery import PathFinder

ABSENT = {"msgspec", "llguidance", "pydantic", "pydantic_core", "starlette", "uvicorn", "httptools",
          "openai", "opentelemetry", "jsonschema", "prometheus_client"}

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        found = PathFinder.find_spec(name, path, target)
        absent = name.partition(".")[0] in ABSENT
        stands_in = found is not None and "standins" in str(found.origin)
        return None if absent and not stands_in else found

sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
"""
FORMS = ("bf16", "mxfp4")
TOPICS = ("ceilings", "models", "start", "decode", "hidden", "answers", "memory")


def rehearse(tmp_path: Path, sections: list[str], **environment: str) -> dict[str, Any]:
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--shape", "tiny"]
    command += ["--work", str(tmp_path / "work"), "--out", str(tmp_path), "--sections", *sections]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr[-3000:]  # 1: a CPU misses the targets
    (file,) = tmp_path.glob("*-gpu-rehearsal.json")
    result: dict[str, Any] = json.loads(file.read_text())
    troubles = {name: one["trouble"] for name, one in result["sections"].items()}
    assert not any(troubles.values()), (troubles, done.stderr[-3000:])
    assert result["not_run"] == []
    assert file.with_suffix(".md").read_text() == done.stdout.removesuffix("\n")
    return result


def test_it_runs_where_our_other_dependencies_are_missing(tmp_path: Path) -> None:
    """Both forms of weights are made, served and right, with what a bare machine has."""
    (tmp_path / "sitecustomize.py").write_text(BARE)
    result = rehearse(tmp_path, [*TOPICS, "compare"], PYTHONPATH=str(tmp_path))
    sections = result["sections"]
    assert sections["ceilings"]["figures"]["stand_ins"] == ["msgspec", "llguidance"]
    for form in FORMS:
        right = sections[f"compare:{form}"]["figures"]
        assert (right["equal"], right["rows"], right["rows_over_limit"]) == (8, 8, 0)
        assert right["worst_error"] < 1e-5
        assert right["generate_agrees"] == [[4, 4], [4, 4]]
        one, many = sections[f"decode:{form}"]["figures"]["batches"]
        assert (one["batch"], one["context"], many["batch"]) == (1, 32, 3)
        assert min(one["tokens_per_s"], many["tokens_per_s"]) > 0
        held = sections[f"memory:{form}"]["figures"]
        assert held["weights_held_bytes"] == held["weights_predicted_bytes"] + 64  # rotary tables
        assert sections[f"start:{form}"]["figures"]["startup"][0][0] == "load"


@pytest.mark.slow
def test_every_usual_section_runs(tmp_path: Path) -> None:
    """The kernels and the recorded steps too, interpreted; `generate_batch` last."""
    pytest.importorskip("triton")
    names = [one.topic for one in chosen([], tune=False)]
    light = [name for name in dict.fromkeys(names) if name not in ("chats", "profile", "requests")]
    result = rehearse(tmp_path, light, TRITON_INTERPRET="1")
    assert result["sections"]["attention"]["figures"]["error"] < 1e-5
    assert result["sections"]["generate_batch:bf16"]["figures"]["measured"]


def settings(tmp_path: Path) -> Settings:
    return Settings(str(tmp_path), shape="tiny", device="cpu")


def test_a_section_that_fails_takes_no_other_with_it(tmp_path: Path) -> None:
    """It is recorded, and those behind it get a process of their own."""
    asked = settings(tmp_path)
    asked.model("bf16").parent.mkdir(parents=True)
    asked.model("bf16").write_text("where a folder should be made")
    by_name = {one.name: one for one in chosen(["models", "ceilings"], tune=False)}
    told: list[int] = []
    current, skipped = run_host(
        asked,
        "plain",
        [by_name["models"], by_name["ceilings"]],
        lambda: told.append(len(read_all(asked.records))),
    )
    found = read_all(asked.records)
    assert found["models"].trouble is not None
    assert found["models"].trouble.startswith("FileExistsError")
    assert found["ceilings"].figures["device"] == "CPU, a rehearsal"
    assert (current, skipped, told) == (asked, set(), [1, 2])


def test_an_engine_that_cannot_start_is_tried_without_capture(tmp_path: Path) -> None:
    """Then each of its sections says why it was not measured."""
    asked = replace(settings(tmp_path), attention="nobody's")
    sections = chosen(["decode:bf16", "prefill:bf16"], tune=False)
    current, _ = run_host(asked, "engine:bf16", sections, lambda: None)
    assert current.eager
    for one in read_all(asked.records).values():
        assert one.trouble is not None
        assert one.trouble.startswith("engine:bf16 cannot start: StartupError")


def test_nothing_begins_that_would_end_too_late(tmp_path: Path) -> None:
    """Past the deadline no process is started, and what was found before stays."""
    asked = replace(settings(tmp_path), deadline_s=time.time() + 1.0)
    sections = chosen(["decode"], tune=False)
    current, skipped = run_host(asked, "engine:bf16", sections[:1], lambda: None)
    assert (current, skipped) == (asked, {"decode:bf16"})
    assert not read_all(asked.records)
