"""The least number of tokens of a text, known from its size alone."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
import tokenizers
from harmony_vocabularies import TINY, llama2_like, qwen_like, wordpiece_like, write_folder
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

from gpt_oss_server.harmony.formats import open_chat_format
from gpt_oss_server.harmony.token_bounds import longest_token_bytes
from gpt_oss_server.harmony.tokenizer import Tokenizer

TINY_TOKENIZER = Tokenizer.from_folder(TINY)
LLAMA = Tokenizer(llama2_like())
QWEN = Tokenizer(qwen_like())

TEXTS = st.one_of(
    st.text(max_size=40),
    st.sampled_from(["▁", " ", "hello", " the", "é", "\n"]).flatmap(
        lambda unit: st.integers(1, 300).map(lambda times: unit * times)
    ),
)


@pytest.mark.parametrize("tokenizer", [TINY_TOKENIZER, LLAMA, QWEN], ids=["tiny", "llama", "qwen"])
@given(texts=st.lists(TEXTS, max_size=3))
def test_never_more_than_there_are(tokenizer: Tokenizer, texts: list[str]) -> None:
    """A text is never refused for tokens that it does not have."""
    assert tokenizer.fewest_tokens(texts) <= sum(map(len, tokenizer.encode_all(texts)))


def test_the_longest_token_sets_the_bound() -> None:
    """Each of these vocabularies has one, in the bytes of the text that it stands for."""
    longest = max(
        len(TINY_TOKENIZER.token_bytes(token))
        for token in set(range(TINY_TOKENIZER.vocab_size)) - TINY_TOKENIZER.special_ids
    )
    assert TINY_TOKENIZER.longest_token_bytes == longest
    assert TINY_TOKENIZER.fewest_tokens(["x" * longest, "é" * longest]) == 3
    assert LLAMA.longest_token_bytes == len("▁hello".encode())
    assert TINY_TOKENIZER.fewest_tokens([]) == 0


def test_a_lone_surrogate_counts_for_less_than_it_becomes() -> None:
    """The bound is asked before such characters are replaced."""
    text = "\ud800" * 60
    assert 0 < TINY_TOKENIZER.fewest_tokens([text]) <= len(TINY_TOKENIZER.encode(text))


def _composing(backend: tokenizers.Tokenizer) -> None:
    backend.normalizer = normalizers.NFC()


def _stripping(backend: tokenizers.Tokenizer) -> None:
    backend.normalizer = normalizers.Sequence([normalizers.Strip()])


def _shrinking(backend: tokenizers.Tokenizer) -> None:
    backend.normalizer = normalizers.Replace("  ", " ")


def _removing(backend: tokenizers.Tokenizer) -> None:
    steps = [pre_tokenizers.Split("x", "removed"), pre_tokenizers.ByteLevel(use_regex=False)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)


def _without_a_byte(backend: tokenizers.Tokenizer) -> None:
    backend.model = models.BPE(vocab={"a": 0}, merges=[])


def _swallowing(backend: tokenizers.Tokenizer) -> None:
    backend.add_tokens([AddedToken("<tool>", special=False, rstrip=True)])


@pytest.mark.parametrize(
    "damage", [_composing, _stripping, _shrinking, _removing, _without_a_byte, _swallowing]
)
def test_no_bound_where_text_may_vanish(damage: Callable[[tokenizers.Tokenizer], None]) -> None:
    """A step that can make a text shorter takes the bound away; nothing is refused early then."""
    backend = qwen_like()
    assert longest_token_bytes(backend) is not None
    damage(backend)
    assert longest_token_bytes(backend) is None
    assert Tokenizer(backend).fewest_tokens(["x" * 1000]) == 0


def test_no_bound_for_words_and_unknown_characters() -> None:
    """A word that is not in the vocabulary is one token however long; so is a lost character."""
    assert longest_token_bytes(wordpiece_like()) is None
    backend = llama2_like()
    backend.model = models.BPE(vocab={"<unk>": 0, "a": 1}, merges=[], unk_token="<unk>")
    assert longest_token_bytes(backend) is None


def test_a_chat_has_at_least_its_contents(tmp_path: Path) -> None:
    """Harmony shows all content; a template may leave out anything, so nothing is certain."""
    messages = [
        {"role": "system", "content": "s" * 300},
        {"role": "user", "content": "u" * 300},
        {"role": "assistant", "content": None, "tool_calls": []},
    ]
    harmony = open_chat_format(TINY, today=lambda: date(2025, 6, 28))
    longest = TINY_TOKENIZER.longest_token_bytes
    assert longest is not None
    assert harmony.fewest_chat_tokens(messages) == -(-600 // longest)
    assert harmony.fewest_chat_tokens(messages) <= len(harmony.render_chat(messages))
    assert harmony.fewest_tokens("u" * 300) == -(-300 // longest)
    other = open_chat_format(write_folder(tmp_path, qwen_like()), today=lambda: date(2025, 6, 28))
    assert other.fewest_chat_tokens(messages) == 0
    assert other.fewest_tokens("u" * 300) > 0
