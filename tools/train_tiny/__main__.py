"""Trains the built-in model: `python -m tools.train_tiny`, from the repository's root.

Knows: the command line. Does not know: how training goes.

About half an hour on two CPU cores. Interrupted, it goes on from its checkpoint. It reads
`config.json` and the tokenizer of the model's folder (run `tools/build_tiny_tokenizer.py` first
if the corpus has changed) and writes `model.safetensors` there.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from tools.train_tiny.train import Recipe, train, write_weights

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Train, then write the weights."""
    parser = argparse.ArgumentParser(prog="python -m tools.train_tiny", description=__doc__)
    models = ROOT / "src" / "gpt_oss_server" / "models" / "tiny"
    parser.add_argument("--folder", type=Path, default=models, help="the model's folder")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "build" / "train_tiny.pt")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (2)")
    parser.add_argument("--stop-at", type=int, help="stop after this step, to go on later")
    defaults = Recipe()
    for name in ("steps", "decay", "rows", "length", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(defaults, name))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = replace(
        defaults,
        steps=options.steps,
        decay=options.decay,
        rows=options.rows,
        length=options.length,
        seed=options.seed,
    )
    model = train(options.folder, options.checkpoint, recipe, stop_at=options.stop_at)
    size = write_weights(model, options.folder)
    print(f"wrote {options.folder / 'model.safetensors'}: {size:,} bytes")


if __name__ == "__main__":
    main()
