"""What the composition root hands on, and what the front process loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gpt_oss_server import app
from gpt_oss_server.api.app import build_app
from gpt_oss_server.api.services import Services
from gpt_oss_server.app import engine_spec, spread_of
from gpt_oss_server.config import Settings, load
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.errors import ConfigError, StartupError
from gpt_oss_server.hub import ResolvedModel

FLAGS: dict[str, object] = {
    "device": "cuda:1",
    "dtype": "bfloat16",
    "load_format": "random",
    "weights_seed": "7",
    "max_model_len": "1000",
    "max_num_seqs": "8",
    "max_batch_tokens": "256",
    "block_size": "32",
    "kv_cache_memory": "1GiB",
    "memory_budget": "2GiB",
    "gpu_memory_utilization": "0.5",
    "prefix_caching": False,
    "prefill_order": "fcfs",
    "prefill_oldest_share": "0.5",
    "attention_backend": "reference",
    "threads": "3",
    "engine_timeout_s": "9",
    "gpu_mode": "pipeline",
    "micro_batches": "4",
    "rank_timeout_s": "5",
}


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under a supervisor: progress bars would be noise."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)


def test_every_engine_setting_reaches_the_worker(tmp_path: Path) -> None:
    """Each setting of the engine arrives in the specification under its own name and unit."""
    model = ResolvedModel("org/model", "model", folder=tmp_path)
    assert engine_spec(load(FLAGS, {}), model, 3) == EngineSpec(
        folder=str(tmp_path),
        device="cuda:1",
        dtype="bfloat16",
        load_format="random",
        weights_seed=7,
        max_model_len=1000,
        max_num_seqs=8,
        max_batch_tokens=256,
        block_size=32,
        kv_cache_bytes=2**30,
        memory_budget_bytes=2**31,
        gpu_memory_utilization=0.5,
        prefix_caching=False,
        prefill_order="fcfs",
        prefill_oldest_share=0.5,
        attention_backend="reference",
        threads=3,
        hang_after_s=9.0,
        gpu_mode="pipeline",
        gpus=3,
        micro_batches=4,
        rank_timeout_s=5.0,
    )


def test_what_is_for_the_mode_auto_reaches_the_worker(tmp_path: Path) -> None:
    """Limits by device, a map from its file, and where to offload."""
    (tmp_path / "map.json").write_text('{"model.layers.0": 0, "model.layers.1": "cpu"}')
    flags = {
        "gpu_mode": "auto",
        "max_memory": "0=20GiB,cpu=1.5GB",
        "device_map": str(tmp_path / "map.json"),
        "offload": "cpu",
    }
    model = ResolvedModel("org/model", "model", folder=tmp_path)
    spec = engine_spec(load(flags, {}), model)
    assert (spec.max_memory, spec.device_map, spec.offload) == (
        {"0": "20GiB", "cpu": "1.5GB"},
        {"model.layers.0": "0", "model.layers.1": "cpu"},
        "cpu",
    )


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(None, "cannot be read: No such file"), ("[1]", "must be a JSON object")],
)
def test_a_wrong_device_map_is_named(tmp_path: Path, content: str | None, complaint: str) -> None:
    """A file that is not there, or has something else in it."""
    file = tmp_path / "map.json"
    if content is not None:
        file.write_text(content)
    settings = load({"gpu_mode": "auto", "device_map": str(file)}, {})
    with pytest.raises(ConfigError, match=f"device_map: {file} {complaint}"):
        engine_spec(settings, ResolvedModel("org/model", "model", folder=tmp_path))


@pytest.mark.parametrize(
    ("flags", "present", "spread"),
    [
        ({}, 8, 1),
        ({"gpu_mode": "tensor"}, 8, 8),
        ({"gpu_mode": "pipeline", "gpus": "4"}, 8, 4),
        ({"gpu_mode": "tensor", "gpus": "2", "device": "cpu"}, 0, 2),
    ],
)
def test_over_how_many_a_model_is_spread(
    flags: dict[str, object], present: int, spread: int
) -> None:
    """All GPUs unless told otherwise; on a CPU as many processes as told."""
    assert spread_of(load(flags, {}), present) == spread


def test_defaults_agree_with_the_worker(tmp_path: Path) -> None:
    """Settings and specification have the same defaults: neither can drift alone."""
    model = ResolvedModel("org/model", "model", folder=tmp_path)
    assert engine_spec(Settings(), model) == EngineSpec(folder=str(tmp_path))


def test_the_built_in_model_has_weights_and_can_do_without(tmp_path: Path) -> None:
    """The built-in model's own weights are the default; random ones are there for the asking."""
    builtin = ResolvedModel("tiny", "tiny", builtin=True, folder=tmp_path)
    assert engine_spec(Settings(), builtin).load_format == "auto"
    assert engine_spec(Settings(load_format="random"), builtin).load_format == "random"


def test_the_front_process_never_loads_the_model_stack() -> None:
    """Neither torch nor transformers comes with the HTTP process: not by any import it makes."""
    program = (
        "import sys, gpt_oss_server.app, gpt_oss_server.harmony.formats, "
        "gpt_oss_server.engine.client\n"
        "print(*sorted({'torch', 'transformers', 'numpy', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_large_bodies_have_a_lane_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is built with a pool for bulk that is not the text pool; both end with it."""
    built: list[Services] = []

    def note(services: Services) -> object:
        built.append(services)
        return build_app(services)

    def fail(settings: Settings) -> ResolvedModel:
        raise StartupError("no such model")

    monkeypatch.setattr(app, "build_app", note)
    with pytest.raises(StartupError, match="no such model"):
        app.serve(Settings(port=0), app.Parts(resolve_model=fail))
    services = built[0]
    assert services.bulk_pool is not None
    assert services.pool_for(services.limits.bulk_bytes) is services.text_pool
    assert services.pool_for(services.limits.bulk_bytes + 1) is services.bulk_pool
    for pool in (services.text_pool, services.bulk_pool):
        with pytest.raises(RuntimeError, match="after shutdown"):
            pool.submit(int)
