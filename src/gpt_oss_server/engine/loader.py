"""From a folder to a model on its device, ready for paged attention.

Knows: transformers' loading calls, devices, dtypes. Does not know: KV pools or scheduling, or
models that are spread over ranks (`ranks/`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpt_oss_server.engine.experts.choice import choose_experts, kernels_wanted, wide_line
from gpt_oss_server.engine.packed import can_pack, pack_weights
from gpt_oss_server.engine.phases import Phases
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.engine.step_cost import active_parameters
from gpt_oss_server.errors import StartupError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode. `weights_bytes` counts parameters and buffers once each;
    `active_parameters` are those that one token is multiplied with."""

    model: Any
    device: torch.device
    dtype: torch.dtype
    vocab_size: int
    context_len: int
    eos_token_ids: tuple[int, ...]
    weights_bytes: int
    active_parameters: float


def pick_device(name: str) -> torch.device:
    """`auto` is the first CUDA device, else the CPU. Raises StartupError if it is not there."""
    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise StartupError(
                f"--device {name}: no CUDA device is usable here; use --device cpu, or check the "
                "driver with nvidia-smi"
            )
        if (device.index or 0) >= torch.cuda.device_count():
            raise StartupError(
                f"--device {name}: this machine has {torch.cuda.device_count()} CUDA device(s)"
            )
        return torch.device("cuda", device.index or 0)
    return device


def pick_dtype(name: str, config: Any, device: torch.device) -> torch.dtype:
    """`auto` is the checkpoint's own type on CUDA and float32 on a CPU, where half types are
    slower and their rounding helps nobody."""
    if name != "auto":
        return DTYPES[name]
    if device.type == "cpu":
        return torch.float32
    own = config.get_text_config().dtype
    return own if isinstance(own, torch.dtype) else torch.bfloat16


def read_config(folder: Path) -> Any:
    """The model's transformers config, a new object. Raises StartupError."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise StartupError(f"{folder}: cannot read the model's config: {_line(error)}") from error


def load_model(
    spec: EngineSpec, progress: Callable[[str], None], phases: Phases | None = None
) -> LoadedModel:
    """Load or initialise the model that `spec` names, and lay its weights out as they are read.

    Raises:
        StartupError: no such device, no weights, an architecture transformers does not know,
            or too little memory; each with one line that says what to do.
    """
    device = pick_device(spec.device)
    config = read_config(Path(spec.folder))
    dtype = pick_dtype(spec.dtype, config, device)
    phases = phases or Phases()
    with phases.during("load"):
        choice = choose_experts(spec, config, dtype, device)
        # What transformers does with them it says itself.
        line = None if spec.experts == "transformers" else wide_line(choice, dtype)
        if line is not None:
            progress(line)
        if choice.as_stored:
            from gpt_oss_server.engine.experts.loading import load_as_stored

            model = load_as_stored(spec, config, dtype, device, progress)
        else:
            model = whole_model(spec, config, dtype, device, progress)
        described = describe(model, device, dtype)
    with phases.during("rewrite"):
        kernels_if_wanted(spec, model, device, dtype, progress)
        if spec.attention_backend != "triton":  # kernels read plain weights
            pack_if_possible(model, device, dtype, progress)
    return described


def whole_model(
    spec: EngineSpec,
    config: Any,
    dtype: torch.dtype,
    placement: Any,
    progress: Callable[[str], None],
    **more: Any,
) -> Any:
    """The entire model, in evaluation mode, on a device or by a device map (`placement`).
    Random weights are the same for the same seed and kind of device. `more` goes to
    transformers' loader. Raises StartupError as `load_model`."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as hf_logging

    if not spec.show_progress:
        hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    folder = Path(spec.folder)
    check_weights(spec)
    where = placement if isinstance(placement, torch.device) else "its devices"
    with loading_errors(folder, where):
        if spec.load_format == "random":
            progress(f"initialising random weights (seed {spec.weights_seed})")
            torch.manual_seed(spec.weights_seed)
            with placement:
                model: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                    config, dtype=dtype
                )
        else:
            progress(f"loading weights onto {where} as {str(dtype).removeprefix('torch.')}")
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                device_map=placement,
                local_files_only=True,
                output_loading_info=True,
                **more,
            )
            model, found = loaded
            _check_complete(folder, found["missing_keys"])
    model.eval()
    model.requires_grad_(False)
    return model


def check_weights(spec: EngineSpec) -> None:
    """Raises StartupError where weights are wanted and the folder has none."""
    folder = Path(spec.folder)
    found = any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))
    if spec.load_format == "auto" and not found:
        raise StartupError(
            f"{folder} holds no weights (*.safetensors); use --load-format random for random ones"
        )


@contextmanager
def loading_errors(folder: Path, where: object) -> Iterator[None]:
    """What can go wrong while weights are read, as StartupError."""
    from safetensors import SafetensorError

    try:
        yield
    except (torch.cuda.OutOfMemoryError, MemoryError) as error:
        raise StartupError(
            f"not enough memory on {where} for the weights: use a smaller model, --dtype "
            "bfloat16, or another device"
        ) from error
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise StartupError(f"{folder}: cannot load the model: {_line(error)}") from error


def _check_complete(folder: Path, missing: Collection[str]) -> None:
    """Raises StartupError for tensors that the checkpoint lacks: transformers would go on with
    random ones."""
    if missing:
        first = ", ".join(sorted(missing)[:3])
        raise StartupError(
            f"{folder}: the checkpoint lacks {len(missing)} of the model's tensors ({first}"
            f"{', …' if len(missing) > 3 else ''}): fetch it again"
        )


def describe(model: Any, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    """What there is to know of a model, or of a rank's part of one, before it is packed."""
    text = model.config.get_text_config()
    generation = model.generation_config
    eos = generation.eos_token_id if generation is not None else None
    if eos is None:
        eos = text.eos_token_id
    ids = () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)
    return LoadedModel(
        model=model,
        device=device,
        dtype=dtype,
        vocab_size=int(text.vocab_size),
        context_len=int(getattr(text, "max_position_embeddings", 0) or 0) or 2048,
        eos_token_ids=tuple(int(i) for i in ids),
        weights_bytes=tensor_bytes([*model.parameters(), *model.buffers()]),
        active_parameters=active_parameters(model),
    )


def tensor_bytes(tensors: Collection[torch.Tensor]) -> int:
    """Bytes of tensors, each storage once; what is not in memory (offloaded) is not counted."""
    there = [tensor for tensor in tensors if tensor.device.type != "meta"]
    return sum({(t.device, t.data_ptr()): t.numel() * t.element_size() for t in there}.values())


def pack_if_possible(
    model: Any, device: torch.device, dtype: torch.dtype, progress: Callable[[str], None]
) -> None:
    """Lay the weights out for this CPU, where that helps."""
    if can_pack(device, dtype):
        progress("laying out the weights for this CPU")
        pack_weights(model)


def kernels_if_wanted(
    spec: EngineSpec,
    model: Any,
    device: torch.device,
    dtype: torch.dtype,
    progress: Callable[[str], None],
) -> None:
    """Let Triton compute the experts, where that is chosen. Raises StartupError where it is asked
    for and cannot."""
    if kernels_wanted(spec, dtype, device):
        from gpt_oss_server.engine.experts.replace import use_kernels

        replaced = use_kernels(model)
        if replaced:
            progress(f"experts of {replaced} layers are computed by Triton kernels")


def _line(error: BaseException) -> str:
    """The first line of an error's text: what a terminal can use."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
