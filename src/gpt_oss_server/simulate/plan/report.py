"""What a search found, as text for a terminal.

Knows: what an operator wants to read first, units, rounding. Does not know: how anything was found,
files, flags.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gpt_oss_server.simulate.fleet.pools import Fleet
from gpt_oss_server.simulate.plan.fewest import Fewest
from gpt_oss_server.simulate.plan.found import Below, Found, Standing
from gpt_oss_server.simulate.plan.inventory import Inventory, Refusal
from gpt_oss_server.simulate.plan.money import Cost, Prices, cost
from gpt_oss_server.simulate.plan.trials import Candidate, Verdict
from gpt_oss_server.simulate.results.confidence import Interval
from gpt_oss_server.simulate.results.number_text import milliseconds, percent, seconds
from gpt_oss_server.simulate.results.slo import Slo

MOST_ROWS = 12


@dataclass(frozen=True)
class AtRate:
    """The workload at its own pace (or the one asked for), on one candidate."""

    candidate: Candidate
    verdict: Verdict


@dataclass(frozen=True)
class Plan:
    """Everything that is reported.

    `played` says what was played, in words; `pace` at what pace `at_rate` and `fewest` are (None:
    the workload has none of its own). `prices` is None where nothing was priced.
    """

    model: str
    inventory: Inventory
    slo: Slo
    workload: str
    played: tuple[str, ...]
    found: Found
    refused: tuple[Refusal, ...]
    notes: tuple[str, ...]
    prices: Prices | None
    current: Candidate | None
    pace: str | None
    at_rate: tuple[AtRate, ...]
    fewest: Fewest | None
    wall_s: float
    processes: int

    @property
    def single_type(self) -> bool:
        return len(self.inventory.stock) == 1

    def layout(self, fleet: Fleet) -> str:
        """As `4×tp1 + 2×tp2`; with types where there are several."""
        name = fleet.name
        if self.single_type:
            name = name.replace(f"{self.inventory.stock[0][0].name}-", "")
        return name.replace("tp1-pp", "pp")

    def costs(self, standing: Standing) -> Cost | None:
        """At the largest load that it bears."""
        if standing.last is None:
            return None
        verdict = standing.last.verdict
        scale = standing.per_s / verdict.requests_per_s if verdict.requests_per_s else 0.0
        return cost(
            standing.candidate.fleet,
            self.prices,
            scale * verdict.input_tokens_s,
            scale * verdict.output_tokens_s,
        )


def lines(plan: Plan) -> list[str]:
    """All but the file and the commands."""
    parts = [_head(plan), _table(plan), _verdict(plan), _at_rate(plan), _small_print(plan)]
    return [line for part in parts if part for line in (*part, "")][:-1]


def _head(plan: Plan) -> list[str]:
    made = [f"{plan.model} on {plan.inventory.name}, {plan.workload}"]
    made += [f"  {line}" for line in plan.played]
    made.append("  promised, to 95 % of each class: " + "; ".join(_promises(plan.slo)))
    return made


def _promises(slo: Slo) -> list[str]:
    made = []
    for one in slo.classes:
        upto = "" if math.isinf(one.up_to_tokens) else f" (prompts ≤ {one.up_to_tokens:,.0f})"
        made.append(f"{one.name}{upto} {one.ttft_s:g} s, then {1000 * one.tpot_s:g} ms a token")
    return made


def _table(plan: Plan) -> list[str]:
    """One row per layout with its best policy, then other policies on the layout proposed."""
    found = plan.found
    rows = [_row(plan, one) for one in _best_of_layouts(found)[:MOST_ROWS]]
    proposed = found.proposed.candidate
    others = [
        s
        for s in found.standings
        if s.candidate.fleet.name == proposed.fleet.name and s is not found.proposed
    ]
    others.sort(key=lambda one: -one.relative)
    policies = [_row(plan, one) for one in others[: MOST_ROWS // 2]]
    money = plan.prices.currency if plan.prices is not None else None
    head = ["layout", "policy", "bears, requests/s", "of best", "GPU-h/M out"]
    head += [f"{money}/M out", f"{money}/M all"] if money else []
    made = _aligned([[*head, ""], *rows, *policies])
    if policies:
        made.insert(len(rows) + 1, f"other policies on {plan.layout(proposed.fleet)}:")
    return made


def _best_of_layouts(found: Found) -> list[Standing]:
    """The best row of every layout; what was followed to the end stands for it."""
    best: dict[str, Standing] = {}
    for one in sorted(found.standings, key=lambda one: (one.basis == "short", -one.relative)):
        best.setdefault(one.candidate.fleet.name, one)
    best[found.proposed.candidate.fleet.name] = found.proposed
    return sorted(best.values(), key=lambda one: -one.relative)


def _row(plan: Plan, one: Standing) -> list[str]:
    costs = plan.costs(one)
    cells = [
        plan.layout(one.candidate.fleet),
        one.candidate.rule.label,
        _range(one.bears) if one.bears is not None else f"{one.per_s:.2f}{_ROUGH[one.basis]}",
        f"{100 * one.relative:.0f} %",
        f"{costs.gpu_hours_per_million_output:.3f}" if costs else "–",
    ]
    if plan.prices is not None:
        cells += [_money(costs.per_million_output if costs else None)]
        cells += [_money(costs.per_million_all if costs else None)]
    return [*cells, _mark(plan, one)]


_ROUGH = {"draws": "", "base": " ~", "short": " ≈"}


def _mark(plan: Plan, one: Standing) -> str:
    marks = []
    if one is plan.found.proposed:
        marks.append("← proposed")
    elif one.no_worse and one is not plan.found.best:
        marks.append("no worse within noise")
    if plan.current is not None and one.candidate.key == plan.current.key:
        marks.append("runs today")
    return ", ".join(marks)


def _range(bears: Interval) -> str:
    if bears.low is None or bears.high is None:
        return f"{bears.middle:.2f}"
    return f"{bears.middle:.2f} ({bears.low:.2f}–{bears.high:.2f})"


def _verdict(plan: Plan) -> list[str]:
    """What to take, and why not something simpler."""
    found = plan.found
    proposed, best = found.proposed, found.best
    layout = plan.layout(proposed.candidate.fleet)
    bears = _range(proposed.bears) if proposed.bears else f"{proposed.per_s:.2f}"
    made = [f"Best: {layout} with {proposed.candidate.rule.label}: bears {bears} requests/s"]
    if proposed is not best:
        made.append(
            f"  ({plan.layout(best.candidate.fleet)} with {best.candidate.rule.label} bears "
            f"{best.per_s:.2f}, which is within noise; the simpler one is proposed)"
        )
    uniform = found.uniform
    if len(proposed.candidate.fleet.pools) == 1:
        made.append("  A uniform layout is the best, or no worse: there is no need to mix.")
    elif uniform is not None:
        share = uniform.per_s / proposed.per_s
        made.append(
            f"  Mixing pays: the best uniform layout, {plan.layout(uniform.candidate.fleet)}, "
            f"bears {uniform.per_s:.2f} ({100 * share:.0f} %)."
        )
    plain = found.without_dispatcher
    if plain is not None and not proposed.candidate.rule.plain:
        share = plain.per_s / proposed.per_s
        made.append(
            f"  With a plain balancer ({plain.candidate.rule.label}) the most is {plain.per_s:.2f} "
            f"({100 * share:.0f} %), on {plan.layout(plain.candidate.fleet)}."
        )
    today = found.of(plan.current)
    if plan.current is not None:
        name = f"{plan.layout(plan.current.fleet)} with {plan.current.rule.label}"
        if today is None:
            made.append(f"  What runs today, {name}, was not found to bear any load.")
        elif today is not proposed:
            made.append(
                f"  What runs today, {name}, bears {today.per_s:.2f}: the proposal bears "
                f"{proposed.per_s / today.per_s:.2f} × that."
            )
        else:
            made.append("  That is what runs today.")
    return made


def _at_rate(plan: Plan) -> list[str]:
    if plan.pace is None or not plan.at_rate:
        return []
    head = ["layout, policy", "class", "requests", "met", "TTFT p50", "p95", "TPOT p50", "p95"]
    rows = [[*head, "E2E p50", "p95", ""]]
    for one in plan.at_rate:
        name = f"{plan.layout(one.candidate.fleet)}, {one.candidate.rule.label}"
        for kind in one.verdict.report.classes:
            cells = [name, kind.name, f"{kind.requests:,}", percent(kind.share_met)]
            for quantiles, text in (
                (kind.ttft_s, seconds),
                (kind.tpot_s, milliseconds),
                (kind.e2e_s, seconds),
            ):
                cells += [text(q) for q in (quantiles[:2] if quantiles else (None, None))]
            rows.append([*cells, ""])
            name = ""
    made = [f"At {plan.pace}:", *_aligned(rows), *_bills(plan)]
    if plan.fewest is not None:
        fleet, verdict = plan.fewest.candidate.fleet, plan.fewest.verdict
        shares = (f"{one.name} {percent(one.share_met)} met" for one in verdict.report.classes)
        parts = [plan.layout(fleet), plan.fewest.candidate.rule.label, *shares]
        per_hour = plan.prices.per_hour(fleet) if plan.prices is not None else None
        if plan.prices is not None and per_hour is not None:
            parts.append(f"{_money(per_hour)} {plan.prices.currency}/h")
        least = "Cheapest" if not plan.single_type and _all_priced(plan) else "Fewest"
        made.append(
            f"{least} GPUs that keep the promises at this pace, in what is played: {fleet.gpus} "
            f"({', '.join(parts)})"
        )
    elif not plan.at_rate[0].verdict.met:
        made.append(f"The promises are not kept at this pace: {plan.inventory.name} are too few.")
    return made


def _all_priced(plan: Plan) -> bool:
    """Whether parts of the GPUs compare by their price."""
    return plan.prices is not None and plan.prices.of_stock(plan.inventory) is not None


def _bills(plan: Plan) -> list[str]:
    """What each fleet does and costs at the pace."""
    money = plan.prices.currency if plan.prices is not None else None
    head = ["", "goodput", "in steps", "cached", "GPU-h/M out"]
    head += [f"{money}/h", f"{money}/M out", f"{money}/M all"] if money else []
    rows = [[*head, ""]]
    for one in plan.at_rate:
        fleet, verdict = one.candidate.fleet, one.verdict
        costs = cost(fleet, plan.prices, verdict.input_tokens_s, verdict.output_tokens_s)
        cells = [
            f"{plan.layout(fleet)}, {one.candidate.rule.label}",
            f"{verdict.report.goodput_per_s:.2f} of {verdict.requests_per_s:.2f}/s",
            percent(verdict.busy_share),
            percent(verdict.cached_share),
            f"{costs.gpu_hours_per_million_output:.3f}" if costs else "–",
        ]
        if money:
            cells += [_money(costs.per_hour if costs else None)]
            cells += [_money(costs.per_million_output if costs else None)]
            cells += [_money(costs.per_million_all if costs else None)]
        rows.append([*cells, ", ".join(f"{n} {end}" for end, n in verdict.lost.items())])
    return _aligned(rows)


def _small_print(plan: Plan) -> list[str]:
    found = plan.found
    made = [
        f"Searched {len(found.standings) + len(found.below)} candidates in {found.runs} runs, "
        f"{plan.wall_s:.0f} s on {plan.processes} processes.",
        "  In brackets: 95 % confidence over all draws. ~: one draw; ≈: a short stretch of it.",
    ]
    below = _below(found)
    if below:
        shown = ", ".join(
            f"{plan.layout(one.candidate.fleet)} ({one.candidate.rule.label} < {one.per_s:.2f})"
            for one in below
        )
        made.append(f"  Left early, on the short stretch: {shown}.")
    if found.not_tried:
        made.append(f"  {found.not_tried} more came near on the short stretch; the first went on.")
    if found.cut:
        made.append(f"  --budget-s was over before: {'; '.join(found.cut)}.")
    made += [f"  {line}" for line in _refusals(plan.refused)]
    if plan.prices is not None:
        made.append(f"  Prices: {plan.prices.source}; --price gives your own.")
    return made + [f"  {note}" for note in plan.notes]


def _below(found: Found) -> list[Below]:
    """Layouts that no policy was followed on, with the least that one was known to bear less
    than."""
    known = {one.candidate.fleet.name for one in found.standings}
    lowest: dict[str, Below] = {}
    for one in sorted(found.below, key=lambda one: one.per_s):
        if one.candidate.fleet.name not in known:
            lowest.setdefault(one.candidate.fleet.name, one)
    return sorted(lowest.values(), key=lambda one: one.candidate.fleet.name)


def _refusals(refused: Sequence[Refusal]) -> list[str]:
    made = [
        f"Does not fit: {one.shape.name}, {one.missing_bytes:,} bytes are missing on each GPU."
        for one in refused
        if one.missing_bytes is not None
    ]
    split: dict[str, list[str]] = {}
    for one in refused:
        if one.missing_bytes is None:
            split.setdefault(one.reason, []).append(one.shape.name)
    return made + [f"Cannot be split: {', '.join(names)} ({why})." for why, names in split.items()]


def _money(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns; the first two and the last left, the others right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    last = len(widths) - 1
    made = []
    for row in rows:
        cells = [
            cell.ljust(width) if place < 2 or place == last else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        made.append("  ".join(cells).rstrip())
    return made
