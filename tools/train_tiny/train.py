"""The training loop: batches in, a checkpoint and a model folder out.

Knows: steps, checkpoints, progress. Does not know: what is in a batch.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from tools.train_tiny.batches import Encoder, batches
from tools.train_tiny.copying import prepare_copying
from tools.train_tiny.fast_forward import losses
from tools.train_tiny.optimise import optimisers, rate

from gpt_oss_server.harmony.tokenizer import Tokenizer

REPORT_EVERY: Final = 20
SAVE_EVERY: Final = 100


@dataclass(frozen=True)
class Recipe:
    """Everything that the weights follow from, beside the code and the versions of torch."""

    steps: int = 4600
    decay: int = 3200
    rows: int = 7
    length: int = 512
    muon_lr: float = 0.008
    adam_lr: float = 0.002
    seed: int = 0


def new_model(folder: Path, seed: int) -> Any:
    """A freshly initialised model of the folder's config, float32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        prepare_copying(model)
    return model


def train(folder: Path, checkpoint: Path, recipe: Recipe, *, stop_at: int | None = None) -> Any:
    """Train from the checkpoint, or from scratch if there is none; returns the model."""
    model = new_model(folder, recipe.seed)
    steppers = optimisers(model, recipe.muon_lr, recipe.adam_lr)
    for group in (g for s in steppers for g in s.param_groups):
        group["initial_lr"] = group["lr"]
    first = _resume(checkpoint, recipe, model, steppers)
    encoder = Encoder(Tokenizer.from_folder(folder))
    last = min(recipe.steps, stop_at or recipe.steps)
    source = batches(
        encoder, seed=recipe.seed, first=first, last=last, rows=recipe.rows, length=recipe.length
    )
    seen: list[tuple[float, float, int, int]] = []
    began_s = time.monotonic()
    for step, batch in enumerate(source, start=first):
        share = rate(step, recipe.steps, recipe.decay)
        for group in (g for s in steppers for g in s.param_groups):
            group["lr"] = group["initial_lr"] * share
        found = losses(model, batch)
        found.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad(set_to_none=True)
        seen.append(
            (
                float(found.cross_entropy.detach()),
                float(found.correct),
                int((batch.targets >= 0).sum()),
                int((batch.segments >= 0).sum()),
            )
        )
        done = step + 1
        if done % REPORT_EVERY == 0 or done == last:
            _report(done, recipe.steps, seen, time.monotonic() - began_s)
            seen.clear()
            began_s = time.monotonic()
        if done % SAVE_EVERY == 0 or done == last:
            _save(checkpoint, done, recipe, model, steppers)
    return model


def write_weights(model: Any, folder: Path) -> int:
    """Write `model.safetensors` in bfloat16; returns its size in bytes.

    Everything is rounded, the norms too: the loader widens them again.
    """
    from safetensors.torch import save_file

    tied = bool(model.config.tie_word_embeddings)
    state = {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    path = folder / "model.safetensors"
    save_file(state, path, metadata={"format": "pt"})
    return path.stat().st_size


def _report(
    done: int, steps: int, seen: list[tuple[float, float, int, int]], took_s: float
) -> None:
    learned = sum(n for _, _, n, _ in seen)
    loss = sum(loss * n for loss, _, n, _ in seen) / learned
    correct = sum(right * n for _, right, n, _ in seen) / learned
    speed = sum(n for _, _, _, n in seen) / took_s
    left_s = (steps - done) * took_s / len(seen)
    print(
        f"step {done}/{steps}  loss {loss:.4f}  right {correct:.2%}  {speed:,.0f} tokens/s  "
        f"{left_s / 60:.0f} min left",
        flush=True,
    )


def _save(path: Path, step: int, recipe: Recipe, model: Any, steppers: list[Any]) -> None:
    partial = path.with_suffix(".partial")
    torch.save(
        {
            "step": step,
            "recipe": asdict(recipe),
            "model": model.state_dict(),
            "optimisers": [s.state_dict() for s in steppers],
        },
        partial,
    )
    partial.replace(path)


def continues(made_with: dict[str, Any], step: int, recipe: Recipe) -> bool:
    """Whether the recipe would have come to the same checkpoint. The number of steps, and of those
    at the end in which the rate falls, play no part before that."""
    level = min(int(made_with["steps"]) - int(made_with["decay"]), recipe.steps - recipe.decay)
    if step <= level:
        made_with = made_with | {"steps": recipe.steps, "decay": recipe.decay}
    return made_with == asdict(recipe)


def _resume(path: Path, recipe: Recipe, model: Any, steppers: list[Any]) -> int:
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        return 0
    state = torch.load(path, weights_only=True)
    if not continues(state["recipe"], int(state["step"]), recipe):
        raise SystemExit(
            f"{path} was made with another recipe ({json.dumps(state['recipe'])}): delete it, or "
            "give the same options"
        )
    model.load_state_dict(state["model"])
    for stepper, saved in zip(steppers, state["optimisers"], strict=True):
        stepper.load_state_dict(saved)
    return int(state["step"])
