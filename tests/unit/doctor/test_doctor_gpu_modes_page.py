"""The page on GPU modes: its table is what the arithmetic gives, its settings are those we have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gpt_oss_server.config import TABLE
from gpt_oss_server.doctor.advice import WORTH, Load, compare
from gpt_oss_server.doctor.gpu_specs import spec_of
from gpt_oss_server.doctor.pace import CALL_S, HOP_S, MEMORY_SHARE
from gpt_oss_server.doctor.plan import PlanRequest, gib, make_plan
from gpt_oss_server.doctor.published import PUBLISHED
from gpt_oss_server.memory.fit import FitRequest
from gpt_oss_server.memory.weights import weights_of

PAGE = (Path(__file__).parents[3] / "docs" / "gpu-modes.md").read_text(encoding="utf-8")
OSS_20B = PUBLISHED["openai/gpt-oss-20b"]
MODELS = {
    "20b": OSS_20B,
    "20b in bf16": {k: v for k, v in OSS_20B.items() if k != "quantization_config"},
    "120b": PUBLISHED["openai/gpt-oss-120b"],
}
ROW = re.compile(
    r"^\| (20b|20b in bf16|120b) \| (\d) × (\w+), (\d+) GiB \| (.+?) \| (.+) \|$", re.M
)


def rows(model: str, gpus: int, name: str, gpu_gib: int) -> list[str]:
    """The rows of the table for one machine, as the page writes them."""
    config = MODELS[model]
    machine = FitRequest(gpu_gib << 30, gpus, max_num_seqs=64, max_batch_tokens=2048)
    plan = make_plan(config, PlanRequest(machine, "bfloat16"))
    found = compare(config, plan, Load(16, 2048), spec_of([name]))
    written = []
    for way in found.ways:
        report = plan.of(way.mode).report
        assert report is not None
        cells = [
            model,
            f"{gpus} × {name}, {gpu_gib} GiB",
            way.name,
            gib(max(report.weights_bytes)),
            f"{way.kv_tokens:,}",
            f"{1e3 * way.one.step_s:.3g} ms",
            f"{way.loaded.tokens_s:,.0f}",
            f"{way.at_once}: {way.full.tokens_s:,.0f}",
            f"{way.loaded.traffic_bytes / 2**10:,.1f}",
        ]
        written.append(f"| {' | '.join(cells)} |")
    return written


def test_the_computed_table_is_what_the_arithmetic_gives() -> None:
    """Every row, and every way for each machine that has one."""
    found = ROW.findall(PAGE)
    machines = list(dict.fromkeys((m, int(n), gpu, int(size)) for m, n, gpu, size, *_ in found))
    expected = [row for machine in machines for row in rows(*machine)]
    assert len(machines) == 5
    assert [match.group(0) for match in ROW.finditer(PAGE)] == expected


def test_what_the_text_reads_from_the_table() -> None:
    """Ratios as its figures have them."""
    ways = {}
    for model, gpus, name, size in (("20b", 2, "L40S", 48), ("120b", 4, "H100", 80)):
        machine = FitRequest(size << 30, gpus, max_num_seqs=64, max_batch_tokens=2048)
        plan = make_plan(MODELS[model], PlanRequest(machine, "bfloat16"))
        found = compare(MODELS[model], plan, Load(16, 2048), spec_of([name]))
        ways[model] = {way.name.partition(" over")[0]: way for way in found.ways}
    text = " ".join(PAGE.split())
    few, many = ways["20b"], ways["120b"]
    speed = few["single"].one.step_s / few["tensor"].one.step_s
    at_once = few["tensor"].loaded.tokens_s / few["2 single replicas"].loaded.tokens_s
    assert f"of 20b {speed:.1f} times as fast as one GPU" in text
    assert f"with 16 at once gives {at_once:.1f} times the tokens of two replicas" in text
    more = few["2 single replicas"].full.tokens_s / few["tensor"].full.tokens_s - 1
    further = many["4 single replicas"].full.tokens_s / many["tensor"].full.tokens_s - 1
    assert f"{100 * more:.0f} % more there, {100 * further:.0f} % more for 120b" in text


def test_what_a_rank_of_two_holds() -> None:
    """gpt-oss-120b in `tensor`, and how unequal groups are."""
    (rank,) = weights_of(MODELS["120b"], dtype="bfloat16").rank_bytes(2)
    text = " ".join(PAGE.split())
    assert f"gpt-oss-120b takes {rank / 2**30:.1f} GiB on each of two GPUs" in text
    over = [100 * (-(-90 // tp) * tp / 90 - 1) for tp in (4, 8)]
    assert f"so {over[0]:.0f} % and {over[1]:.0f} % more bytes" in text


@pytest.mark.parametrize("model", ["20b", "120b"])
def test_how_much_more_plain_experts_take(model: str) -> None:
    """The whole model with its experts as bfloat16, against MXFP4."""
    stored = weights_of(MODELS[model], dtype="bfloat16").total_bytes
    plain = weights_of(MODELS[model], dtype="bfloat16", dequantized=True).total_bytes
    assert f"{plain / stored:.1f} times" in " ".join(PAGE.split())
    assert f" for {model}" in PAGE


def test_the_figures_of_the_text_are_those_of_the_code() -> None:
    """Shares, latencies and the threshold of advice."""
    text = " ".join(PAGE.split())
    assert f"{MEMORY_SHARE:.0%}".replace("%", " %") in text
    assert f"An all-reduce takes {1e6 * CALL_S:.0f} µs" in text
    assert (
        f"hops of {1e6 * HOP_S['NVLink']:.1f} µs (NVLink) or {1e6 * HOP_S['PCIe']:.0f} µs" in text
    )
    assert WORTH == 1.25
    assert "a quarter more tokens per second" in text


def test_every_setting_on_the_page_exists_with_its_default() -> None:
    """Flags and defaults as `--help` has them."""
    known = {row.flag: row.default_text for row in TABLE}
    told = dict(re.findall(r"^\| `(--[a-z-]+)` \| `?([^|`]+?)`? \|", PAGE, re.M))
    assert set(told) == {
        *("--gpu-mode", "--gpus", "--micro-batches", "--rank-timeout-s", "--device"),
        *("--max-memory", "--device-map", "--offload"),
    }
    for flag, default in told.items():
        assert known[flag].removesuffix(".0") == default
