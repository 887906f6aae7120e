"""The command: what it prints, its JSON, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from doctor_machines import LAPTOP, SERVER
from msgspec.structs import replace

from gpt_oss_server import cli
from gpt_oss_server.commands.doctor import CUDA_BATCH_TOKENS
from gpt_oss_server.doctor.checks import CHECKS
from gpt_oss_server.doctor.machine import Machine

GIB = 2**30
DOCS = Path(__file__).parents[3] / "docs" / "operations.md"


def run(argv: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit status, stdout, stderr of one call."""
    status = cli.main(["doctor", *argv.split()])
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the machine that is found."""

    def found(these: Machine) -> None:
        monkeypatch.setattr(
            "gpt_oss_server.doctor.machine.examine", lambda environ, host, port: these
        )

    return found


def test_the_example_in_the_docs(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/operations.md shows what the command prints, to the letter."""
    text = DOCS.read_text(encoding="utf-8")
    command, _, shown = text.partition("$ gpt-oss-server doctor ")[2].partition("\n")
    status, out, err = run(command, capsys)
    assert (status, err) == (0, "")
    assert out == shown.partition("```")[0]


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        ("--model 20b --gpu-memory 16GiB", 0),
        ("--model 20b --gpu-memory 16GiB --weights bf16", 1),
        ("--model 120b --gpu-memory 48GiB", 1),
        ("--model 120b --gpu-memory 48GiB --gpus 8", 0),
        ("--model 120b --gpu-memory 48GiB --gpus 2 --gpu-mode single", 1),
        ("--model 20b --gpu-memory 80GiB --gpus 3 --gpu-mode tensor", 1),
        ("--gpu-memory 2GiB", 0),
    ],
)
def test_exit_status_of_a_calculation(
    argv: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """0 where one of the modes asked about holds the model, else 1."""
    found, out, err = run(argv, capsys)
    assert (found, err) == (status, "")
    assert "Recommendation: " in out


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (
            "--gpu-memory lots",
            "flag --gpu-memory: must be a size in bytes or with KiB, MiB, GiB, KB, MB or GB, got "
            "'lots'",
        ),
        (
            "--gpu-memory 80GiB --gpus 0",
            "flag --gpus: must be an integer from 1 to 1024, got '0'",
        ),
        (
            "--gpu-memory 80GiB --gpu-mode both",
            "flag --gpu-mode: must be one of single, auto, tensor, pipeline, got 'both'",
        ),
        (
            "--gpu-memory 80GiB --gpu-mode tensor",
            "flag --gpus: gpu_mode tensor needs at least 2, got 1",
        ),
        (
            "--gpu-memory 80GiB --weights int4",
            "flag --weights: must be one of mxfp4, bf16, got 'int4'",
        ),
        (
            "--gpu-memory 80GiB --weights mxfp4",
            "flag --weights: the checkpoint's weights are not MXFP4 (they are plain)",
        ),
        (
            "--gpu-memory 80GiB --model /nowhere",
            "flag --model: model folder /nowhere does not exist",
        ),
        (
            "--gpu-memory 80GiB --block-size 12",
            "flag --block-size: must be a power of two from 1 to 128, got '12'",
        ),
        (
            "--gpu-memory 80GiB --gpu-memory-utilization 1.5",
            "flag --gpu-memory-utilization: must be a number above 0 up to 1, got '1.5'",
        ),
        ("--gpu-memory", "flag --gpu-memory: expected one argument"),
        (
            "--gpu-memory 80GiB --gpu Voodoo2",
            "flag --gpu: 'Voodoo2' is not one of A10, A100 80GB PCIe",
        ),
        (
            "--gpu-memory 80GiB --requests none",
            "flag --requests: must be an integer >= 1, got 'none'",
        ),
        ("--memory 1", "unknown flag --memory"),
        ("--gpus 4", "flag --gpus: 4 GPUs need gpu_mode auto, tensor or pipeline, not single"),
    ],
)
def test_wrong_arguments(argv: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, nothing on stdout, one line that names the argument."""
    status, out, err = run(argv, capsys)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {line}")


def test_a_model_that_cannot_be_bounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A configuration without sizes is a wrong argument, not a traceback."""
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
    status, out, err = run(f"--gpu-memory 1GiB --model {tmp_path}", capsys)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: flag --model: model config (unheard-of) has no 'hidden_size'")


def test_what_is_not_exact_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model type that is not known: an upper bound of its cache, an estimate of its weights, and
    what was assumed."""
    config = {
        "model_type": "nobody-knows",
        "hidden_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "vocab_size": 1000,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert cli.main(["doctor", "--model", str(tmp_path), "--gpu-memory", "80GiB"]) == 0
    printed = capsys.readouterr().out
    assert "KV cache  at most 8,192 bytes per token and request" in printed
    assert "weights   about " in printed
    assert "model type 'nobody-knows' is not known" in printed
    assert "no number of KV heads: as many as attention heads" in printed


def test_the_calculation_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes and tokens, both forms of the weights, limits and the recommendation."""
    status, out, _ = run("--model 120b --gpu-memory 80GiB --gpus 4 --json", capsys)
    answer = json.loads(out)
    assert status == 0
    assert answer["model"] == {
        "id": "openai/gpt-oss-120b",
        "source": "packaged",
        "weights_here": False,
    }
    plan = answer["plan"]
    assert (plan["gpus"], plan["gpu_memory_bytes"]) == (4, 80 * GIB)
    assert (plan["weights"], plan["weights_bytes"]) == ("mxfp4", 65_248_815_744)
    assert (plan["kv_bytes_per_token"], plan["context_tokens"]) == (36_864, 131_072)
    assert list(plan["modes"]) == ["single", "auto", "tensor", "pipeline"]
    assert plan["modes"]["single"] == {
        "fits": True,
        "gpus_used": 1,
        "shortfall_bytes": 0,
        "weights_bytes": [65_248_815_744],
        "activations_bytes": 557_383_680,
        "kv_bytes": [10_429_470_080],
        "kv_tokens": 267_792,
        "kv_bytes_per_token": 36_864,
        "longest_request_tokens": 131_072,
        "longest_request_limit": "context",
        "concurrent": {"2048": 64, "8192": 32, "32768": 8, "131072": 2},
        "concurrent_limits": {
            "2048": "max_num_seqs",
            "8192": "kv_memory",
            "32768": "kv_memory",
            "131072": "kv_memory",
        },
        "exact": True,
        "reasons": [],
    }
    other = answer["other_weights"]
    assert (other["weights"], other["weights_bytes"]) == ("bfloat16", 233_658_313_344)
    assert [mode["fits"] for mode in other["modes"].values()] == [False, True, True, True]
    assert answer["recommendation"]["mode"] == "single"
    # 18 layers keep all, 8 heads over 4 ranks; of 9 or 10 layers at most 5.
    assert plan["modes"]["tensor"]["kv_bytes_per_token"] == 36_864 // 4
    assert plan["modes"]["pipeline"]["kv_bytes_per_token"] == 36_864 * 5 // 18
    comparison = answer["comparison"]
    assert [way["name"] for way in comparison["ways"]] == [
        "single",
        "4 single replicas",
        "tensor over 4",
        "pipeline over 4",
        "auto over 4",
    ]
    assert (comparison["gpu"]["known"], comparison["load"]["given"]) == (False, False)


def test_experts_left_to_transformers(capsys: pytest.CaptureFixture[str]) -> None:
    """Wide in every mode, but for one GPU where it is said that transformers keeps four bits."""
    argv = "--model 20b --gpu-memory 80GiB --gpus 2 --experts transformers --json"
    plain = json.loads(run(argv, capsys)[1])["plan"]
    assert plain["weights"] == "bfloat16"
    told = json.loads(run(f"{argv} --weights mxfp4", capsys)[1])["plan"]
    assert told["weights"] == "mxfp4"
    sizes = {mode: told["modes"][mode]["weights_bytes"] for mode in told["modes"]}
    assert sizes["single"] == [13_761_264_768]
    for mode in ("auto", "tensor", "pipeline"):
        assert sizes[mode] == plain["modes"][mode]["weights_bytes"]


@pytest.mark.parametrize(
    ("flags", "form"),
    [
        ("--dtype float32", "float32"),
        ("--dtype float32 --experts triton", "mxfp4"),
        ("--dtype float32 --experts torch", "mxfp4"),
        ("--dtype float32 --weights mxfp4", "mxfp4"),
        ("--dtype float16", "mxfp4"),
    ],
)
def test_four_bits_are_counted_where_the_engine_keeps_them(
    flags: str, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kernels are chosen for half types: what is float32 is so altogether, unless it is told."""
    argv = f"--model 20b --gpu-memory 80GiB --gpus 2 --json {flags}"
    plan = json.loads(run(argv, capsys)[1])["plan"]
    assert plan["weights"] == form
    for mode in plan["modes"].values():
        assert (sum(mode["weights_bytes"]) > 35 * GIB) == (form == "float32")


def test_steps_have_a_token_for_every_sequence(capsys: pytest.CaptureFixture[str]) -> None:
    """As `serve` computes them where there are more sequences than tokens of a usual step."""
    argv = "--model 20b --gpu-memory 80GiB --json --max-num-seqs 3000"
    assert json.loads(run(argv, capsys)[1])["plan"]["max_batch_tokens"] == 3000


def test_a_machine_that_cannot_keep_four_bits(
    machine: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The plan counts what is held there; --weights plans for the other form."""
    machine(replace(SERVER, packages={**SERVER.packages, "triton": None}))
    _, out, _ = run("--model 20b --json", capsys)
    assert json.loads(out)["plan"]["weights"] == "bfloat16"
    assert json.loads(out)["other_weights"]["weights"] == "mxfp4"
    _, out, _ = run("--model 20b --json --weights mxfp4", capsys)
    assert json.loads(out)["plan"]["weights"] == "mxfp4"


def test_a_load_and_a_gpu_can_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    """The advice is for that load, the speed that of the GPU; only allowed modes are compared."""
    argv = "--model 20b --weights bf16 --gpu-memory 48GiB --gpus 2 --gpu H200 --requests 64"
    status, out, _ = run(argv, capsys)
    assert status == 0
    assert "Recommendation: --gpu-mode tensor over 2 GPUs for 64 at once of 2,048 tokens" in out
    assert "Assumed: H200 of the data sheet: 4,800 GB/s" in out
    _, out, _ = run(f"{argv} --request-tokens 500 --gpu-mode pipeline --json", capsys)
    answer = json.loads(out)
    assert [way["mode"] for way in answer["comparison"]["ways"]] == ["pipeline"]
    assert answer["comparison"]["load"] == {
        "concurrent": 64,
        "tokens": 500,
        "longest_tokens": None,
        "given": True,
    }
    assert answer["recommendation"]["mode"] == "pipeline"


def test_settings_come_from_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Flag over environment over file, as for `serve`."""
    file = tmp_path / "settings.yaml"
    file.write_text("model: 20b\nblock_size: 32\nmax_num_seqs: 8\n")
    monkeypatch.setenv("GPT_OSS_MAX_NUM_SEQS", "16")
    monkeypatch.setenv("GPT_OSS_GPU_MEMORY_UTILIZATION", "0.5")
    argv = f"--config {file} --gpu-memory 80GiB --gpu-memory-utilization 0.8 --dtype float16 --json"
    _, out, _ = run(argv, capsys)
    plan = json.loads(out)["plan"]
    assert (plan["block_size"], plan["max_num_seqs"]) == (32, 16)
    assert (plan["gpu_memory_utilization"], plan["dtype"]) == (0.8, "float16")
    assert plan["max_batch_tokens"] == CUDA_BATCH_TOKENS


def test_steps_are_those_of_the_engine() -> None:
    """What `serve` computes in a step on a GPU when nothing is set."""
    from gpt_oss_server.engine import outfit

    assert outfit.CUDA_BATCH_TOKENS == CUDA_BATCH_TOKENS


def test_a_laptop(machine: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """No GPU is a note for tiny: exit status 0, and every check is accounted for."""
    machine(LAPTOP)
    status, out, err = run("", capsys)
    assert (status, err) == (0, "")
    assert "\nGPUs      0 present, 0 visible\n" in out
    assert "\ntorch     2.13.0+cpu, built without CUDA\n" in out
    assert "\nmodel     tiny (built in)\n" in out
    assert "Notes:\n  no-gpu\n" in out
    assert out.endswith("No problem found.\n")
    assert "Recommendation" not in out


def test_a_server(machine: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """GPUs, driver, NCCL and the table for what was found; NCCL problems have their cure."""
    machine(replace(SERVER, environ={"NCCL_P2P_DISABLE": "1"}))
    status, out, _ = run("--model 120b --gpu-mode tensor", capsys)
    assert status == 1
    assert "\ndriver    580.65.06, CUDA up to 13.1, NVML reachable\n" in out
    assert "\nGPU 3     NVIDIA H100 80GB HBM3, 1.00 GiB of 80.00 GiB used, 0% busy\n" in out
    assert (
        "\nNCCL      2.27.5; TORCH_NCCL_ASYNC_ERROR_HANDLING=1, NCCL_ASYNC_ERROR_HANDLING=1, "
        "NCCL_MIN_NCHANNELS=4, NCCL_BUFFSIZE=8388608, NCCL_P2P_DISABLE=1 (yours)\n"
    ) in out
    assert "\nKV tokens                267,792    5,668,176  6,385,376  5,668,176\n" in out
    assert "Problems:\n  nccl-overridden\n    NCCL settings of yours are kept: " in out
    assert "    cure: unset NCCL_P2P_DISABLE unless" in out
    assert "\ntensor over 4 " in out
    assert "Assumed: H100 of the data sheet: 3,350 GB/s of memory" in out


def test_a_machine_as_json(machine: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Every check has its state; what is not known is null."""
    machine(LAPTOP)
    status, out, _ = run("--json --gpu-mode tensor --gpus 4", capsys)
    answer = json.loads(out)
    assert status == 1
    assert [check["id"] for check in answer["checks"]] == [check.id for check in CHECKS]
    states = {check["id"]: check["state"] for check in answer["checks"]}
    assert {name: state for name, state in states.items() if state != "ok"} == {"no-gpu": "problem"}
    assert answer["machine"]["driver"] is None
    assert answer["plan"] is None
    assert answer["nccl"]["applied"]["NCCL_BUFFSIZE"] == "8388608"


def test_a_model_that_is_not_there(machine: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """On a machine it is a problem among others, not the end of the examination."""
    machine(SERVER)
    status, out, _ = run("--model /nowhere", capsys)
    assert status == 1
    assert "  model-unknown\n    model folder /nowhere does not exist\n" in out
