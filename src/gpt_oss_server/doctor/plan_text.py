"""A plan as text for a terminal, and as JSON.

Knows: columns, units, wording of limits. Does not know: how a figure comes about.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from gpt_oss_server.doctor.models import ModelFacts
from gpt_oss_server.doctor.plan import Limit, ModePlan, Plan, Recommendation, gib
from gpt_oss_server.memory.fit import REPORT_LENGTHS, GpuMode

WIDTH = 96

_LIMIT_TEXT: Mapping[Limit, str] = {
    "context": "the model's context",
    "kv_memory": "KV memory",
    "max_num_seqs": "--max-num-seqs",
    "too_long": "longer than the longest request",
}
_FORM_TEXT = {"mxfp4": "MXFP4 experts, the rest {dtype}", "fp8": "FP8, the rest {dtype}"}


def aligned(rows: Sequence[Sequence[str]], indent: int = 0) -> list[str]:
    """Columns padded to equal width, two spaces apart."""
    columns = max(len(row) for row in rows)
    full = [[*row, *[""] * (columns - len(row))] for row in rows]
    widths = [max(len(row[i]) for row in full) for i in range(columns)]
    return [
        (" " * indent + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True))).rstrip()
        for row in full
    ]


def headline(model: ModelFacts, plan: Plan) -> list[str]:
    """The model, its weights, its cache, and the GPUs asked about. What is not exact says so."""
    machine, dtype = plan.asked.machine, plan.asked.dtype
    about = "" if plan.weights_exact else "about "
    most = "" if plan.kv_exact else "at most "
    return aligned(
        [
            ["model", model.model_id],
            ["weights", f"{about}{gib(plan.weights_bytes)}, {_form(plan)}"],
            ["KV cache", f"{most}{plan.kv_bytes_per_token:,} bytes per token and request, {dtype}"],
            [
                "GPUs",
                f"{machine.gpus} of {gib(machine.gpu_memory_bytes)}, {machine.utilization:g} of it "
                f"used; {gib(machine.workspace_bytes)} set aside for CUDA and kernels",
            ],
        ]
    )


def table(plan: Plan, modes: Sequence[GpuMode]) -> list[str]:
    """One column per mode; `*` marks what --max-num-seqs bounds."""
    plans = [plan.of(mode) for mode in modes]
    rows = [["", *modes]]
    rows.append(["fits", *(_fits(mode) for mode in plans)])
    rows.append(["GPUs used", *_cells(plans, lambda m: str(m.report.gpus_used))])
    rows.append(["weights per GPU", *_cells(plans, lambda m: gib(max(m.report.weights_bytes)))])
    rows.append(["activations", *_cells(plans, lambda m: gib(m.report.activations_bytes))])
    rows.append(["KV per GPU", *_cells(plans, lambda m: gib(min(m.report.kv_bytes)), fitting=True)])
    rows.append(["KV per token, GPU", *_cells(plans, _token, fitting=True)])
    rows.append(["KV tokens", *_cells(plans, lambda m: f"{m.report.kv_tokens:,}", fitting=True)])
    rows.append(
        [
            "longest request",
            *_cells(plans, lambda m: f"{m.report.longest_request:,}", fitting=True),
        ]
    )
    for length in REPORT_LENGTHS:
        rows.append(
            [
                f"at once, {length:,} tokens",
                *_cells(plans, lambda m, n=length: _concurrent(m, n), fitting=True),
            ]
        )
    lines = aligned(rows)
    if any("*" in line for line in lines):
        lines.append("* as many as --max-num-seqs allows")
    return [*lines, "", *limits(plans)]


def limits(plans: Sequence[ModePlan]) -> list[str]:
    """One line per mode: what bounds it, or why it does not fit; equal modes together."""
    said: dict[str, list[str]] = {}
    for plan in plans:
        said.setdefault(_limit_line(plan), []).append(plan.mode)
    return aligned([[", ".join(modes) + ":", text] for text, modes in said.items()])


def _limit_line(plan: ModePlan) -> str:
    report = plan.report
    if report is None:
        return "needs at least 2 GPUs"
    if not report.fits and report.shortfall_bytes:
        return f"misses {report.shortfall_bytes:,} bytes ({gib(report.shortfall_bytes)}) per GPU"
    if not report.fits:
        return report.reasons[0]
    parts = []
    if plan.longest_limit is not None:
        parts.append(f"longest request by {_LIMIT_TEXT[plan.longest_limit]}")
    bound = [length for length, limit in plan.concurrent_limits.items() if limit == "kv_memory"]
    if bound:
        parts.append(f"requests at once by KV memory from {min(bound):,} tokens on")
    parts += [f"note: {reason}" for reason in report.reasons]
    return "; ".join(parts)


def summary(plan: Plan, modes: Sequence[GpuMode]) -> list[str]:
    """The weights in their other form: which modes fit, a line each."""
    why = "as they are held where no kernel can compute MXFP4" if plan.weights != "mxfp4" else ""
    title = f"With weights as {_form(plan)}, {gib(plan.weights_bytes)}"
    shown = [plan.of(mode) for mode in modes if plan.of(mode).report is not None]
    rows = [
        [mode.mode, f"yes, {mode.report.kv_tokens:,} KV tokens" if mode.fits else _fits(mode)]
        for mode in shown
        if mode.report is not None
    ]
    return [f"{title}{f' ({why})' if why else ''}:", *aligned(rows, indent=2)]


def recommendation_lines(recommendation: Recommendation) -> list[str]:
    """What to do, and its arithmetic below."""
    lines = wrapped(f"Recommendation: {recommendation.text}", later_indent=2)
    return lines + (wrapped(recommendation.arithmetic, 2, 4) if recommendation.arithmetic else [])


def wrapped(text: str, indent: int = 0, later_indent: int | None = None) -> list[str]:
    """Lines of a terminal's width; words and flags stay whole."""
    later = indent if later_indent is None else later_indent
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * later,
        break_on_hyphens=False,
        break_long_words=False,
    )


def plan_json(plan: Plan, modes: Sequence[GpuMode]) -> dict[str, Any]:
    """Everything that the table shows, in bytes and tokens."""
    machine = plan.asked.machine
    return {
        "gpus": machine.gpus,
        "gpu_memory_bytes": machine.gpu_memory_bytes,
        "gpu_memory_utilization": machine.utilization,
        "workspace_bytes": machine.workspace_bytes,
        "block_size": machine.block_size,
        "max_num_seqs": machine.max_num_seqs,
        "max_batch_tokens": machine.max_batch_tokens,
        "dtype": plan.asked.dtype,
        "weights": plan.weights,
        "weights_bytes": plan.weights_bytes,
        "kv_bytes_per_token": plan.kv_bytes_per_token,
        "context_tokens": plan.context_tokens,
        "modes": {mode: _mode_json(plan.of(mode)) for mode in modes},
    }


def _mode_json(plan: ModePlan) -> dict[str, Any]:
    report = plan.report
    if report is None:
        return {"fits": False, "reasons": ["needs at least 2 GPUs"]}
    return {
        "fits": report.fits,
        "gpus_used": report.gpus_used,
        "shortfall_bytes": report.shortfall_bytes,
        "weights_bytes": list(report.weights_bytes),
        "activations_bytes": report.activations_bytes,
        "kv_bytes": list(report.kv_bytes),
        "kv_tokens": report.kv_tokens,
        "kv_bytes_per_token": plan.token_bytes,
        "longest_request_tokens": report.longest_request,
        "longest_request_limit": plan.longest_limit,
        "concurrent": {str(length): count for length, count in report.concurrent.items()},
        "concurrent_limits": {str(k): limit for k, limit in plan.concurrent_limits.items()},
        "exact": report.exact,
        "reasons": list(report.reasons),
    }


def _cells(plans: Sequence[ModePlan], text: Any, *, fitting: bool = False) -> list[str]:
    shown = []
    for plan in plans:
        known = plan.report is not None and bool(plan.report.weights_bytes)
        shown.append(text(plan) if known and (plan.fits or not fitting) else "-")
    return shown


def _form(plan: Plan) -> str:
    return _FORM_TEXT.get(plan.weights, plan.weights).format(dtype=plan.asked.dtype)


def _fits(plan: ModePlan) -> str:
    if plan.report is None:
        return "needs 2 GPUs"
    if plan.fits:
        return "yes"
    missing = plan.report.shortfall_bytes
    return f"no, misses {gib(missing)}" if missing else "no, cannot be split"


def _token(plan: ModePlan) -> str:
    return f"{plan.token_bytes:,}"


def _concurrent(plan: ModePlan, length: int) -> str:
    count = plan.report.concurrent[length] if plan.report else 0
    return f"{count}{' *' if plan.concurrent_limits.get(length) == 'max_num_seqs' else ''}"
