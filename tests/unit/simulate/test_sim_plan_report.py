"""What a plan says: on a terminal, and as JSON."""

from __future__ import annotations

import json
from dataclasses import replace

from plan_builders import Pretender, candidate, fleet, verdict

from gpt_oss_server.simulate.cost.gpu_types import gpu_type
from gpt_oss_server.simulate.cost.layout import Shape
from gpt_oss_server.simulate.fleet.pools import Fleet
from gpt_oss_server.simulate.plan.fewest import Fewest
from gpt_oss_server.simulate.plan.found import Found
from gpt_oss_server.simulate.plan.inventory import Refusal, parse_gpus
from gpt_oss_server.simulate.plan.json_document import as_json
from gpt_oss_server.simulate.plan.knee import Explorer
from gpt_oss_server.simulate.plan.money import Prices
from gpt_oss_server.simulate.plan.report import AtRate, Plan, lines
from gpt_oss_server.simulate.plan.rules import Rule
from gpt_oss_server.simulate.plan.search import Problem, search
from gpt_oss_server.simulate.plan.trials import Candidate
from gpt_oss_server.simulate.results.slo import Slo

RULES = [Rule("earliest_completion"), Rule("least_request")]
FLEETS = (fleet((4, 1)), fleet((2, 2)), fleet((2, 1), (1, 2)))
TODAY = candidate((1, 4), rule="round_robin")
RATES = {"short": 1.0, "base": 1.0, "draw 1": 1.0, "draw 2": 1.0}


def searched(mixed: float, uniform: float, plain: float) -> Found:
    """The mixed fleet, the pairs and a plain balancer bear so much; what runs today one."""

    def bears(one: Candidate, traffic: str) -> float:
        if one.key == TODAY.key:
            return 1.0
        if one.rule.plain:
            return plain
        return {
            fleet.name: load for fleet, load in zip(FLEETS, (2.0, uniform, mixed), strict=True)
        }[one.fleet.name]

    problem = Problem(
        fleets=FLEETS,
        rules={one.name: RULES for one in FLEETS},
        rates=RATES,
        spans_s=dict.fromkeys(RATES, 1000.0),
        draws=("draw 1", "draw 2"),
        independent=True,
        guess=lambda one: 5.0,
        current=TODAY,
    )
    return search(problem, Explorer(Pretender(bears, RATES)))


def plan(found: Found, prices: Prices | None = None) -> Plan:
    proposed = found.proposed.candidate
    return Plan(
        model="gpt-oss-120b",
        inventory=parse_gpus("4@h100"),
        slo=Slo(),
        workload="a log",
        played=("played: all of it",),
        found=found,
        refused=(
            Refusal(Shape(gpu_type("h100"), 8), "too little memory", 1_234_567),
            Refusal(Shape(gpu_type("h100"), 3), "64 heads cannot be split over 3", None),
        ),
        notes=("Caution: a note.",),
        prices=prices,
        current=TODAY,
        pace="3.00 requests/s (its own pace)",
        at_rate=(AtRate(proposed, verdict(3.0, True)), AtRate(TODAY, verdict(3.0, False))),
        fewest=Fewest(Candidate(fleet((2, 1)), RULES[0]), verdict(3.0, True)),
        wall_s=12.3,
        processes=2,
    )


def text(found: Found, prices: Prices | None = None) -> str:
    return "\n".join(lines(plan(found, prices)))


def test_what_to_take_is_said_with_what_it_is_worth() -> None:
    """Mixed where that pays, by how much against uniform ones, a plain balancer and today."""
    said = text(searched(mixed=9.0, uniform=6.0, plain=3.0))
    assert "Best: 2×tp1 + 1×tp2 with earliest_completion: bears 8." in said
    assert "Mixing pays: the best uniform layout, 2×tp2, bears" in said
    assert "With a plain balancer (least_request) the most is " in said
    assert "What runs today, 1×tp4 with round_robin, bears " in said
    assert said.count("← proposed") == 1


def test_a_uniform_layout_that_is_no_worse_is_proposed_and_said_to_be() -> None:
    """And what was a little better in name."""
    said = text(searched(mixed=6.02, uniform=6.0, plain=3.0))
    assert "Best: 2×tp2 with earliest_completion: bears " in said
    assert "A uniform layout is the best, or no worse: there is no need to mix." in said
    assert "Mixing pays" not in said


def test_layouts_of_one_type_need_no_type() -> None:
    """Of several they do."""
    made = plan(searched(9.0, 6.0, 3.0))
    assert made.layout(fleet((2, 2))) == "2×tp2"
    several = replace(made, inventory=parse_gpus("4@h100+1@l40s"))
    assert several.layout(fleet((2, 2))) == "2×h100-tp2"
    pipeline = Fleet(fleet((1, 1)).pools)
    assert made.layout(pipeline) == "1×tp1"


def test_costs_are_shown_where_there_are_prices() -> None:
    """Four GPUs at 2 an hour: 8 an hour, over 300 tokens a second."""
    found = searched(9.0, 6.0, 3.0)
    assert "USD" not in text(found)
    said = text(found, Prices({"h100": 2.0}, "EUR", "a bill"))
    assert "EUR/M out" in said
    per_million = 8.0 / (3.0 * 100 * 3600 / 1e6)
    (row,) = [line for line in said.splitlines() if "3.00 of 3.00/s" in line and "2×tp1" in line]
    assert f"{per_million:.2f}" in row
    assert " 8.00 " in row
    assert "Prices: a bill; --price gives your own." in said
    assert "Fewest GPUs that keep the promises at this pace, in what is played: 2 " in said


def test_what_cannot_be_is_listed() -> None:
    """Bytes to the last, reasons once."""
    said = text(searched(9.0, 6.0, 3.0))
    assert "Does not fit: h100-tp8, 1,234,567 bytes are missing on each GPU." in said
    assert "Cannot be split: h100-tp3 (64 heads cannot be split over 3)." in said
    assert "Caution: a note." in said


def test_gpus_that_are_too_few_are_said_to_be() -> None:
    """Where the proposal does not keep the promises at the pace."""
    made = plan(searched(9.0, 6.0, 3.0))
    broken = replace(
        made, at_rate=(AtRate(made.at_rate[0].candidate, verdict(30.0, False)),), fewest=None
    )
    assert "The promises are not kept at this pace: 4 h100 are too few." in lines(broken)


def test_the_document_has_everything() -> None:
    """And is JSON, with intervals, draws, what was left early and what did not fit."""
    document = json.loads(json.dumps(as_json(plan(searched(9.0, 6.0, 3.0), Prices({"h100": 2.0})))))
    assert document["proposed"]["layout"] == "2×h100-tp1 + 1×h100-tp2"
    assert document["proposed"]["relative"] == 1.0
    assert len(document["proposed"]["draws_per_s"]) == 3
    assert document["does_not_fit"][0]["missing_bytes"] == 1_234_567
    assert document["at_rate"][1]["slo_met"] is False
    assert document["fewest"]["gpus"] == 2
    assert document["prices"]["per_gpu_hour"] == {"h100": 2.0}
    assert {one["policy"] for one in document["candidates"]} >= {"least_request", "round_robin"}
