"""The promises, each against what was found.

Knows: targets, floors, which figure of which section says what. Does not know: how anything was
measured, or how it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_bench.catalog import catalog
from gpu_bench.floors import Ceilings, decode_bytes, prefill_s
from gpu_bench.records import Record
from gpu_bench.settings import Settings
from gpu_bench.shapes import FORMS, Work, work_of

DECODE = {("bf16", 1): 200.0, ("mxfp4", 1): 280.0, ("bf16", 64): 2700.0, ("mxfp4", 64): 5000.0}
PREFILL = 40_000.0
TIMES_GENERATE = 5.0
TIMES_BATCH = 3.0
MOST_ITL = 2.5
LEAST_BANDWIDTH = 0.75
LEAST_HIDDEN = 0.9
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Row:
    """`share` is of what the floor allows. `met` is None where nothing was found."""

    what: str
    target: str
    found: str = NOT_MEASURED
    met: bool | None = None
    floor: str = ""
    share: float | None = None


class Found:
    """Figures of sections that went well."""

    def __init__(self, records: Mapping[str, Record]) -> None:
        self._records = records

    def of(self, section: str) -> Mapping[str, Any] | None:
        record = self._records.get(section)
        return record.figures if record is not None and record.trouble is None else None

    def decode(self, form: str, batch: int) -> Mapping[str, Any] | None:
        figures = self.of(f"decode:{form}")
        cases = figures["batches"] if figures else []
        return next((one for one in cases if one["batch"] == batch), None)

    def ceilings(self) -> Ceilings | None:
        figures = self.of("ceilings")
        if figures is None:
            return None
        return Ceilings(figures["copy_bytes_per_s"], figures["product_flop_per_s"])


def rows(settings: Settings, records: Mapping[str, Record]) -> list[Row]:
    """Every row of the table, in order."""
    found, work = Found(records), work_of(settings.shape)
    limits = found.ceilings()
    table = [_compared(found, form) for form in FORMS]
    for batch, context in (work.one, work.many):
        table += [_decode(settings, found, limits, form, batch, context) for form in FORMS]
    table += [_against_generate(found, work, form) for form in FORMS]
    table += [_prefill(settings, found, limits, work, form) for form in FORMS]
    usual = {section.name for section in catalog() if section.usual} | records.keys()
    for topic, row in (("requests", _against_batch), ("chats", _chats)):
        table += [row(found, work, form) for form in FORMS if f"{topic}:{form}" in usual]
    table.append(_attention(found))
    table += [_hidden(found, form) for form in FORMS]
    return table


def _compared(found: Found, form: str) -> Row:
    what, target = f"greedy tokens and logits against transformers, {form}", "equal or explained"
    figures = found.of(f"compare:{form}")
    if figures is None:
        return Row(what, f"{target}; logits ≤ 2e-2")
    # A token that differs is explained by logits that are near enough to be right.
    met = figures["error"] <= figures["limit"] and figures["rows_over_limit"] == 0
    said = f"{figures['equal']} of {figures['rows']} tokens equal; logits {figures['error']:.1e}"
    said += f", worst row {figures['worst_error']:.1e}"
    return Row(what, f"{target}; logits ≤ {figures['limit']:.0e}", said, met)


def _decode(
    settings: Settings, found: Found, limits: Ceilings | None, form: str, batch: int, context: int
) -> Row:
    what = f"decode, batch {batch}, context {context:,}, {form}"
    wanted = DECODE.get((form, batch))
    target = "" if wanted is None else f"≥ {wanted:,.0f} tok/s"
    figures = found.decode(form, batch)
    if figures is None:
        return Row(what, target)
    floor, share = "", None
    if limits is not None:
        least_s = decode_bytes(settings.config(form), batch, figures["context"]) / limits.copy
        floor, share = f"{least_s * 1e3:.2f} ms", least_s * figures["tokens_per_s"] / batch
    rate = figures["tokens_per_s"]
    met = None if wanted is None else rate >= wanted
    return Row(what, target, f"{rate:,.0f} tok/s ({figures['step_ms']} ms)", met, floor, share)


def _against_generate(found: Found, work: Work, form: str) -> Row:
    what, target = (
        f"the same at batch 1 against `generate` (bf16), {form}",
        f"≥ {TIMES_GENERATE:g}×",
    )
    ours, theirs = found.decode(form, work.one[0]), found.of("generate:bf16")
    if ours is None or theirs is None:
        return Row(what, target)
    times = ours["tokens_per_s"] / theirs["tokens_per_s"]
    said = f"{times:.1f}× of {theirs['tokens_per_s']:,.1f} tok/s"
    return Row(what, target, said, times >= TIMES_GENERATE)


def _prefill(
    settings: Settings, found: Found, limits: Ceilings | None, work: Work, form: str
) -> Row:
    what, target = f"prefill, {work.prefill:,} tokens, {form}", f"≥ {PREFILL:,.0f} tok/s"
    figures = found.of(f"prefill:{form}")
    if figures is None:
        return Row(what, target)
    rate, floor, share = figures["tokens_per_s"], "", None
    if limits is not None:
        least_s = prefill_s(settings.config(form), figures["tokens"], figures["chunk"], limits)
        floor, share = f"{least_s * 1e3:.0f} ms", least_s * rate / figures["tokens"]
    return Row(what, target, f"{rate:,.0f} tok/s", rate >= PREFILL, floor, share)


def _against_batch(found: Found, work: Work, form: str) -> Row:
    what = f"{work.requests} requests, {work.request_input} in and {work.request_output} out, "
    what += f"against `generate_batch` (bf16), {form}"
    target = f"≥ {TIMES_BATCH:g}×"
    ours, theirs = found.of(f"requests:{form}"), found.of("generate_batch:bf16")
    if ours is None:
        return Row(what, target)
    if theirs is None:
        return Row(what, target, f"{ours['tokens_per_s']:,.0f} tok/s; theirs {NOT_MEASURED}")
    times = ours["tokens_per_s"] / theirs["tokens_per_s"]
    how = "" if theirs["measured"] else ", reckoned from short runs"
    said = f"{times:.1f}×: {ours['tokens_per_s']:,.0f} tok/s of {theirs['tokens_per_s']:,.0f}{how}"
    return Row(what, target, said, times >= TIMES_BATCH)


def _chats(found: Found, work: Work, form: str) -> Row:
    what = f"ITL p99 of {work.chats} chats beside a prompt of {work.long_prompt:,}, {form}"
    target = f"≤ {MOST_ITL:g}× without"
    figures = found.of(f"chats:{form}")
    if figures is None:
        return Row(what, target)
    said = f"{figures['ratio']:.2f}×: {figures['beside_p99_ms']} ms of {figures['quiet_p99_ms']}"
    return Row(what, target, said, figures["ratio"] <= MOST_ITL)


def _attention(found: Found) -> Row:
    what, target = "attention decode kernel, context 8k, batch 64", f"≥ {LEAST_BANDWIDTH:.0%}"
    target += " of the copy"
    figures = found.of("attention")
    if figures is None or "why_not" in figures:
        return Row(what, target)
    share = figures["share"]
    said = f"{share:.0%}: {figures['gb_s']:,.0f} GB/s of {figures['copy_gb_s']:,.0f}"
    return Row(what, target, said, share >= LEAST_BANDWIDTH, share=share)


def _hidden(found: Found, form: str) -> Row:
    what = f"host time per decode step hidden by the device, batch 1, {form}"
    target = f"≥ {LEAST_HIDDEN:.0%}"
    figures = found.of(f"hidden:{form}")
    if figures is None or "why_not" in figures:
        return Row(what, target)
    said = f"{figures['hidden']:.0%}: of {figures['host_us']:,.0f} µs a step"
    return Row(what, target, said, figures["hidden"] >= LEAST_HIDDEN)


def missing(table: Sequence[Row]) -> list[str]:
    return [row.what for row in table if row.found.endswith(NOT_MEASURED)]
