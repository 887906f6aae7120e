"""The built-in model's folder is complete, small, reproducible and loads everywhere."""

from __future__ import annotations

import importlib.util
import json
from types import ModuleType

import pytest
import tokenizers
from harmony_vocabularies import TINY
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from gpt_oss_server.harmony.tokenizer import Tokenizer

SPECIALS = [
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
]


@pytest.fixture(scope="module")
def build_tool() -> ModuleType:
    """The script that writes the tokenizer, as a module."""
    path = TINY.parents[3] / "tools" / "build_tiny_tokenizer.py"
    spec = importlib.util.spec_from_file_location("build_tiny_tokenizer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tokenizer_is_what_the_tool_writes(build_tool: ModuleType) -> None:
    """The committed vocabulary, merges and specials are exactly the tool's output."""
    built = json.loads(build_tool.build_tokenizer().to_str())
    committed = json.loads((TINY / "tokenizer.json").read_text())
    for key in ("vocab", "merges"):
        assert built["model"][key] == committed["model"][key]
    assert built["added_tokens"] == committed["added_tokens"]


def test_vocabulary_has_2048_tokens_and_all_specials() -> None:
    """2,048 ids without gaps, the last 32 special, harmony's first among them."""
    backend = tokenizers.Tokenizer.from_file(str(TINY / "tokenizer.json"))
    assert sorted(backend.get_vocab().values()) == list(range(2048))
    added = backend.get_added_tokens_decoder()
    assert sorted(added) == list(range(2016, 2048))
    assert [added[2016 + n].content for n in range(10)] == SPECIALS
    assert all(token.special for token in added.values())


def test_every_byte_has_its_token(tiny: Tokenizer) -> None:
    """All 256 byte values are single tokens, so any byte string can be spelled."""
    single = {tiny.token_bytes(i) for i in range(2048) if len(tiny.token_bytes(i)) == 1}
    assert single == {bytes([byte]) for byte in range(256)}


def test_transformers_loads_tokenizer_and_configs(tiny: Tokenizer) -> None:
    """AutoTokenizer, AutoConfig and GenerationConfig agree with the files and with us."""
    theirs = AutoTokenizer.from_pretrained(str(TINY))
    text = "Hello, wörld! 1 + 1 = 2\n\tdef f(): pass 😀"
    assert theirs(text)["input_ids"] == tiny.encode(text)
    assert (theirs.bos_token, theirs.eos_token, theirs.pad_token) == (
        "<|startoftext|>",
        "<|return|>",
        "<|endoftext|>",
    )
    config = AutoConfig.from_pretrained(str(TINY))
    assert config.model_type == "gpt_oss"
    assert config.eos_token_id == [tiny.id_of("<|return|>"), tiny.id_of("<|call|>")]
    assert config.pad_token_id == tiny.id_of("<|endoftext|>")
    assert config.vocab_size == tiny.vocab_size == 2048
    assert config.layer_types == ["sliding_attention", "full_attention"] * 3
    assert config.max_position_embeddings == 131072
    assert config.rope_parameters["rope_type"] == "yarn"
    assert config.rope_parameters["factor"] == 32.0
    assert GenerationConfig.from_pretrained(str(TINY)).eos_token_id == config.eos_token_id
