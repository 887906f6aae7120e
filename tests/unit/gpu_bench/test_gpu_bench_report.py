"""Which sections run, what is kept of them, what the page says."""

from __future__ import annotations

from pathlib import Path

import pytest
from gpu_bench import report
from gpu_bench.catalog import by_host, catalog, chosen, expected_s
from gpu_bench.records import Record, read_all
from gpu_bench.settings import Settings
from gpu_bench.targets import missing, rows


def test_the_usual_run_ends_in_time() -> None:
    """What is expected of it leaves room within ten minutes, and every host starts once."""
    sections = chosen([], tune=False)
    assert expected_s(sections) < 570
    hosts = [host for host, _ in by_host(sections)]
    assert hosts == [
        "plain",
        "engine:bf16",
        "engine:mxfp4",
        "transformers:bf16",
        "transformers:mxfp4",
    ]


def test_sections_are_chosen_by_topic_or_name() -> None:
    """In the order of the catalog, whatever the order of asking."""
    names = [one.name for one in chosen(["prefill", "decode:mxfp4"], tune=False)]
    assert names == ["prefill:bf16", "decode:mxfp4", "prefill:mxfp4"]
    assert [one.name for one in chosen(["ceilings"], tune=True)] == [
        "ceilings",
        "tune_attention",
        "tune_experts:bf16",
        "tune_experts:mxfp4",
    ]
    with pytest.raises(ValueError, match="no section 'speed'; there are ceilings"):
        chosen(["speed"], tune=False)


def test_every_section_is_a_method_of_its_host() -> None:
    """No name in the catalog that nobody answers to."""
    from gpu_bench.engine_sections import EngineBench
    from gpu_bench.peer_sections import PeerBench
    from gpu_bench.plain_sections import PlainBench

    kinds = {"engine": EngineBench, "transformers": PeerBench, "plain": PlainBench}
    for one in catalog():
        assert callable(getattr(kinds[one.host.partition(":")[0]], one.method)), one.name


def test_the_engine_allocates_as_it_does_where_it_serves() -> None:
    """The benchmark's processes have the server's setting; whatever a user set stands."""
    from gpu_bench import worker as ours

    from gpt_oss_server.engine import worker as served

    for before in ({}, {"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}):
        mine, other = dict(before), dict(before)
        ours.settle_allocator(mine)
        served.settle_allocator(other)
        assert mine == other


def decoded(batch: int, rate: float) -> dict[str, object]:
    figures = {"batch": batch, "context": 1024, "tokens_per_s": rate, "step_ms": 1.0}
    return {**figures, "step_p99_ms": 1.0, "windows": [rate]}


def records() -> dict[str, Record]:
    figures = {
        "ceilings": {
            "copy_bytes_per_s": 3.0e12,
            "product_flop_per_s": 8.0e14,
            "device": "a GPU",
            "python": "3.12",
            "torch": "2.11",
            "transformers": "5.17",
            "triton": "3.6",
            "cuda": "13.0",
            "stand_ins": ["msgspec"],
        },
        "decode:bf16": {"batches": [decoded(1, 207.0), decoded(64, 2000.0)]},
        "generate:bf16": {"tokens_per_s": 23.0},
        "hidden:bf16": {
            "step_us": 5000.0,
            "device_busy_us": 4390.0,
            "device_waits_us": 10.0,
            "host_us": 400.0,
            "launches": 296,
            "hidden": 0.975,
        },
    }
    good = {name: Record(name, "", 1.0, 1_800_000_000.0, found) for name, found in figures.items()}
    return {**good, "prefill:bf16": Record("prefill:bf16", "", 0.0, 1.0, trouble="it broke")}


def test_the_table_judges_what_was_found() -> None:
    """Met, missed, and not measured are three things; a floor stands beside a rate."""
    table = {row.what: row for row in rows(Settings("/nowhere"), records())}
    one = table["decode, batch 1, context 1,024, bf16"]
    assert (one.met, one.floor, one.found) == (True, "2.41 ms", "207 tok/s (1.0 ms)")
    assert one.share == pytest.approx(0.5, abs=1e-3)
    assert table["decode, batch 64, context 2,048, bf16"].met is False
    assert table["decode, batch 1, context 1,024, mxfp4"].met is None
    assert table["the same at batch 1 against `generate` (bf16), bf16"].met is True
    assert table["host time per decode step hidden by the device, batch 1, bf16"].met is True
    assert "prefill, 8,192 tokens, bf16" in missing(list(table.values()))


def test_the_page_says_what_is_missing(tmp_path: Path) -> None:
    """Written from any set of sections; trouble and what had no time are named."""
    page = report.write(Settings(str(tmp_path)), records(), tmp_path, "a command", ["profile:bf16"])
    assert page.name == "2027-01-15-gpu.md"
    text = page.read_text()
    assert "a large copy 3.000 TB/s" in text
    assert "Stood in for, because they are missing: msgspec." in text
    assert "- prefill:bf16: it broke" in text
    assert "- profile:bf16: no time was left" in text
    assert "rehearsal" not in text
    assert page.with_suffix(".json").is_file()


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    """One file a section; the last one wins."""
    Record("decode:bf16", "engine:bf16", 1.0, 2.0, trouble="broken").write(tmp_path)
    good = Record("decode:bf16", "engine:bf16", 1.0, 3.0, {"batches": []})
    good.write(tmp_path)
    assert read_all(tmp_path) == {"decode:bf16": good}
