"""How much of gpt-oss-20b a tensor rank holds, from modules without weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt_oss_server.doctor.published import PUBLISHED
from gpt_oss_server.engine.experts.loading import stored_skeleton
from gpt_oss_server.engine.loader import read_config
from gpt_oss_server.engine.ranks.comms import Comms
from gpt_oss_server.engine.ranks.place import Place
from gpt_oss_server.engine.ranks.plan import tensor_plan
from gpt_oss_server.engine.ranks.skeleton import skeleton
from gpt_oss_server.engine.ranks.tensor import TensorCutter
from gpt_oss_server.errors import StartupError
from gpt_oss_server.memory.architecture import shape_from_config
from gpt_oss_server.memory.kv import BlockPool, kv_bytes
from gpt_oss_server.memory.weights import weights_of

PUBLISHED_20B = PUBLISHED["openai/gpt-oss-20b"]
CONFIG = {**PUBLISHED_20B, "num_hidden_layers": 2, "layer_types": None}
# What two, four, eight and sixteen ranks hold of MXFP4 experts more than an equal share: 90 groups
# are 23 on each of four ranks, 12 on each of eight, 6 on each of sixteen.
MORE = {2: 1.0, 4: 23 * 4 / 90, 8: 12 * 8 / 90, 16: 6 * 16 / 90}


def cut(folder: Path, tp_rank: int, tp: int, *, stored: bool = False, **changes: Any) -> Any:
    """A rank's part of two layers of gpt-oss-20b, on the meta device."""
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    make = stored_skeleton if stored else skeleton
    model = make(folder, read_config(folder), torch.bfloat16)
    comms = Comms(Place(tp_rank, tp=tp), torch.device("cpu"), None)
    cutter = TensorCutter(model, tensor_plan("gpt_oss", None), comms)
    cutter.cut()
    cutter.join()
    return model


def bytes_of(model: Any) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


@pytest.mark.parametrize("tp", [2, 4, 8, 16])
def test_a_rank_holds_what_is_predicted(tmp_path: Path, tp: int) -> None:
    """To the byte, on the first rank and the last; with 16, key heads are on two ranks each."""
    predicted = weights_of(CONFIG, dtype="bfloat16", dequantized=True).rank_bytes(tp)
    for rank in (0, tp - 1):
        assert (bytes_of(cut(tmp_path, rank, tp)),) == predicted


@pytest.mark.parametrize("tp", [2, 4, 8, 16])
def test_a_rank_holds_what_is_predicted_in_four_bits(tmp_path: Path, tp: int) -> None:
    """The same of experts as they are stored, and what whole groups cost."""
    weights = weights_of(CONFIG, dtype="bfloat16")
    for rank in (0, 1, tp - 1):
        assert (bytes_of(cut(tmp_path, rank, tp, stored=True)),) == weights.rank_bytes(tp)
    (experts,) = (size for share, size in weights.read_profile(tp)[0].items() if share < 1)
    # The output biases are whole on every rank.
    biases = 2 * 32 * 2880 * 2
    (whole,) = (size for share, size in weights.read_profile()[0].items() if share < 1)
    assert (experts - biases) * tp / (whole - biases) == pytest.approx(MORE[tp], rel=1e-6)


def test_half_of_weights_and_kv(tmp_path: Path) -> None:
    """Two ranks: at most 0.52 of what one holds, with the KV of 32,768 tokens."""
    shape, pool = shape_from_config(CONFIG), BlockPool()
    one = bytes_of(cut(tmp_path, 0, 1)) + kv_bytes(shape, 32_768, pool)
    rank = bytes_of(cut(tmp_path, 0, 2)) + kv_bytes(shape.sharded(2), 32_768, pool)
    assert 0.5 <= rank / one <= 0.501


@pytest.mark.parametrize(
    ("tp", "changes", "match"),
    [
        (3, {}, "64 attention heads do not divide over 3 GPUs: use one of 2, 4, 8"),
        (5, {"num_attention_heads": 60, "num_key_value_heads": 12}, "12 key heads"),
        (64, {"num_key_value_heads": 64, "intermediate_size": 96}, "96 columns of an expert"),
    ],
)
def test_numbers_that_do_not_divide(
    tmp_path: Path, tp: int, changes: dict[str, int], match: str
) -> None:
    """One line with the numbers."""
    with pytest.raises(StartupError, match=match):
        cut(tmp_path, 0, tp, **changes)
