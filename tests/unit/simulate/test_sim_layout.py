"""GPU types as data, and what of a GPU is left for KV."""

from __future__ import annotations

from pathlib import Path

import pytest
from sim_builders import MODEL_120B, replica

from gpt_oss_server.doctor.published import PUBLISHED
from gpt_oss_server.errors import ConfigError
from gpt_oss_server.simulate.cost.gpu_types import gpu_names, gpu_type, parse_gpu
from gpt_oss_server.simulate.cost.layout import DoesNotFit, EngineSettings, Shape, lay_out
from gpt_oss_server.simulate.cost.roofline import Efficiency, model_cost


def test_packaged_types_have_a_source() -> None:
    """Six types, each readable, each saying where its figures come from."""
    assert gpu_names() == ("a100", "b200", "h100", "h200", "l40s", "rtx4090")
    for name in gpu_names():
        assert gpu_type(name).name == name
        assert "data sheet" in gpu_type(name).source or "white paper" in gpu_type(name).source
    assert [name for name in gpu_names() if gpu_type(name).calibrated] == ["h100", "h200"]


def test_a_type_of_ones_own(tmp_path: Path) -> None:
    """A YAML file works like a packaged type."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\ntitle: Mine\nmemory_bytes: 1000\nbandwidth_bytes_s: 1e9\n"
        "bf16_flops_s: 1e12\nlink_bytes_s: 1.0e9\nsource: me\n"
    )
    assert gpu_type(str(path)).bandwidth_bytes_s == 1e9


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], "gpu x: not a mapping of fields"),
        ({"colour": 1}, "gpu x: unknown field colour"),
        ({"memory_bytes": "much"}, "gpu x: memory_bytes must be a int, not 'much'"),
        ({"name": "x"}, "missing 6 required"),
    ],
)
def test_a_type_that_is_none(content: object, says: str) -> None:
    """The field at fault is named."""
    with pytest.raises(ConfigError, match=says):
        parse_gpu("x", content)


@pytest.mark.parametrize(
    ("text", "says"),
    [("source: 2026-02-30", "day is out of range for month"), ("[" * 5000, "recursion")],
)
def test_a_file_that_cannot_be_read_as_yaml(text: str, says: str, tmp_path: Path) -> None:
    """A date that there is not, brackets without end: one line, by the file's name."""
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"^gpu .*odd.yaml: .*{says}"):
        gpu_type(str(path))


def test_an_unknown_type_lists_the_known() -> None:
    """The error says what there is."""
    with pytest.raises(ConfigError, match="unknown GPU type v100: use one of a100, b200"):
        gpu_type("v100")


def test_a_layout_that_does_not_fit_says_by_how_much() -> None:
    """The bytes that are missing would be enough: with them it fits."""
    config = PUBLISHED["openai/gpt-oss-120b"]
    settings = EngineSettings(max_num_seqs=16, max_batch_tokens=2048)
    small = gpu_type("l40s")
    with pytest.raises(DoesNotFit, match="bytes are missing on each GPU of stage 0") as caught:
        lay_out(config, MODEL_120B, Shape(small), settings, Efficiency())
    missing = caught.value.missing_bytes
    fields = {name: getattr(small, name) for name in small.__dataclass_fields__}
    needed = small.memory_bytes + int(missing / settings.memory_utilization) + 2
    enough = type(small)(**{**fields, "memory_bytes": needed})
    assert lay_out(config, MODEL_120B, Shape(enough), settings, Efficiency()).kv_blocks >= 1


def test_room_for_kv() -> None:
    """More GPUs, more room: per token 36,864 bytes over all ranks."""
    one, two = replica(), replica(tp=2)
    assert (one.kv_bytes_per_token, two.kv_bytes_per_token) == (36_864, 36_864)
    assert one.longest_tokens == two.longest_tokens == 131_072
    assert 10 * one.kv_tokens < two.kv_tokens
    staged = lay_out(
        PUBLISHED["openai/gpt-oss-120b"],
        MODEL_120B,
        Shape(gpu_type("h100"), 1, 2),
        EngineSettings(),
        Efficiency(),
    )
    assert staged.kv_bytes_per_token == 36_864
    assert staged.kv_tokens > one.kv_tokens
    assert (staged.shape.name, staged.shape.gpus) == ("h100-tp1-pp2", 2)


def test_a_model_whose_layers_all_slide() -> None:
    """Nothing grows: a sequence is bounded by the model's context alone."""
    config = {
        **PUBLISHED["openai/gpt-oss-20b"],
        "layer_types": ["sliding_attention"] * 24,
    }
    model = model_cost(config)
    found = lay_out(config, model, Shape(gpu_type("h100")), EngineSettings(), Efficiency())
    assert found.longest_tokens == 131_072
    assert found.kv_bytes_per_token == 0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"block_size": 0}, "block_size must be at least 1"),
        ({"max_batch_tokens": 8, "max_num_seqs": 9}, "less than max_num_seqs"),
        ({"prefill_order": "lifo"}, "must be shortest or fcfs"),
        ({"oldest_share": 1.5}, "oldest_share must be within 0..1"),
        ({"memory_utilization": 0.0}, "memory_utilization must be above 0"),
    ],
)
def test_impossible_settings(settings: dict[str, float], says: str) -> None:
    """Each is refused by its name."""
    with pytest.raises(ConfigError, match=says):
        EngineSettings(**settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="tp and pp must be at least 1"):
        Shape(gpu_type("h100"), 0)
