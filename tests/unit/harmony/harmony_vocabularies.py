"""Small vocabularies of the kinds that real models have, built on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import (
    AddedToken,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TINY = Path(__file__).parents[3] / "src" / "gpt_oss_server" / "models" / "tiny"


def llama2_like(*, normalized: bool = False) -> tokenizers.Tokenizer:
    """Sentencepiece-style: `▁` for a space, byte fallback, a prefix space, a BOS.

    `normalized`: special tokens are matched in the normalized text, as in older conversions.
    """
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"abcdehilorw", "he", "ll", "hell", "hello", "▁hello", "▁w"]
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("▁", "hello"), ("▁", "w")]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(
        [AddedToken(text, special=True, normalized=normalized) for text in ("<unk>", "<s>", "</s>")]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return backend


def wordpiece_like() -> tokenizers.Tokenizer:
    """A vocabulary whose tokens are not bytes."""
    vocab = {"[UNK]": 0, "un": 1, "##der": 2, "stand": 3, "##ing": 4, "a": 5}
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    return backend


def qwen_like() -> tokenizers.Tokenizer:
    """Byte-level, with ChatML's special tokens (280 to 282) and an added token that is none."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["user assistant system hello world " * 4], trainer)
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    backend.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return backend


def write_folder(
    folder: Path,
    backend: tokenizers.Tokenizer,
    *,
    config: dict[str, Any] | None = None,
    **files: Any,
) -> Path:
    """A model folder; `files` are tokenizer_config and generation_config contents."""
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "other"}))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder
