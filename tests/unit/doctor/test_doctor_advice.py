"""Which way to use some GPUs: what each gives, and which suits a load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from gpt_oss_server.doctor.advice import WORTH, Comparison, Load, advise, compare, ratio
from gpt_oss_server.doctor.advice_text import (
    assumed,
    comparison_json,
    comparison_lines,
    pace_sums,
    way_text,
)
from gpt_oss_server.doctor.gpu_specs import spec_of
from gpt_oss_server.doctor.plan import Plan, PlanRequest, make_plan, recommend
from gpt_oss_server.doctor.published import PUBLISHED
from gpt_oss_server.memory.fit import FitRequest

GIB = 2**30
OSS_20B = PUBLISHED["openai/gpt-oss-20b"]
OSS_120B = PUBLISHED["openai/gpt-oss-120b"]
# The same shapes, stored as bfloat16.
PLAIN = {name: value for name, value in OSS_20B.items() if name != "quantization_config"}
H100 = spec_of(["NVIDIA H100 80GB HBM3"])
L40S = spec_of(["NVIDIA L40S"])


def plan(config: Mapping[str, Any], gpus: int, gpu_gib: int = 80) -> Plan:
    machine = FitRequest(gpu_gib * GIB, gpus, max_num_seqs=64, max_batch_tokens=2048)
    return make_plan(config, PlanRequest(machine, "bfloat16"))


def compared(
    config: Mapping[str, Any], gpus: int, load: Load | None = None, gpu_gib: int = 80, **more: Any
) -> Comparison:
    speed = more.pop("speed", H100)
    return compare(config, plan(config, gpus, gpu_gib), load or Load(), speed, **more)


def test_every_way_that_fits_is_there_the_simplest_first() -> None:
    """One GPU, a replica on each, and one model over all in three modes."""
    found = compared(PLAIN, 2)
    assert [way.name for way in found.ways] == [
        "single",
        "2 single replicas",
        "tensor over 2",
        "pipeline over 2",
        "auto over 2",
    ]
    assert [way.gpus for way in found.ways] == [1, 2, 2, 2, 2]
    assert [way.name for way in compared(PLAIN, 1).ways] == ["single"]
    assert [way.mode for way in compared(PLAIN, 4, gpu_gib=24).ways] == [
        "tensor",
        "pipeline",
        "auto",
    ]
    # Its experts in four bits, on each of two GPUs or shared by them.
    assert len(compared(OSS_120B, 2).ways) == 5
    assert compared(OSS_120B, 1, gpu_gib=48).ways == ()


def test_room_and_pace_of_a_way() -> None:
    """KV of all replicas; as many at once as KV and --max-num-seqs allow; three paces."""
    single, replicas, tensor, *_ = compared(PLAIN, 2, Load(16, 4096), gpu_gib=48).ways
    assert single.kv_tokens == 103_936
    assert replicas.kv_tokens == 2 * 103_936
    # 103,936 tokens hold 25 requests of 4,096; --max-num-seqs allows 64.
    assert [way.at_once for way in (single, replicas, tensor)] == [25, 50, 64]
    assert [pace.sequences for pace in (tensor.one, tensor.loaded, tensor.full)] == [1, 16, 64]
    assert replicas.one.step_s == single.one.step_s
    assert tensor.one.step_s < single.one.step_s


def test_a_load_that_does_not_fit_is_as_many_as_fit() -> None:
    """The others wait."""
    (single, *_) = compared(OSS_120B, 2, Load(200, 8192)).ways
    assert single.loaded.sequences == single.at_once == 32


def test_the_words_say_what_a_way_gives_and_costs() -> None:
    """Each figure against the simplest way."""
    found = compared(PLAIN, 2, gpu_gib=48)
    texts = {way.name: way_text(way, found) for way in found.ways}
    assert texts["2 single replicas"] == (
        "2× the KV room, no faster for one request, 1.3× the tokens per second at 16 at once, 2× "
        "with as many as fit (100; single 50); nothing between GPUs"
    )
    assert texts["tensor over 2"] == (
        "19× the KV room, requests of 131,072 tokens, not 103,936, about 1.5× faster for one "
        "request, 1.9× the tokens per second at 16 at once, 2.4× with as many as fit (64; single "
        "50); 765,568 bytes between GPUs per token"
    )
    assert texts["auto over 2"].endswith(
        "a GPU idles 50% of the time; 5,760 bytes between GPUs per token"
    )
    base, _, tensor, *_ = found.ways
    assert ratio(tensor.loaded.tokens_s, base.loaded.tokens_s) == "1.9×"
    assert round(tensor.full.tokens_s / base.full.tokens_s, 1) == 2.4
    assert round(base.one.step_s / tensor.one.step_s, 1) == 1.5
    slower = way_text(tensor, replace(found, ways=(tensor, base)))
    assert "no faster" in slower
    assert "about 1.5× slower for one request" in way_text(
        base, replace(found, ways=(tensor, base))
    )


def test_the_sums_are_those_that_were_done() -> None:
    """Bytes over bandwidth, exchanges, and what they come to."""
    found = compared(PLAIN, 2)
    single, _, tensor, pipeline, auto = found.ways
    bandwidth = 3350e9 * 0.7
    assert pace_sums(single.loaded, found) == (
        "33.67 GiB of weights + 816.0 MiB of KV; at 3,350 GB/s x 0.7 15.8 ms = 15.8 ms a token"
    )
    read_s = (single.loaded.weight_bytes + single.loaded.kv_bytes) / bandwidth
    assert single.loaded.step_s == pytest.approx(read_s)
    # Two in each of 24 layers, one for the embedding, a small one, the logits.
    assert "+ 51 exchanges 0.588 ms = 8.48 ms a token" in pace_sums(tensor.loaded, found)
    assert pace_sums(pipeline.loaded, found).endswith(
        "the slowest stage 6.21 ms x 2 micro-batches = 12.4 ms a token"
    )
    assert "in all stages, one after the other + 1 exchange " in pace_sums(auto.loaded, found)


def test_what_is_assumed_is_said() -> None:
    """Bandwidths and where they come from, lengths, and that launches are not counted."""
    known, lengths, launches = assumed(compared(OSS_20B, 2))
    assert known.startswith("H100 of the data sheet: 3,350 GB/s of memory, of which kernels reach")
    assert "2,048 tokens" in lengths
    assert "launch kernels is not counted" in launches
    seen = compared(OSS_20B, 2, speed=spec_of([None]), host_s=0.001)
    assert assumed(seen)[0].startswith("a GPU of an unknown kind: 2,000 GB/s")
    assert len(assumed(seen)) == 2
    assert "+ 1 ms seen beside these" in pace_sums(seen.ways[0].loaded, seen)


@pytest.mark.parametrize(
    ("config", "gpus", "gpu_gib", "load", "mode", "text"),
    [
        (
            OSS_120B,
            2,
            80,
            Load(1, 2048, 4096, True),
            "single",
            "--gpu-mode single on one GPU serves 1 at once of 2,048 tokens, with room for 64 at "
            "once; tensor over 2 would give about 1.1× the tokens per second",
        ),
        (
            OSS_120B,
            4,
            80,
            Load(32, 2048, 4096, True),
            "tensor",
            "--gpu-mode tensor over 4 GPUs for 32 at once of 2,048 tokens: about 1.3× the tokens "
            "per second of 4 single replicas",
        ),
        (
            PLAIN,
            2,
            80,
            Load(8, 65_536, 131_072, True),
            "single",
            "--gpu-mode single with a replica on each of 2 GPUs serves 8 at once of 65,536 tokens, "
            "with room for 40 at once; tensor over 2 would give about 1.1× the tokens per second",
        ),
        (
            PLAIN,
            2,
            80,
            Load(64, 2048, 4096, True),
            "tensor",
            "--gpu-mode tensor over 2 GPUs for 64 at once of 2,048 tokens: about 1.8× the tokens "
            "per second of 2 single replicas",
        ),
        (
            PLAIN,
            2,
            48,
            Load(16, 8192, 131_072, True),
            "tensor",
            "--gpu-mode tensor over 2 GPUs for 16 at once of 8,192 tokens: 2 single replicas hold "
            "207,872 tokens, requests of 103,936 at most; this one 1,924,672 and 131,072",
        ),
        (
            PLAIN,
            4,
            24,
            Load(8, 2048, 4096, True),
            "tensor",
            "--gpu-mode tensor over 4 GPUs for 8 at once of 2,048 tokens: one GPU cannot hold the "
            "model",
        ),
    ],
)
def test_the_way_for_a_load(
    config: Mapping[str, Any], gpus: int, gpu_gib: int, load: Load, mode: str, text: str
) -> None:
    """The simplest that holds the load, unless another is better by a quarter."""
    layout = plan(config, gpus, gpu_gib)
    found = advise(config, layout, compare(config, layout, load, H100))
    assert (found.mode, found.text) == (mode, text)
    assert " for KV" in found.arithmetic


def test_no_way_is_advised_over_a_simpler_one_for_less_than_a_quarter() -> None:
    """Of those that hold the load, whatever the load."""
    for concurrent in (1, 2, 4, 8, 16, 32, 64):
        load = Load(concurrent, 2048, None, True)
        layout = plan(PLAIN, 2)
        found = compare(PLAIN, layout, load, L40S)
        advised = advise(PLAIN, layout, found).mode
        best = next(way for way in found.ways if way.mode == advised)
        simpler = found.ways[: found.ways.index(best)]
        fastest = max(way.loaded.tokens_s for way in found.ways)
        assert all(way.loaded.tokens_s * WORTH < fastest for way in simpler)


def test_without_a_load_memory_decides() -> None:
    """An example is nothing to advise a restart for."""
    for gpus, gpu_gib in ((1, 80), (2, 80), (4, 48), (1, 48)):
        layout = plan(OSS_120B, gpus, gpu_gib)
        found = compare(OSS_120B, layout, Load(), H100)
        assert advise(OSS_120B, layout, found) == recommend(OSS_120B, layout)


def test_lines_fit_a_terminal() -> None:
    """Tables, sentences and sums; nothing where nothing fits, no comparison of one way."""
    lines = comparison_lines(compared(OSS_120B, 4))
    assert max(len(line) for line in lines) <= 96
    assert any(line.startswith("tensor over 4 ") for line in lines)
    assert comparison_lines(compared(OSS_120B, 1, gpu_gib=48)) == []
    assert not any(line.startswith("Against") for line in comparison_lines(compared(OSS_20B, 1)))


def test_everything_as_json() -> None:
    """Figures in seconds, bytes and tokens, the words beside them."""
    found = compared(PLAIN, 2, Load(16, 2048, 9000, True))
    shown = comparison_json(found)
    assert shown["load"] == {
        "concurrent": 16,
        "tokens": 2048,
        "longest_tokens": 9000,
        "given": True,
    }
    assert shown["gpu"]["memory_gb_s"] == 3350
    assert [way["name"] for way in shown["ways"]] == [way.name for way in found.ways]
    tensor = shown["ways"][2]
    assert [pace["sequences"] for pace in tensor["decode"]] == [1, 16, 64]
    assert tensor["decode"][1]["step_s"] == round(found.ways[2].loaded.step_s, 6)
    assert tensor["decode"][1]["exchanges"] == 51
    assert tensor["text"] == way_text(found.ways[2], found)
