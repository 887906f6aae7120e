"""Sums, gathers and sends between real processes."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import torch

from gpt_oss_server.engine.ranks.comms import LOOPBACK, Comms, open_store
from gpt_oss_server.engine.ranks.place import Place
from gpt_oss_server.errors import StartupError
from rank_processes import stages, tensor_ranks


def _sums(comms: Comms) -> dict[str, Any]:
    rank = comms.place.rank
    torch.manual_seed(rank)
    noise = comms.all_reduce(torch.randn(1000))
    column = torch.arange(6.0).view(2, 3).T  # not contiguous
    parts = comms.gather_to_leader(torch.tensor([rank, 7]))
    return {
        "noise": noise.numpy().tobytes(),
        "column": comms.all_reduce(column).tolist(),
        "parts": None if parts is None else [part.tolist() for part in parts],
        "entered": comms.entered,
        "left": comms.left,
    }


@pytest.mark.parametrize("world", [2, 3])
def test_sums_are_the_same_on_every_rank(world: int) -> None:
    """Bit for bit: what follows from a sum (which experts are chosen) must not differ."""
    answers = tensor_ranks(world, _sums)
    torch.manual_seed(0)
    assert len({answer["noise"] for answer in answers}) == 1
    assert answers[0]["column"] == [
        [0.0, 3.0 * world],
        [world, 4.0 * world],
        [2 * world, 5 * world],
    ]
    assert answers[0]["parts"] == [[rank, 7] for rank in range(world)]
    assert [answer["parts"] for answer in answers[1:]] == [None] * (world - 1)
    assert {(answer["entered"], answer["left"]) for answer in answers} == {(4, 4)}


def _hand_on(comms: Comms) -> list[list[float]]:
    """Two tensors travel down the stages, each adding one."""
    place, got = comms.place, []
    for number in range(2):
        x = torch.full((2, 2), float(10 * number))
        if not place.is_first_stage:
            x = comms.receive((2, 2), torch.float32, place.rank - 1) + 1
        if not place.is_last_stage:
            comms.send(x, place.rank + 1).wait()
        got.append(x.view(-1).tolist())
    parts = comms.gather_to_leader(torch.tensor([place.rank]))
    assert (parts is not None) == place.is_last_stage
    return got


def test_tensors_arrive_in_order() -> None:
    """What is sent first is received first, unchanged."""
    answers = stages(3, _hand_on)
    assert answers == [[[float(rank)] * 4, [10.0 + rank] * 4] for rank in range(3)]


def test_a_rank_alone_needs_nobody() -> None:
    """A world of one has no group: sums are what they were, sending is an error."""
    comms = Comms.alone(torch.device("cpu"))
    x = torch.ones(2)
    assert comms.all_reduce(x) is x
    assert comms.gather_to_leader(x) == [x]
    assert comms.entered == 0
    with pytest.raises(RuntimeError, match="alone"):
        comms.send(x, 1)


def test_a_missing_rank_is_one_line() -> None:
    """A rank that never comes ends the start of the others in time, with its name."""
    store = open_store(1.0)
    with pytest.raises(StartupError, match="rank 0 of 2 cannot reach the others"):
        Comms.open(Place(0, tp=2), torch.device("cpu"), store, 0.2)


def test_the_store_listens_on_loopback_only() -> None:
    """Nobody outside this machine can join, and two stores never meet."""
    first, second = open_store(5.0), open_store(5.0)
    assert first.port != second.port
    with socket.create_connection((LOOPBACK, first.port), timeout=5.0):
        pass
    with socket.socket() as other:
        # Free on every other address: the store took the loopback one only.
        other.bind(("127.0.0.2", first.port))
