"""How each kind of setting reads raw values."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_oss_server.config_kinds import (
    Choice,
    Integer,
    Kind,
    Number,
    Secret,
    Size,
    Switch,
    Text,
    format_size,
)

DEVICE = Text("auto, cpu, cuda or cuda:N", r"auto|cpu|cuda(:[0-9]{1,3})?")


@pytest.mark.parametrize(
    ("kind", "raw", "value"),
    [
        (Text(), "openai/gpt-oss-20b", "openai/gpt-oss-20b"),
        (DEVICE, "cuda:3", "cuda:3"),
        (Choice(("a", "b")), "b", "b"),
        (Integer(0, 65535), "0", 0),
        (Integer(0, 65535), 65535, 65535),
        (Integer(0, 2**63 - 1), str(2**63 - 1), 2**63 - 1),
        (Integer(1, 128, power_of_two=True), "128", 128),
        (Number(0, 1), "0.25", 0.25),
        (Number(0, 1), 1, 1.0),
        (Number(0), "1e3", 1000.0),
        (Switch(), "on", True),
        (Switch(), "FALSE", False),
        (Switch(), True, True),
        (Size(), "8388608", 8388608),
        (Size(), 4096, 4096),
        (Size(), "512MiB", 512 * 2**20),
        (Size(), "2 GiB", 2 * 2**30),
        (Size(), "2gb", 2 * 10**9),
        (Size(), "1.5KiB", 1536),
        (Size(), "100kB", 100_000),
        (Secret(), "s3cret\n", "s3cret"),
        (Secret(several=True), "a,b, a", ("a", "b")),
        (Secret(several=True), ["a", "b,c"], ("a", "b", "c")),
    ],
)
def test_values_that_are_allowed(kind: Kind, raw: object, value: object) -> None:
    """Text and YAML scalars become the typed value."""
    parsed = kind.parse(raw)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("kind", "raw", "complaint"),
    [
        (Text(), 20, "must be text, got 20 (put it in quotes)"),
        (Text(), "  ", "must be text, got '  '"),
        (DEVICE, "cuda:", "must be auto, cpu, cuda or cuda:N, got 'cuda:'"),
        (Choice(("a", "b")), "c", "must be one of a, b, got 'c'"),
        (Choice(("a", "b")), ["a"], "must be one of a, b, got ['a']"),
        (Integer(0, 65535), "65536", "must be an integer from 0 to 65535, got '65536'"),
        (Integer(0, 65535), "-1", "must be an integer from 0 to 65535, got '-1'"),
        (Integer(1), "1.0", "must be an integer >= 1, got '1.0'"),
        (Integer(1), True, "must be an integer >= 1, got True"),
        (Integer(1), 2.0, "must be an integer >= 1, got 2.0"),
        (Integer(1), "9" * 5000, f"must be an integer >= 1, got '{'9' * 5000}'"),
        (
            Integer(1, 128, power_of_two=True),
            48,
            "must be a power of two from 1 to 128, got 48",
        ),
        (Number(0, 1), "nan", "must be a number from 0 to 1, got 'nan'"),
        (Number(0), "inf", "must be a number >= 0, got 'inf'"),
        (Number(0, 1), True, "must be a number from 0 to 1, got True"),
        (Number(0, 1), 10**400, f"must be a number from 0 to 1, got {10**400}"),
        (Number(0, 1, open_low=True), 0, "must be a number above 0 up to 1, got 0"),
        (Switch(), 1, "must be true or false, got 1"),
        (Size(1024), "1000", "must be at least 1KiB, got '1000'"),
        (Size(), "-5", "must be a size in bytes or with KiB, MiB, GiB, KB, MB or GB, got '-5'"),
        (Size(), "5 parsec", None),
        (Size(), 1.5, None),
        (Size(), True, None),
    ],
)
def test_values_that_are_refused(kind: Kind, raw: object, complaint: str | None) -> None:
    """A value out of range or of another type is refused with what is allowed and what came."""
    with pytest.raises(ValueError, match="must be") as caught:
        kind.parse(raw)
    if complaint is not None:
        assert str(caught.value) == complaint


@pytest.mark.parametrize("raw", ["with space", "ta\tb", "schlüssel", "a,,b", ["x y"], [12345678]])
def test_a_secret_is_not_in_its_own_error(raw: Any) -> None:
    """A refused key is never echoed."""
    with pytest.raises(ValueError, match="must be") as caught:
        Secret(several=True).parse(raw)
    shown = str(raw[0] if isinstance(raw, list) else raw)
    assert shown not in str(caught.value)


@given(st.integers(1, 2**50))
def test_a_formatted_size_reads_back(size_bytes: int) -> None:
    """`format_size` loses nothing."""
    assert Size().parse(format_size(size_bytes)) == size_bytes


@given(st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.lists(st.text())))
def test_every_kind_parses_or_refuses(raw: object) -> None:
    """Whatever YAML may hold: a value in range, or ValueError, nothing else."""
    kinds: list[Kind] = [Text(), Choice(("a",)), Switch(), Size(), Secret(), Secret(several=True)]
    for kind in [*kinds, Integer(0, 9), Number(0, 1)]:
        try:
            value = kind.parse(raw)
        except ValueError:
            continue
        if isinstance(kind, Number):
            assert isinstance(value, float)
            assert math.isfinite(value)
            assert 0 <= value <= 1
        if isinstance(kind, Integer):
            assert value in range(10)
        if isinstance(kind, Size):
            assert isinstance(value, int)
            assert value >= 1
