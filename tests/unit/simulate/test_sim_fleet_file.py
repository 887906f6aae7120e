"""A fleet as a file and as commands."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest
import yaml
from plan_builders import fleet, made

from gpt_oss_server import cli
from gpt_oss_server.simulate.cost.layout import Shape
from gpt_oss_server.simulate.fleet.notation import parse_pools
from gpt_oss_server.simulate.fleet.pools import Fleet, Pool
from gpt_oss_server.simulate.plan.fleet_file import (
    balancer_lines,
    fleet_document,
    fleet_yaml,
    mode_of,
    pools_text,
    starts,
)
from gpt_oss_server.simulate.plan.rules import Rule

MIXED = fleet((4, 1), (2, 2))


def test_the_file_says_what_to_run() -> None:
    """Pools with their mode, GPUs, replicas and engine; thresholds where the policy has any."""
    document = fleet_document("120b", MIXED, Rule("length_ranges", (5000,)), "inf:10:0.05")
    text = fleet_yaml(document, ["made by a test"])
    assert text.startswith("# made by a test\nmodel: 120b\n")
    assert yaml.safe_load(fleet_yaml(document, ["two\nlines"])) == document
    assert yaml.safe_load(text) == {
        "model": "120b",
        "served_by": "own",
        "policy": {"name": "length_ranges", "bounds": [5000]},
        "slo": "inf:10:0.05",
        "pools": [
            {
                "name": f"h100-tp{tp}",
                "gpu": "h100",
                "gpu_mode": mode,
                "gpus_per_replica": tp,
                "replicas": count,
                "engine": {
                    "max_num_seqs": 256,
                    "max_batch_tokens": 8192,
                    "prefill_order": "shortest",
                },
            }
            for tp, mode, count in ((1, "single", 4), (2, "tensor", 2))
        ],
    }


def test_layouts_have_the_servers_names() -> None:
    """Both at once have none."""
    whole = made(2)
    pipeline = replace(whole, shape=Shape(whole.shape.gpu, 1, 2))
    both = replace(whole, shape=Shape(whole.shape.gpu, 2, 2))
    assert [mode_of(one.shape) for one in (made(1), whole, pipeline, both)] == [
        "single",
        "tensor",
        "pipeline",
        None,
    ]
    text = pools_text(Fleet((Pool(pipeline, 2), Pool(both, 1))))
    assert text == "2xpp2@h100+1xtp2-pp2@h100"


def test_the_layout_can_be_simulated_again() -> None:
    """What is printed is what `simulate --pools` reads."""
    assert pools_text(MIXED) == "4xtp1@h100+2xtp2@h100"
    again = parse_pools(pools_text(MIXED), "l40s")
    assert again == tuple((pool.replica.shape, pool.count) for pool in MIXED.pools)


def test_every_replica_gets_gpus_and_a_port_of_its_own() -> None:
    """The largest first; no GPU twice, none outside its machine."""
    begun = starts("120b", MIXED, 8)
    devices = [shlex.split(one.command)[0] for one in begun]
    assert devices == [
        f"CUDA_VISIBLE_DEVICES={gpus}" for gpus in ("0,1", "2,3", "4", "5", "6", "7")
    ]
    assert [one.port for one in begun] == list(range(8001, 8007))
    assert {one.machine for one in begun} == {"h100 machine 1"}
    assert [one.machine for one in starts("120b", MIXED, 4)] == [
        *["h100 machine 1"] * 2,
        *["h100 machine 2"] * 4,
    ]


def test_the_commands_are_ones_that_the_server_takes() -> None:
    """Parsed by the server's own parser: no flag is unknown to it, no value refused."""
    for begun in starts("120b", MIXED, 8):
        words = shlex.split(begun.command)
        assert words[1:3] == ["gpt-oss-server", "serve"]
        given = vars(cli.build_parser().parse_args(words[2:]))
        assert given["model"] == "120b"
        assert given["prefill_order"] == "shortest"
        assert str(given["port"]) == str(begun.port)
        assert ("gpus" in given) == (given["gpu_mode"] == "tensor")


def test_vllm_has_flags_of_its_own() -> None:
    """With its order of arrival, which needs no flag."""
    words = shlex.split(starts("openai/gpt-oss-120b", MIXED, 8, "vllm")[0].command)
    assert words[1:] == [
        *("vllm", "serve", "openai/gpt-oss-120b", "--port", "8001"),
        *("--tensor-parallel-size", "2", "--max-num-seqs", "256"),
        *("--max-num-batched-tokens", "8192"),
    ]
    document = fleet_document("m", MIXED, Rule("least_request"), "inf:1:1", "vllm")
    assert [pool["tensor_parallel"] for pool in document["pools"]] == [1, 2]


def test_a_balancer_relays_streams_as_they_come() -> None:
    """All replicas, fewest requests first, without buffering."""
    text = "\n".join(balancer_lines([8001, 8002]))
    assert "least_conn; server 127.0.0.1:8001; server 127.0.0.1:8002;" in text
    assert "proxy_buffering off;" in text


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("least_request", "{ least_conn; server"),
        ("round_robin", "{ server"),
        ("random", "{ random; server"),
        ("power_of_two", "{ random two least_conn; server"),
        ("earliest_completion", "{ least_conn; server"),
    ],
)
def test_a_balancer_does_what_was_played(rule: str, says: str) -> None:
    """By its own words; what it does not know is done by fewest requests."""
    assert says in balancer_lines([8001], rule)[0]


def test_a_type_of_ones_own_is_named_by_its_file() -> None:
    """Its name alone means nothing to `simulate`."""
    assert pools_text(MIXED, {"h100": "my.yaml"}) == "4xtp1@my.yaml+2xtp2@my.yaml"


@pytest.mark.parametrize("machine_gpus", [2, 4, 8])
def test_no_replica_spans_machines(machine_gpus: int) -> None:
    """First fit by falling size."""
    for begun in starts("120b", fleet((3, 1), (2, 2)), machine_gpus):
        devices = begun.command.split()[0].partition("=")[2].split(",")
        assert all(0 <= int(device) < machine_gpus for device in devices)
