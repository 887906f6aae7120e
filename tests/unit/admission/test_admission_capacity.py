"""Blocks: rounding, windows, slots, and what still fits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_oss_server.admission import BlockGroup, Capacity, slots
from gpt_oss_server.admission.capacity import fits
from gpt_oss_server.errors import ConfigError

GPT_OSS = Capacity(
    (
        BlockGroup(name="full", blocks=100, block_tokens=64),
        BlockGroup(name="sliding", blocks=30, block_tokens=64, max_blocks_per_sequence=3),
        slots(8),
    )
)


@pytest.mark.parametrize(
    ("tokens", "sequences", "need"),
    [
        (0, 1, (0, 0, 0)),
        (1, 1, (1, 1, 1)),
        (64, 1, (1, 1, 1)),
        (65, 1, (2, 2, 1)),
        (1000, 1, (16, 3, 1)),
        (1000, 4, (64, 12, 4)),
    ],
)
def test_need(tokens: int, sequences: int, need: tuple[int, ...]) -> None:
    """Whole blocks; a sliding group stops at its window; a slot is one per sequence."""
    assert GPT_OSS.need(tokens, sequences) == need


@pytest.mark.parametrize(
    ("free", "sequences", "longest"),
    [
        ((100, 30, 8), 1, 6400),
        ((100, 2, 8), 1, 128),
        ((100, 3, 8), 1, 6400),
        ((100, 30, 8), 3, 33 * 64),
        ((100, 30, 0), 1, 0),
        ((-5, 30, 8), 1, 0),
    ],
)
def test_longest_tokens(free: tuple[int, ...], sequences: int, longest: int) -> None:
    """The tightest group decides; one that stops growing does not limit."""
    assert GPT_OSS.longest_tokens(free, sequences) == longest


def test_sliding_layers_alone_limit_no_length() -> None:
    """A model of sliding layers only holds any length."""
    sliding = BlockGroup(name="sliding", blocks=3, block_tokens=64, max_blocks_per_sequence=3)
    assert Capacity((sliding,)).longest_tokens((3,)) is None


GROUP = st.builds(
    BlockGroup,
    name=st.just("g"),
    blocks=st.integers(1, 50),
    block_tokens=st.integers(1, 9),
    max_blocks_per_sequence=st.none() | st.integers(1, 20),
)


@given(group=GROUP, free=st.integers(0, 50), sequences=st.integers(1, 4))
def test_longest_is_exact(group: BlockGroup, free: int, sequences: int) -> None:
    """The longest fits, and one token more does not."""
    capacity = Capacity((group,))
    longest = capacity.longest_tokens((free,), sequences)
    if longest is None:
        assert fits(capacity.need(10**9, sequences), (free,))
    else:
        assert fits(capacity.need(longest, sequences), (free,))
        assert not fits(capacity.need(longest + 1, sequences), (free,))


def test_share_is_the_fullest_group() -> None:
    """The dominant share: 15 of 30 sliding blocks is half the pool."""
    assert GPT_OSS.share((10, 15, 1)) == 0.5


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"blocks": 0}, "blocks of group g must be at least 1, not 0"),
        ({"block_tokens": 0}, "block_tokens of group g must be at least 1, not 0"),
        (
            {"max_blocks_per_sequence": 0},
            "max_blocks_per_sequence of group g must be at least 1, not 0",
        ),
    ],
)
def test_impossible_groups_are_refused(fields: dict[str, int], says: str) -> None:
    """A pool that holds nothing stops start-up with its name."""
    with pytest.raises(ConfigError) as caught:
        BlockGroup(**{"name": "g", "blocks": 1, "block_tokens": 1, **fields})  # type: ignore[arg-type]
    assert str(caught.value) == says


def test_a_capacity_needs_groups_told_apart() -> None:
    """No group, or two of one name, is a configuration error."""
    with pytest.raises(ConfigError, match="different names"):
        Capacity(())
    with pytest.raises(ConfigError, match="different names"):
        Capacity((slots(1), slots(2)))
