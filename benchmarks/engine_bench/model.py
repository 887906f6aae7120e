"""Makes the benchmark's model on the spot: a gpt-oss shape of 35 M parameters, random weights.

Knows: transformers' classes and files. Does not know: servers or measurements. Run as

    python -m engine_bench.model FOLDER

Rows of the output layer that stand for specials, control bytes and non-ASCII bytes are zero:
their logit is 0 while the best of 3,600 others is positive, so a greedy answer is plain text, one
visible piece of it per token, and never ends before its bound, in every system alike.
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

from engine_bench import vocabulary as v

SEED = 20
LAYERS = 8
HIDDEN = 384


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE whose merges are those of `vocabulary`, with harmony's chat template.

    Raises ValueError if a word is not exactly one token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    space = "Ġ"
    pieces = [*alphabet, *v.SYLLABLES, *(space + s for s in v.SYLLABLES)]
    pieces += [space + word[1:] for word in v.WORDS]
    merges = [(s[0], s[1]) for s in v.SYLLABLES]
    merges += [(space, s) for s in v.SYLLABLES]
    merges += [(space + v.SYLLABLES[a], v.SYLLABLES[b]) for a, b in v.PAIRS]
    core = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(v.SPECIALS))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|startoftext|>",
        eos_token="<|return|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    template = files("gpt_oss_server") / "models" / "tiny" / "chat_template.jinja"
    tokenizer.chat_template = template.read_text()
    sample = list(range(len(v.WORDS)))
    if tokenizer(v.text_of(sample))["input_ids"] != v.ids_of(sample):
        raise ValueError("a word of the benchmark's vocabulary is not one token")
    tokenizer.save_pretrained(folder)


def write_model(folder: Path, seed: int = SEED) -> int:
    """Config and safetensors in float32; returns the number of parameters."""
    import torch
    from transformers import GenerationConfig, GptOssConfig, GptOssForCausalLM

    special = {name: v.FIRST_SPECIAL + i for i, name in enumerate(v.SPECIALS)}
    ends = {
        "bos_token_id": special["<|startoftext|>"],
        "pad_token_id": special["<|endoftext|>"],
        "eos_token_id": [special["<|return|>"], special["<|call|>"]],
    }
    config = GptOssConfig(
        num_hidden_layers=LAYERS,
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=64,
        num_local_experts=8,
        num_experts_per_tok=2,
        sliding_window=128,
        vocab_size=v.VOCAB_SIZE,
        max_position_embeddings=131_072,
        dtype="float32",
        **ends,
    )
    torch.manual_seed(seed)
    model = GptOssForCausalLM(config)
    silent = [i for i, char in enumerate(_bytes_in_order()) if not 0x20 <= char < 0x7F]
    silent += list(special.values())
    with torch.no_grad():
        model.lm_head.weight[silent] = 0.0
    model.generation_config = GenerationConfig(do_sample=False, **ends)
    model.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


def _bytes_in_order() -> list[int]:
    """The byte that each of the first 256 ids stands for: the alphabet of byte-level BPE, sorted
    by the character that writes it (printable bytes as themselves, others from U+0100 on)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = [b for b in range(256) if b not in set(printable)]
    written = {b: chr(b) for b in printable}
    written |= {b: chr(256 + n) for n, b in enumerate(shifted)}
    return sorted(range(256), key=written.__getitem__)


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    print(write_model(folder))


if __name__ == "__main__":
    main()
