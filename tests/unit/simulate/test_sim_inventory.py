"""GPUs that are there, and every fleet on them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest
from plan_builders import made
from sim_builders import replica

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.memory.errors import ImpossibleSplit
from gpt_oss_server.simulate.cost.layout import DoesNotFit, Replica, Shape
from gpt_oss_server.simulate.plan.inventory import Inventory, fitting, fleets, parse_gpus


def only(*gpus: int, gpu: str = "h100") -> Callable[[Shape], Replica]:
    """Tensor replicas of these numbers of GPUs fit, others lack a byte; three cannot be split."""

    def lay_out(shape: Shape) -> Replica:
        if shape.gpus == 3:
            raise ImpossibleSplit("not by three")
        if shape.pp > 1 or shape.gpus not in gpus:
            raise DoesNotFit(f"{shape.name} lacks a byte", missing_bytes=1)
        return replica(tp=shape.tp, gpu=shape.gpu.name) if gpu == "h100" else made(shape.tp)

    return lay_out


def names(inventory: Inventory, *gpus: int) -> list[str]:
    found = fitting(inventory, only(*gpus)).replicas
    return [fleet.name.replace("h100-", "") for fleet in fleets(inventory, found)]


def test_gpus_as_people_write_them() -> None:
    """A count, with a type, several types, the same type twice."""
    assert parse_gpus("8").name == "8 h100"
    assert parse_gpus("4@h100+4@l40s").name == "4 h100 + 4 l40s"
    assert parse_gpus("2@a100 + 3@a100").name == "5 a100"
    assert parse_gpus("8@h100", machine_gpus=4).machine_gpus == 4


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0", "--gpus 0@h100: at least one GPU is needed"),
        ("8xh100", "--gpus 8xh100: write COUNT or COUNT@TYPE, joined by +"),
        ("-1@h100", "--gpus -1@h100: write COUNT"),
        ("4@v100", "unknown GPU type v100"),
        ("", "--gpus : write COUNT"),
    ],
)
def test_what_are_no_gpus(text: str, says: str) -> None:
    """One line that names it."""
    with pytest.raises(ConfigError) as error:
        parse_gpus(text)
    assert str(error.value).startswith(says)


def test_every_way_to_cut_eight() -> None:
    """All ten sums of powers of two, uniform ones first; only full ones."""
    assert names(parse_gpus("8"), 1, 2, 4, 8) == [
        "8×tp1",
        "4×tp2",
        "2×tp4",
        "1×tp8",
        "2×tp1 + 3×tp2",
        "4×tp1 + 2×tp2",
        "6×tp1 + 1×tp2",
        "4×tp1 + 1×tp4",
        "2×tp2 + 1×tp4",
        "2×tp1 + 1×tp2 + 1×tp4",
    ]


def test_gpus_that_no_replica_fits_on_stay_idle() -> None:
    """Six GPUs for a model that needs four."""
    assert names(parse_gpus("6"), 4) == ["1×tp4"]
    assert names(parse_gpus("3"), 4) == []


def test_a_replica_lies_within_a_machine() -> None:
    """Sixteen GPUs in machines of four: nothing of eight."""
    inventory = parse_gpus("16", machine_gpus=4)
    assert {r.shape.gpus for r in fitting(inventory, only(1, 2, 4, 8, 16)).replicas} == {1, 2, 4}


def test_what_does_not_fit_says_why() -> None:
    """Bytes where it is memory, the reason where it cannot be split; both pure forms are tried, and
    tp × pp only where neither fits."""
    found = fitting(parse_gpus("4"), only(1, 2))
    refused = {one.shape.name: one.missing_bytes for one in found.refused}
    assert refused == {
        "h100-tp1-pp2": 1,
        "h100-tp4": 1,
        "h100-tp1-pp4": 1,
        "h100-tp2-pp2": 1,
    }
    odd = fitting(parse_gpus("3"), only(1))
    assert [(r.shape.name, r.missing_bytes) for r in odd.refused if r.shape.gpus == 3] == [
        ("h100-tp3", None),
        ("h100-tp1-pp3", None),
    ]


def test_types_are_combined() -> None:
    """Each way on one type with each way on the other; every part of an inventory."""
    inventory = parse_gpus("2@h100+1@h200")
    found = fitting(inventory, only(1, 2)).replicas
    assert [fleet.name for fleet in fleets(inventory, found)] == [
        "2×h100-tp1 + 1×h200-tp1",
        "1×h100-tp2 + 1×h200-tp1",
    ]
    assert sorted(part.name for part in inventory.smaller()) == [
        "1 h100",
        "1 h100 + 1 h200",
        "1 h200",
        "2 h100",
        "2 h100 + 1 h200",
    ]


def test_a_machine_has_gpus() -> None:
    """None is an error."""
    with pytest.raises(ConfigError, match="a machine has at least one GPU, not 0"):
        parse_gpus("8", machine_gpus=0)


def test_two_types_of_one_name_are_told(tmp_path: Path) -> None:
    """Else one would be taken for the other. The same type twice is one."""
    mine = tmp_path / "mine.yaml"
    source = resources.files("gpt_oss_server.simulate.cost") / "gpus" / "h100.yaml"
    mine.write_text(source.read_text().replace("85520809984", "42949672960"))
    with pytest.raises(ConfigError, match="two types are called h100"):
        parse_gpus(f"4@h100+4@{mine}")
    assert parse_gpus(f"4@{mine}+4@{mine}").name == "8 h100"


def test_there_are_not_any_number_of_gpus() -> None:
    """Every way to lay them out is gone through."""
    with pytest.raises(ConfigError, match="--gpus 5000@h100: at most 4096 can be planned"):
        parse_gpus("5000")


def test_more_layouts_than_can_be_gone_through() -> None:
    """It is said at once, not after an hour."""
    inventory = parse_gpus("512@h100+512@h200")
    replicas = [replica(tp=tp, gpu=gpu) for gpu in ("h100", "h200") for tp in (1, 2, 4, 8)]
    with pytest.raises(ConfigError, match=r"more than 200,000 layouts of 512 h100 . 512 h200"):
        list(fleets(inventory, replicas))


def test_fewer_gpus_than_a_replica_has_make_no_fleet() -> None:
    """Of one type, or beside another, on which there is one."""
    pairs, single = replica(tp=2), replica(gpu="h200")
    assert list(fleets(parse_gpus("1"), [pairs])) == []
    found = fleets(parse_gpus("1@h100+1@h200"), [pairs, single])
    assert [fleet.name for fleet in found] == ["1×h200-tp1"]
