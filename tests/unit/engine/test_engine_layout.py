"""What a model really caches is observed; where the config's prediction differs, it is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MambaConfig, MambaForCausalLM

from gpt_oss_server.engine import layout
from gpt_oss_server.engine.layout import allocate_layers, observe_layers, reconcile
from gpt_oss_server.engine.loader import load_model, pick_device, pick_dtype
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.errors import StartupError
from gpt_oss_server.memory.architecture import shape_from_config
from gpt_oss_server.memory.kv import plan_pools
from tiny_models import CONFIGS, build, saved

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", CONFIGS)
def test_observed_layers_equal_the_prediction(name: str) -> None:
    """For every family under test the config's arithmetic is what the model does."""
    model = build(name)
    predicted = shape_from_config(model.config.to_dict())
    observed = observe_layers(model)
    assert len(observed) == model.config.num_hidden_layers
    assert reconcile(predicted, observed) == (predicted, [])


def test_a_difference_is_reported_and_the_observed_wins() -> None:
    """A layer that is not as predicted is named, and pools are built for what is there."""
    model = build("mistral")
    predicted = shape_from_config(model.config.to_dict())
    first, second, *others = predicted.layers
    wrong = replace(
        predicted,
        layers=(first, replace(second, kv_heads=4), *others),
    )
    shape, differences = reconcile(wrong, predicted.layers)
    assert shape.layers == predicted.layers
    assert differences == [
        "layer 1: config predicts (window, kv heads, key size, value size) = (24, 4, 16, 16), "
        "the model has (24, 2, 16, 16)"
    ]


def test_a_missing_layer_is_reported() -> None:
    """A different number of layers is a difference too."""
    predicted = shape_from_config(build("llama").config.to_dict())
    shape, differences = reconcile(predicted, predicted.layers[:3])
    assert len(shape.layers) == 3
    assert differences == ["4 layers predicted, 3 found"]


def test_a_model_without_kv_cache_is_refused() -> None:
    """A recurrent model has no cache to page: one line that says so."""
    model = MambaForCausalLM(
        MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, state_size=4)
    )
    with pytest.raises(StartupError, match=r"^mamba "):
        observe_layers(model)


@pytest.mark.parametrize("name", ["gpt_oss", "deepseek_v3", "mistral"])
def test_allocated_bytes_are_the_planned_ones(name: str) -> None:
    """The pools' tensors take exactly the bytes that the plan says, and start as zeros."""
    shape = shape_from_config(build(name).config.to_dict())
    plan = plan_pools(shape, 2_000_000, 16, 4, 32, 4)
    layers = allocate_layers(plan, shape, 16, torch.float32, torch.device("cpu"))
    tensors = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
    assert sum(t.numel() * t.element_size() for t in tensors) == plan.total_bytes
    assert not any(bool(t.any()) for t in tensors)
    assert [layer.window for layer in layers] == [layer.window for layer in shape.layers]
    for layer in layers:
        assert layer.keys.shape[0] == plan.groups[layer.group].num_blocks


def test_the_pools_pages_are_taken_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """All the bytes of the plan are asked for, at the start and not when they are first used."""
    taken: list[int] = []
    monkeypatch.setattr(
        layout, "take_pages", lambda arrays: taken.extend(array.nbytes for array in arrays)
    )
    shape = shape_from_config(build("gpt_oss").config.to_dict())
    plan = plan_pools(shape, 2_000_000, 16, 4, 32, 4)
    layers = allocate_layers(plan, shape, 16, torch.float32, torch.device("cpu"))
    assert sum(taken) == plan.total_bytes
    assert len(taken) == 2 * len(layers)


def test_devices_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` is the CPU where there is no GPU; a GPU that is not there is one clear line."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    with pytest.raises(StartupError, match="no CUDA device is usable"):
        pick_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda", 0)
    with pytest.raises(StartupError, match=r"cuda:3: this machine has 1 CUDA device"):
        pick_device("cuda:3")


def test_dtypes_by_name() -> None:
    """`auto` is float32 on a CPU and the checkpoint's own on CUDA; a name is itself."""
    config = build("llama").config
    config.dtype = torch.float16
    assert pick_dtype("auto", config, torch.device("cpu")) == torch.float32
    assert pick_dtype("auto", config, torch.device("cuda")) == torch.float16
    assert pick_dtype("bfloat16", config, torch.device("cpu")) == torch.bfloat16


def test_a_loaded_model_is_described(tmp_path: Path) -> None:
    """Vocabulary, context, ends and bytes come from the model itself, tied weights once."""
    model = build("llama", tie_word_embeddings=True)
    loaded = load_model(EngineSpec(folder=saved(model, tmp_path), device="cpu"), print)
    assert (loaded.vocab_size, loaded.context_len, loaded.eos_token_ids) == (256, 2048, (255,))
    parameters = {p.data_ptr(): p.numel() * 4 for p in model.parameters()}
    buffers = sum(b.numel() * 4 for b in model.buffers())
    assert loaded.weights_bytes == sum(parameters.values()) + buffers
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())


def test_random_weights_follow_the_seed(tmp_path: Path) -> None:
    """Without weights, the seed decides them."""
    build("llama").config.save_pretrained(tmp_path)

    def weights(seed: int) -> torch.Tensor:
        spec = EngineSpec(
            folder=str(tmp_path), device="cpu", load_format="random", weights_seed=seed
        )
        tensor = load_model(spec, lambda _: None).model.lm_head.weight
        assert isinstance(tensor, torch.Tensor)
        return tensor

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "cannot read the model's config"),
        ({"config.json": "{"}, "cannot read the model's config"),
        ({"config.json": json.dumps({"model_type": "no_such"})}, "cannot read the model's config"),
        ({"config.json": json.dumps({"model_type": "llama"})}, "holds no weights"),
        (
            {
                "config.json": json.dumps({"model_type": "llama", **CONFIGS["llama"]}),
                "model.safetensors": "not a safetensors file",
            },
            "cannot load the model",
        ),
    ],
    ids=["empty", "broken config", "unknown model", "no weights", "broken weights"],
)
def test_a_folder_that_cannot_be_loaded(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    """Each is one line that names the folder and says what is wrong."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(StartupError, match=message) as caught:
        load_model(EngineSpec(folder=str(tmp_path), device="cpu"), lambda _: None)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_lacks_tensors_is_refused(tmp_path: Path) -> None:
    """Weights that are not there are not made up."""
    folder = Path(saved(build("llama"), tmp_path))
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.0.self_attn.q_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StartupError, match=r"lacks 1 of the model's tensors .*q_proj"):
        load_model(EngineSpec(folder=str(folder), device="cpu"), lambda _: None)
