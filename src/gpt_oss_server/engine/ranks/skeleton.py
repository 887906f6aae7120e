"""A model without weights, to be cut before anything is read.

Knows: how transformers builds a model on the meta device, which number types its tensors will
have, where its decoder and its vocabulary are. Does not know: ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gpt_oss_server.engine.loader import loading_errors
from gpt_oss_server.errors import StartupError


@dataclass(frozen=True)
class Wanted:
    """One tensor that is still to be read, in the checkpoint under `name`, and the modules whose
    parameter or buffer (by its key) it is: several where it is tied."""

    name: str
    holders: list[tuple[nn.Module, str]]

    @property
    def blank(self) -> torch.Tensor:
        """What is in place: it has the shape and number type of what is wanted."""
        module, key = self.holders[0]
        blank: torch.Tensor = getattr(module, key)
        return blank

    def among(self, modules: set[nn.Module]) -> Wanted:
        """What is left of it where only these modules are."""
        return Wanted(self.name, [held for held in self.holders if held[0] in modules])

    def fill(self, tensor: torch.Tensor) -> None:
        parameter = nn.Parameter(tensor, requires_grad=False)
        for module, key in self.holders:
            if key in module._buffers:
                module._buffers[key] = tensor
            else:
                module._parameters[key] = parameter


def skeleton(folder: Path, config: Any, dtype: torch.dtype) -> Any:
    """The model of `config` with parameters on the meta device and real buffers, in evaluation
    mode. Raises StartupError."""
    from accelerate import init_empty_weights  # type: ignore[import-untyped]
    from transformers import AutoModelForCausalLM, GenerationConfig

    with loading_errors(folder, "the meta device"):
        with init_empty_weights(include_buffers=False):
            model: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, dtype=dtype
            )
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(
                folder, local_files_only=True
            )
    model.tie_weights()  # which moving to the meta device has undone
    _keep_wide(model, dtype)
    model.eval()
    model.requires_grad_(False)
    return model


def _keep_wide(model: Any, dtype: torch.dtype) -> None:
    """What the architecture keeps in float32 though the rest is loaded as a half type."""
    wide: set[str] = set()
    if dtype in (torch.float16, torch.bfloat16):
        wide |= set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == torch.float16:
        wide |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, module in model.named_modules():
        if wide.intersection(name.split(".")):
            module.float()


def wanted(model: Any) -> list[Wanted]:
    """All that a checkpoint must supply, tied tensors once. Cut nothing before: names are those
    of the architecture."""
    stored = set(model.state_dict())
    found: dict[int, Wanted] = {}
    for path, module in model.named_modules():
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            name = f"{path}.{key}" if path else key
            if tensor is not None and name in stored:
                found.setdefault(id(tensor), Wanted(name, [])).holders.append((module, key))
    return list(found.values())


def decoder_name(model: Any) -> str:
    """Where the decoder is in the model (`model` for most). Raises StartupError if nowhere."""
    decoder = model.get_decoder()
    for name, module in model.named_modules():
        if module is decoder and name:
            return str(name)
    raise StartupError(
        f"{model.config.model_type} has no decoder that can be spread over ranks: use --gpu-mode "
        "single or auto"
    )


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put another module in the place of the one of this name."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def module_name(model: nn.Module, wanted_module: nn.Module) -> str:
    """The first name of a module that is in the model. Raises RuntimeError."""
    names = (str(name) for name, module in model.named_modules() if module is wanted_module)
    name = next(names, None)
    if name is not None:
        return name
    raise RuntimeError("the model does not have this module")
