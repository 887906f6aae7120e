"""Where a rank stands."""

from __future__ import annotations

import pytest

from gpt_oss_server.engine.ranks.place import Place
from gpt_oss_server.errors import ConfigError


@pytest.mark.parametrize(
    ("place", "world", "stage", "tp_rank", "leads"),
    [
        (Place(), 1, 0, 0, True),
        (Place(0, tp=4), 4, 0, 0, True),
        (Place(3, tp=4), 4, 0, 3, False),
        (Place(0, pp=3), 3, 0, 0, False),
        (Place(2, pp=3), 3, 2, 0, True),
    ],
)
def test_what_a_rank_is(place: Place, world: int, stage: int, tp_rank: int, leads: bool) -> None:
    """The first tensor rank leads, and the last stage, which has the logits."""
    assert (place.world, place.stage, place.tp_rank, place.is_leader) == (
        world,
        stage,
        tp_rank,
        leads,
    )
    assert place.is_first_stage == (stage == 0)
    assert place.is_last_stage == (stage == place.pp - 1)


@pytest.mark.parametrize("wrong", [(0, 2, 2), (2, 2, 1), (-1, 2, 1), (0, 0, 1)])
def test_layouts_that_are_none(wrong: tuple[int, int, int]) -> None:
    """A rank that is not there, both kinds at once, none at all."""
    with pytest.raises(ConfigError):
        Place(*wrong)
