"""Writes the built-in `tiny` model's tokenizer: byte-level BPE with every harmony special.

Knows: how the merges are chosen, how many fit beside 256 bytes and 32 specials, and the special
tokens' order. Does not know: what the text it learns from says (`train_tiny` writes it), nor the
model's shape and weights.

Merges are learned in two rounds, so that a word is spelled alike wherever it stands: a model this
small copies tokens, and could not copy ` Paris` into `"Paris"` if the two had no token in common.
The first round sees words without the space before them. The second joins a space to whole words
that are frequent. So ` Paris` is a space and then exactly the tokens of `Paris`, while ` the` is
one token. Digits are never joined.

Deterministic: the same `tokenizers` release writes the same bytes. Needs no network.

    python tools/build_tiny_tokenizer.py            # rewrites src/gpt_oss_server/models/tiny/
    python tools/build_tiny_tokenizer.py --out DIR
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

ROOT: Final = Path(__file__).resolve().parent.parent
VOCAB_SIZE: Final = 2048
SPACED_WORDS: Final = 560
NAMED_SPECIALS: Final = (
    "<|startoftext|>",
    "<|endoftext|>",
    "<|return|>",
    "<|constrain|>",
    "<|refusal|>",
    "<|channel|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|call|>",
)
NUM_SPECIALS: Final = 32
SPACE: Final = "Ġ"  # how byte-level BPE writes a space
DEFAULT_OUT: Final = ROOT / "src" / "gpt_oss_server" / "models" / "tiny"


def corpus() -> list[str]:
    """The text to learn from: what `tiny` is trained on, a few thousand samples of it."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from tools.train_tiny.text import sample_text

    return sample_text(scenes=3000, seed=1)


def build_tokenizer() -> Tokenizer:
    """Trains the tokenizer: 256 bytes, then merges, then the 32 specials in the last ids."""
    texts = corpus()
    words = _first_round(texts, VOCAB_SIZE - NUM_SPECIALS - SPACED_WORDS)
    tokenizer = _with_spaced_words(words, texts)
    specials = list(NAMED_SPECIALS)
    specials += [f"<|reserved_{n}|>" for n in range(NUM_SPECIALS - len(NAMED_SPECIALS))]
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in specials])
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise SystemExit(f"expected {VOCAB_SIZE} tokens, got {tokenizer.get_vocab_size()}")
    return tokenizer


def _first_round(texts: list[str], size: int) -> Tokenizer:
    """Merges within words, without the spaces between them; digits stay alone."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"),
            pre_tokenizers.Split(" ", "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _with_spaced_words(words: Tokenizer, texts: list[str]) -> Tokenizer:
    """The same merges and then those of a space with the most frequent whole words."""
    state = json.loads(words.to_str())["model"]
    vocab: dict[str, int] = state["vocab"]
    merges = [(left, right) for left, right in state["merges"]]
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    counts = Counter(
        piece for text in texts for piece, _ in split.pre_tokenize_str(text) if piece[0] == SPACE
    )
    ranked = sorted(counts, key=lambda piece: (-counts[piece], piece))
    whole = [p for p in ranked if p[1:] in vocab and _is_word(p[1:])]
    for piece in whole[:SPACED_WORDS]:
        vocab[piece] = len(vocab)
        merges.append((SPACE, piece[1:]))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _is_word(text: str) -> bool:
    """Whether a space before this may be part of it: not so for digits and single letters, which
    begin other words."""
    return (len(text) > 1 or not text.isalnum() or text in "aI") and not text[0].isdigit()


def main() -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    build_tokenizer().save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|startoftext|>",
        "eos_token": "<|return|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 131072,
        "clean_up_tokenization_spaces": False,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    print(f"wrote {out / 'tokenizer.json'}: {VOCAB_SIZE} tokens")


if __name__ == "__main__":
    main()
