"""Text to ids and back: injection safety, bytes, odd input, broken files."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from harmony_vocabularies import TINY, llama2_like, qwen_like, wordpiece_like, write_folder
from hypothesis import given
from hypothesis import strategies as st

from gpt_oss_server.errors import StartupError
from gpt_oss_server.harmony.token_bytes import byte_alphabet, codec_of
from gpt_oss_server.harmony.tokenizer import Tokenizer

FORGERIES = st.sampled_from(["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "system", " "])
TINY_TOKENIZER = Tokenizer.from_folder(TINY)


@given(st.lists(st.one_of(FORGERIES, st.text(max_size=5))).map("".join))
def test_no_text_encodes_to_a_special_token(text: str) -> None:
    """Whatever a user types, specials spelled out included, stays text and round-trips."""
    ids = TINY_TOKENIZER.encode(text)
    assert TINY_TOKENIZER.special_ids.isdisjoint(ids)
    assert b"".join(map(TINY_TOKENIZER.token_bytes, ids)) == text.encode()
    assert TINY_TOKENIZER.decode(ids) == text


def test_encode_all_equals_encode_one_by_one(tiny: Tokenizer) -> None:
    """A batch gives each text the ids that it gets alone."""
    texts = ["", "hello", "<|end|>", "ä" * 100]
    assert tiny.encode_all(texts) == [tiny.encode(text) for text in texts]


def test_texts_are_encoded_one_by_one() -> None:
    """The library's threads are shared by all: there a small request would wait for a large one."""
    backend = qwen_like()
    sizes: list[int] = []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(backend, name)

        def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
            sizes.append(len(texts))
            return backend.encode_batch_fast(texts, **options)

    Tokenizer(Counting()).encode_all(["a", "b", "c"])  # type: ignore[arg-type]
    assert sizes == [1, 1, 1]


def test_encoding_is_greedy_over_merges(tiny: Tokenizer) -> None:
    """Common words are single tokens: the merges are in use."""
    assert len(tiny.encode(" the")) == 1
    assert len(tiny.encode("Channel must be included")) == 4  # of 24 bytes


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("a\ud800b", "a�b"),
        ("\udfff", "�"),
        ("\ud83d\ude00", "😀"),  # a pair in two halves is the character it spells
        ("plain", "plain"),
    ],
)
def test_lone_surrogates_become_replacement_characters(
    tiny: Tokenizer, text: str, clean: str
) -> None:
    """JSON can carry halves of surrogate pairs; they must not raise."""
    assert tiny.decode(tiny.encode(text)) == clean


def test_decode_shows_specials_and_survives_unknown_ids(tiny: Tokenizer) -> None:
    """Specials decode to their spelling; ids outside the vocabulary to nothing."""
    ids = [tiny.specials()["<|start|>"], *tiny.encode("hi"), 2048, 10**9, -1]
    assert tiny.decode(ids) == "<|start|>hi"
    assert [tiny.token_bytes(i) for i in (-1, 2048, 2**40)] == [b"", b"", b""]


@given(st.lists(st.integers(0, 1023)))
def test_decode_equals_the_library(ids: list[int]) -> None:
    """Over any ids, invalid UTF-8 included, the text is the one the library gives."""
    library = tokenizers.Tokenizer.from_file(str(TINY / "tokenizer.json"))
    assert TINY_TOKENIZER.decode(ids) == library.decode(ids, skip_special_tokens=False)


def test_token_text_is_none_for_half_characters(tiny: Tokenizer) -> None:
    """Only tokens of whole characters have a text of their own, the second time too."""
    first_byte = tiny.encode("😀")[0]
    for _ in range(2):
        assert tiny.token_text(first_byte) is None
        assert tiny.token_text(tiny.encode(" the")[0]) == " the"


def test_sentencepiece_bytes_and_bos() -> None:
    """`▁` is a space, `<0x41>` a byte; BOS only where asked for; the prefix space is dropped."""
    tokenizer = Tokenizer(llama2_like())
    assert tokenizer.is_byte_based
    assert tokenizer.encode("hello w") == [tokenizer.id_of("▁hello"), tokenizer.id_of("▁w")]
    assert tokenizer.encode("hello", add_special_tokens=True)[0] == tokenizer.id_of("<s>") == 1
    assert tokenizer.token_bytes(tokenizer.id_of("▁hello") or 0) == b" hello"
    assert tokenizer.token_bytes(tokenizer.id_of("<0xE2>") or 0) == b"\xe2"
    assert tokenizer.decode(tokenizer.encode("hello € w")) == "hello € w"
    assert tokenizer.special_ids.isdisjoint(tokenizer.encode("<s>hello</s>"))


def test_other_vocabularies_use_their_own_decoder() -> None:
    """A vocabulary whose tokens are not bytes still decodes, unknown ids left out."""
    tokenizer = Tokenizer(wordpiece_like())
    assert not tokenizer.is_byte_based
    assert tokenizer.decode([1, 2, 3, 4, 999]) == "under standing"
    assert tokenizer.token_bytes(3) == b"stand"


def test_added_token_keeps_its_own_bytes() -> None:
    """An added token is its content, even where that has letters from the byte alphabet."""
    backend = qwen_like()
    backend.add_tokens(["é "])
    tokenizer = Tokenizer(backend)
    assert tokenizer.token_bytes(tokenizer.id_of("é ") or 0) == "é ".encode()
    assert tokenizer.encode("é ") == [tokenizer.id_of("é ")]


def test_byte_alphabet_is_a_bijection() -> None:
    """256 distinct characters for 256 distinct bytes, a space being Ġ."""
    alphabet = byte_alphabet()
    assert sorted(alphabet.values()) == list(range(256))
    assert alphabet["Ġ"] == 0x20
    assert alphabet["A"] == 0x41
    assert set(alphabet) == set(tokenizers.pre_tokenizers.ByteLevel.alphabet())


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        {"type": "Sequence", "decoders": [{"type": "ByteLevel"}, {"type": "CTC"}]},
        {"type": "Sequence", "decoders": [{"type": "Fuse"}]},
        {"type": "Replace", "pattern": {"Regex": "x"}, "content": " "},
        {"type": "Strip", "content": " ", "start": 2, "stop": 0},
    ],
)
def test_unknown_decoders_are_not_taken_for_bytes(decoder: dict[str, object] | None) -> None:
    """Where a token has no fixed bytes the codec says so instead of guessing."""
    assert codec_of(decoder) is None


@pytest.mark.parametrize(
    ("scheme", "strips"), [("always", True), ("first", True), ("never", False)]
)
def test_metaspace_decoder(scheme: str, strips: bool) -> None:
    """Metaspace spells the space and says whether a text starts with one."""
    codec = codec_of({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme})
    assert codec is not None
    assert codec.of_piece("▁a") == b" a"
    assert codec.of_piece("<0x41>") == b"<0x41>"  # no byte fallback here
    assert codec.strips_space is strips


@pytest.mark.parametrize("content", ["", "{", "{}"])
def test_broken_tokenizer_file_stops_start_up(tmp_path: Path, content: str) -> None:
    """A broken file is one clear line that names it."""
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(StartupError, match=r"cannot read the tokenizer .*tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)


def test_folder_without_tokenizer_stops_start_up(tmp_path: Path) -> None:
    """Nothing to convert: one line, no traceback of transformers."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(StartupError, match=r"has no tokenizer\.json and its tokenizer cannot"):
        Tokenizer.from_folder(tmp_path)


def test_old_format_is_converted(tmp_path: Path) -> None:
    """vocab.json and merges.txt, GPT-2's format, give a working tokenizer."""
    write_folder(tmp_path / "new", qwen_like())
    old = tmp_path / "old"
    old.mkdir()
    qwen_like().model.save(str(old))
    (old / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    (old / "config.json").write_text('{"model_type": "gpt2"}')
    tokenizer = Tokenizer.from_folder(old)
    assert tokenizer.decode(tokenizer.encode("hello wörld")) == "hello wörld"


def test_import_is_light() -> None:
    """The front process must not pull in torch or transformers."""
    code = (
        "import sys; import gpt_oss_server.harmony.formats; "
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_encoding_releases_pythons_lock(tiny: Tokenizer) -> None:
    """While a long text is encoded in one thread, Python code runs in another.

    With a switch interval of a minute no thread is made to yield: the main thread can only see the
    encoding under way if the encoding itself lets go of the lock.
    """
    text = "hello world and other things, 12345 is a number. " * 5_000
    encoded = threading.Event()

    def encode() -> None:
        tiny.encode_all([text])
        encoded.set()

    thread = threading.Thread(target=encode)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)
    try:
        thread.start()
        seen_under_way = not encoded.is_set()
    finally:
        sys.setswitchinterval(interval)
    thread.join()
    assert seen_under_way
    assert encoded.is_set()
