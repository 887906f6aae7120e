"""Loading a model's parts: stored in four bits, different on two ranks, not to be cut at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine_runs import cpu_core, job, run
from gpt_oss_server.engine.loader import read_config
from gpt_oss_server.engine.ranks.comms import Comms
from gpt_oss_server.engine.ranks.loading import load_part, rank_device
from gpt_oss_server.engine.ranks.place import Place
from gpt_oss_server.engine.ranks.skeleton import skeleton
from gpt_oss_server.engine.ranks.stages import StageCutter
from gpt_oss_server.errors import StartupError
from rank_engine import run_over_ranks, spec_for
from rank_processes import stages, tensor_ranks
from tiny_models import build, saved

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


def quantized(folder: Path) -> str:
    """A tiny gpt-oss as openai publishes it: experts as MXFP4 blocks and scales."""
    path = saved(build("gpt_oss"), folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    torch.manual_seed(1)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        shape = (experts, outputs, inputs // 32)
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(121, 125, shape, dtype=torch.uint8)
    save_file(tensors, file, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.embed_tokens", "lm_head"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.filterwarnings("ignore::UserWarning")  # of transformers, on MXFP4 without kernels
@pytest.mark.parametrize(("mode", "gpus"), [("tensor", 2), ("tensor", 4), ("pipeline", 2)])
def test_mxfp4_is_read_in_parts(tmp_path: Path, mode: str, gpus: int) -> None:
    """Slices of experts in four bits, also such as begin within a group of 32, say what the model
    says that transformers dequantizes whole."""
    folder = quantized(tmp_path)
    jobs = {key: job([5, key, 88, 31, 7], max_tokens=10) for key in range(4)}
    single = {key: one.tokens for key, one in run(cpu_core(folder), jobs).items()}
    assert len({token for tokens in single.values() for token in tokens}) > 10
    start = tensor_ranks if mode == "tensor" else stages
    answers = start(gpus, run_over_ranks, spec_for(folder, gpu_mode=mode, gpus=gpus), jobs)
    assert single in [answer[0] for answer in answers]
    for _, held in answers:
        assert "reading this rank's part of the weights" in held["progress"]


def _load(comms: Comms, folders: list[str]) -> str:
    """What a rank says of its own folder."""
    spec = spec_for(folders[comms.place.rank], gpu_mode="tensor", gpus=2)
    try:
        load_part(spec, comms.place, comms, lambda _: None)
    except StartupError as error:
        return str(error)
    return "loaded"


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_ranks_that_see_different_models(tmp_path: Path, name: str) -> None:
    """All of them stop, and say which differ: read in parts, or whole (a mixture that is stored
    expert by expert)."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = saved(build(name), tmp_path / "a")
    other = build(name)
    other.lm_head.weight.data += 0.5
    second = saved(other, tmp_path / "b")
    lines = tensor_ranks(2, _load, [first, second])
    assert all(line.startswith("ranks [1] see another model in") for line in lines)


def test_a_folder_that_changes_while_it_is_read(tmp_path: Path) -> None:
    """A rank that may have read parts of two models does not start."""
    folder = saved(build("llama"), tmp_path)

    def progress(text: str) -> None:
        if text.startswith("reading"):
            other = build("llama")
            other.lm_head.weight.data += 0.5
            saved(other, tmp_path)

    spec = spec_for(folder, gpu_mode="tensor", gpus=1)
    assert load_part(spec, Place(), Comms.alone(CPU), lambda _: None).layers == range(4)
    with pytest.raises(StartupError) as caught:
        load_part(spec, Place(), Comms.alone(CPU), progress)
    assert str(caught.value) == (f"{folder}: its files changed while rank 0 read them: start again")


@pytest.mark.parametrize(
    ("mode", "place", "match"),
    [
        ("tensor", Place(0, tp=2), "no tensor plan for gpt2: use --gpu-mode pipeline or auto"),
        ("pipeline", Place(0, pp=2), "the layers of gpt2 are not where .* use --gpu-mode auto"),
        ("pipeline", Place(0, pp=9), "3 layers cannot be split over 9 pipeline stages"),
    ],
)
def test_a_model_that_cannot_be_cut(tmp_path: Path, mode: str, place: Place, match: str) -> None:
    """One line, before anything is read."""
    spec = spec_for(saved(build("gpt2"), tmp_path), gpu_mode=mode, gpus=place.world)
    with pytest.raises(StartupError, match=match):
        load_part(spec, place, Comms(place, CPU, None), lambda _: None)


def test_a_decoder_that_does_more_than_its_layers(tmp_path: Path) -> None:
    """One that scales what it is given would do so on each stage: refused by running it."""
    folder = Path(saved(build("llama"), tmp_path))
    model = skeleton(folder, read_config(folder), torch.float32)
    plain = model.model.forward

    def scaled(inputs_embeds: torch.Tensor, **more: Any) -> Any:
        return plain(inputs_embeds=inputs_embeds * 1.5, **more)

    model.model.forward = scaled
    with pytest.raises(StartupError, match="llama changes hidden states outside its layers"):
        StageCutter(model, Place(1, pp=2), range(2, 4)).cut()


def test_too_few_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks have the GPUs from the first on, and there must be as many."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    spec = spec_for("unused", gpu_mode="tensor", gpus=4, device="auto")
    assert rank_device(spec, Place(1, tp=4)) == torch.device("cuda", 1)
    with pytest.raises(StartupError, match="tensor over 4 GPUs from cuda:0 on: this machine has 2"):
        rank_device(spec, Place(2, tp=4))
    assert rank_device(spec_for("unused"), Place(1, tp=2)) == CPU
