"""Reading parts of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gpt_oss_server.engine.ranks.shard import Cut
from gpt_oss_server.engine.ranks.source import Checkpoint, WholeModel, mxfp4, weights_digest


def checkpoint(folder: Path, tensors: dict[str, torch.Tensor]) -> Checkpoint:
    """A folder with these tensors in one file."""
    save_file(tensors, folder / "model.safetensors")
    found = Checkpoint.in_folder(folder)
    assert found is not None
    return found


def quantized(experts: int, rows: int, columns: int) -> dict[str, torch.Tensor]:
    """Random MXFP4 blocks and scales, as gpt-oss checkpoints hold them."""
    torch.manual_seed(0)
    groups = columns // 32
    return {
        "e_blocks": torch.randint(0, 256, (experts, rows, groups, 16), dtype=torch.uint8),
        "e_scales": torch.randint(120, 134, (experts, rows, groups), dtype=torch.uint8),
    }


def test_a_slice_of_a_file(tmp_path: Path) -> None:
    """Ranges along any dimension, and the whole."""
    tensor = torch.arange(24.0).view(2, 4, 3)
    found = checkpoint(tmp_path, {"a": tensor})
    assert torch.equal(found.read("a", None), tensor)
    assert torch.equal(found.read("a", Cut(1, ((1, 2), (3, 4)))), tensor[:, [1, 3]])
    padded = found.read("a", Cut(0, ((1, 2),), pad=1))
    assert torch.equal(padded, torch.cat((tensor[1:], torch.zeros(1, 4, 3))))


def test_names_and_shapes_must_be_the_models(tmp_path: Path) -> None:
    """A tensor that is missing, or of another shape, means that it is another model's file."""
    found = checkpoint(tmp_path, {"a": torch.zeros(2, 3), **quantized(2, 5, 64)})
    assert found.supplies({"a": (2, 3)})
    assert found.supplies({"e": (2, 64, 5)})
    assert not found.supplies({"a": (3, 2)})
    assert not found.supplies({"e": (2, 5, 64)})
    assert not found.supplies({"a": (2, 3), "b": (1,)})
    assert Checkpoint.in_folder(tmp_path / "none") is None


def test_mxfp4_is_what_transformers_makes_of_it() -> None:
    """Number for number, also where several experts and groups are read."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    stored = quantized(3, 6, 96)
    theirs = convert_moe_packed_tensors(stored["e_blocks"], stored["e_scales"])
    assert theirs.shape == (3, 96, 6)
    assert torch.equal(mxfp4(stored["e_blocks"], stored["e_scales"]), theirs)


@pytest.mark.parametrize(
    "cut",
    [
        Cut(0, ((1, 3),)),
        Cut(1, ((0, 32),)),
        Cut(1, ((24, 48),)),
        Cut(1, ((5, 6), (70, 96))),
        Cut(2, ((2, 6),)),
        Cut(2, ((0, 1), (4, 5))),
    ],
)
def test_a_slice_of_mxfp4(tmp_path: Path, cut: Cut) -> None:
    """Cut by expert, input (within a group too) or output, before it is made wide."""
    stored = quantized(3, 6, 96)
    whole = mxfp4(stored["e_blocks"], stored["e_scales"])
    found = checkpoint(tmp_path, stored)
    assert torch.equal(found.read("e", None), whole)
    assert torch.equal(found.read("e", cut), cut.of(whole))


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_another_checkpoint_has_another_digest(tmp_path: Path, file: str) -> None:
    """Other numbers in the same shapes are told apart, wherever they are; the same are not."""
    digests = []
    for name, last in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        (tmp_path / name).mkdir()
        tensor = torch.ones(1 << 18)
        tensor[-1] = last
        if file.endswith(".bin"):
            (tmp_path / name / file).write_bytes(tensor.numpy().tobytes())
        else:
            save_file({"x": tensor}, tmp_path / name / file)
        digests.append(weights_digest(tmp_path / name))
    assert digests[0] == digests[1] != digests[2]


def test_a_whole_model_lets_go_of_what_was_read() -> None:
    """Each tensor once, as a copy: the rest of a cut one is not kept."""
    model = torch.nn.Linear(3, 4, bias=False)
    weight = model.weight.detach().clone()
    source = WholeModel(model)
    part = source.read("weight", Cut(0, ((1, 3),)))
    assert torch.equal(part, weight[1:3])
    assert part.untyped_storage().nbytes() == 2 * 3 * 4
    with pytest.raises(KeyError):
        source.read("weight", None)
