"""Makes a skeleton one pipeline stage.

Knows: which parts of a transformers model come before, in and after its decoder layers. Does not
know: where to split (`memory.stages`), files, devices.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gpt_oss_server.engine.ranks.place import Place
from gpt_oss_server.engine.ranks.shard import Cut
from gpt_oss_server.engine.ranks.skeleton import decoder_name, module_name, replace_module
from gpt_oss_server.errors import StartupError

_PROBE_TOKENS = 2


class Elsewhere(nn.Module):
    """Stands for a module of another stage; passes on what it is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class StageCutter:
    """Trims one skeleton to the decoder layers `layers` of a stage. `cut` is called once."""

    def __init__(self, model: Any, place: Place, layers: range) -> None:
        self._model = model
        self._place = place
        self._layers = layers
        self.cuts: dict[str, Cut] = {}  # what is here is here whole
        self._layer_types = list(getattr(_text(model), "layer_types", None) or ())

    def cut(self) -> None:
        """Raises StartupError for a model whose layers cannot be told apart, or that does more to
        hidden states than its layers do."""
        model, place = self._model, self._place
        decoder = model.get_submodule(decoder_name(model))
        layers = getattr(decoder, "layers", None)
        norm = _final_norm(decoder)
        if not isinstance(layers, nn.ModuleList) or norm is None:
            raise StartupError(
                f"--gpu-mode pipeline: the layers of {model.config.model_type} are not where this "
                "server looks for them: use --gpu-mode auto"
            )
        embedding = module_name(model, model.get_input_embeddings())
        head = model.get_output_embeddings()
        head_name = None if head is None else module_name(model, head)
        if not place.is_first_stage:
            replace_module(model, embedding, Elsewhere())
        if not place.is_last_stage:
            setattr(decoder, norm, Elsewhere())
            if head_name is not None:
                replace_module(model, head_name, Elsewhere())
        decoder.layers = nn.ModuleList()
        self._trim(range(0))
        self._check_passes_on(decoder, norm)
        decoder.layers = nn.ModuleList(layers[index] for index in self._layers)
        self._trim(self._layers)
        for local, layer in enumerate(decoder.layers):
            for module in layer.modules():
                if isinstance(getattr(module, "layer_idx", None), int):
                    module.layer_idx = local

    def join(self) -> None:
        """Stages meet between steps, not inside the model."""

    def _check_passes_on(self, decoder: Any, norm: str) -> None:
        """Around its layers a decoder must not touch hidden states: each stage would again."""
        kept = getattr(decoder, norm)
        setattr(decoder, norm, Elsewhere())
        size = int(_text(self._model).hidden_size)
        given = torch.linspace(-1.0, 1.0, _PROBE_TOKENS * size).view(1, _PROBE_TOKENS, size)
        try:
            with torch.inference_mode():
                output = decoder(
                    inputs_embeds=given.clone(),
                    position_ids=torch.arange(_PROBE_TOKENS).unsqueeze(0),
                    use_cache=False,
                )
            same = torch.equal(output.last_hidden_state, given)
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError):
            same = False
        finally:
            setattr(decoder, norm, kept)
        if not same:
            raise StartupError(
                f"--gpu-mode pipeline: {self._model.config.model_type} changes hidden states "
                "outside its layers, which each stage would do again: use --gpu-mode tensor or auto"
            )

    def _trim(self, layers: range) -> None:
        """Let the config, this model's own copy, speak of these layers only."""
        text = _text(self._model)
        if self._layer_types:
            text.layer_types = [self._layer_types[index] for index in layers]
        text.num_hidden_layers = len(layers)


def _text(model: Any) -> Any:
    return model.config.get_text_config()


def _final_norm(decoder: nn.Module) -> str | None:
    return next((name for name in ("norm", "final_layernorm") if hasattr(decoder, name)), None)
