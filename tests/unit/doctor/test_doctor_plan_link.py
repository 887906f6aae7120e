"""From an estimate to a simulation: the command that plans, for this server and this machine."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import msgspec
import pytest

from gpt_oss_server import cli
from gpt_oss_server.config import Settings
from gpt_oss_server.doctor.advice_text import plan_command, plan_lines
from gpt_oss_server.doctor.published import PUBLISHED
from gpt_oss_server.doctor.running import Seen, advice_of, plan_for
from gpt_oss_server.engine.fake import DEFAULT_INFO
from gpt_oss_server.ports import GpuReading
from gpt_oss_server.simulate.cost.gpu_types import gpu_names
from gpt_oss_server.types import EngineStats, RankInfo

ENGINE = msgspec.structs.replace(
    DEFAULT_INFO, device="cuda:0", dtype="bfloat16", max_num_seqs=64, max_batch_tokens=2048
)


def seen(gpus: int = 4, ranks: int = 1, mode: str = "single") -> Seen:
    info = ENGINE
    if ranks > 1:
        parts = [
            RankInfo(
                rank=r,
                device=f"cuda:{r}",
                stage=0,
                tp_rank=r,
                first_layer=0,
                layers=1,
                weights_bytes=1,
                kv_bytes=1,
            )
            for r in range(ranks)
        ]
        info = msgspec.structs.replace(ENGINE, ranks=tuple(parts))
    readings = tuple(
        GpuReading(id=str(i), name="NVIDIA H100 80GB HBM3", total_bytes=80 << 30)
        for i in range(gpus)
    )
    return Seen(info, EngineStats(), readings, mode, gpus)  # type: ignore[arg-type]


def parsed(command: str) -> dict[str, object]:
    """The flags as the command itself reads them."""
    words = shlex.split(command)
    assert words[:2] == ["gpt-oss-server", "plan"]
    return vars(cli.build_parser().parse_args(words[1:]))


def test_stats_name_the_command_for_this_server(tmp_path: Path) -> None:
    """Its model, all GPUs of the machine, its engine's limits, its log, and what runs today."""
    (tmp_path / "config.json").write_text(json.dumps(dict(PUBLISHED["openai/gpt-oss-20b"])))
    settings = Settings(model="20b", log_file="/var/log/my server.log")
    advice = advice_of(tmp_path, settings, seen())
    assert advice["plan_command"] == (
        "gpt-oss-server plan --model 20b --gpus 4@h100 --workload '/var/log/my server.log' "
        "--max-num-seqs 64 --max-batch-tokens 2048 --current 1xtp1"
    )
    flags = parsed(advice["plan_command"])
    assert flags["workload"] == "/var/log/my server.log"
    assert flags["max_num_seqs"] == 64


@pytest.mark.parametrize(
    ("mode", "ranks", "current"),
    [("single", 1, "1xtp1"), ("tensor", 4, "1xtp4"), ("pipeline", 2, "1xpp2"), ("auto", 1, None)],
)
def test_what_runs_today_is_named_as_plan_reads_it(
    mode: str, ranks: int, current: str | None
) -> None:
    """Where the simulator has a name for it."""
    command = plan_for(Settings(), seen(ranks=ranks, mode=mode))
    assert parsed(command)["current"] == current


@pytest.mark.parametrize(
    "settings", [Settings(), Settings(log_file="x.log", log_format="human")], ids=["none", "human"]
)
def test_without_a_readable_log_a_mix_is_played(settings: Settings) -> None:
    """The command can be run as it is."""
    assert parsed(plan_for(settings, seen()))["workload"] == "mixed"


def test_where_there_is_nothing_to_choose_there_is_no_command(tmp_path: Path) -> None:
    """One GPU, or none."""
    for gpus in (0, 1):
        assert advice_of(tmp_path, Settings(), seen(gpus))["plan_command"] is None


def test_gpus_are_called_as_the_simulator_does() -> None:
    """Each that it has data of; another needs a file."""
    known = {
        "A100-SXM4-80GB": "a100",
        "B200": "b200",
        "H100": "h100",
        "H200": "h200",
        "L40S": "l40s",
        "RTX 4090": "rtx4090",
    }
    assert set(known.values()) == set(gpu_names())
    for name, short in known.items():
        assert parsed(plan_command("m", 2, name))["gpus"] == f"2@{short}"
    assert parsed(plan_command("m", 2, "H100 PCIe"))["gpus"] == "2@GPU.yaml"


def test_doctor_ends_with_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Where there are several GPUs; what is played is said."""
    argv = ["doctor", "--model", "20b", "--gpu-memory", "80GiB", "--gpu", "H100"]
    assert cli.main([*argv, "--gpus", "4"]) == 0
    command = "gpt-oss-server plan --model 20b --gpus 4@h100 --workload mixed"
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == plan_lines(command, logged=False)
    assert lines[-1].strip() == command
    assert cli.main(argv) == 0
    assert "gpt-oss-server plan" not in capsys.readouterr().out
