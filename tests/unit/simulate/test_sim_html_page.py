"""The page of a simulation: complete, safe, small, and with the figures of the JSON."""

from __future__ import annotations

import copy
import json
import math
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sim_builders import replica
from sim_documents import document, outcome, samples
from test_sim_html_parts import Reader

from gpt_oss_server.simulate.fleet.pools import Failure, Fleet, Pool
from gpt_oss_server.simulate.html.page import page
from gpt_oss_server.simulate.results.outcome import Outcome
from gpt_oss_server.simulate.results.report import as_json, fleet_json, slo_json
from gpt_oss_server.simulate.results.slo import Slo, SloClass, judge

ROOT = Path(__file__).parents[3]
SECTIONS = ("verdict", "latency", "load", "time", "where", "inputs", "limits")
TWO = ("--policy", "round_robin", "--policy", "earliest_completion")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A document of two policies, swept, with a failure."""
    return document(tmp_path_factory.mktemp("page"), *TWO, "--sweep", "--fail", "1@5+5")


def values(html: str, class_: str) -> list[float]:
    """The exact values of figures of a class."""
    found = re.findall(rf'<data value="([^"]*)" class="{class_}"', html)
    return [float(value) for value in found]


def test_all_sections_are_there(made: dict[str, Any]) -> None:
    """Each with its heading, and linked from the head; every picture says what it is."""
    html = page(made)
    read = Reader(html)
    assert html.startswith('<!doctype html>\n<html lang="en">')
    ids = [attributes["id"] for tag, attributes in read.tags if tag == "section"]
    links = [str(attributes["href"]) for tag, attributes in read.tags if tag == "a"]
    assert ids == list(SECTIONS)
    assert set(links) == {f"#{id_}" for id_ in SECTIONS}
    pictures = [attributes for tag, attributes in read.tags if attributes.get("class") == "plot"]
    # Three times × two classes; goodput and two shares; five of time and one of place a policy.
    assert len(pictures) == 6 + 3 + 2 * 6
    assert all(attributes["aria-label"] for attributes in pictures)
    assert "down" in read.text


def test_figures_are_those_of_the_document(made: dict[str, Any]) -> None:
    """Exact values in the verdict and under the distributions, in the document's order."""
    html = page(made)
    policies = list(made["policies"].values())
    assert list(made["policies"]) == ["round_robin", "earliest_completion"]
    assert values(html, "goodput") == [one["goodput_per_s"] for one in policies]
    assert values(html, "capacity") == [one["capacity_per_s"] for one in policies]
    shares = [one["share_met"] for policy in policies for one in policy["classes"]]
    assert values(html, "(?:good|bad)") == shares
    tables = re.findall(r'<table class="quantiles">.*?</table>', html)
    found = [
        [float(value) for value in re.findall(r'<data value="([^"]*)"', table)] for table in tables
    ]
    assert found == [
        [value for policy in policies for value in policy["classes"][place][metric]]
        for place in range(2)
        for metric in ("ttft_s", "tpot_s", "e2e_s")
    ]


def test_inputs_are_there_to_repeat_it(made: dict[str, Any]) -> None:
    """The command, digest, seed and versions in the text; the same for programs."""
    html = page(made)
    text = Reader(html).text
    assert made["command"] in text
    assert made["workload"]["sha256"] in text
    assert f"gpt-oss-server {made['versions']['gpt-oss-server']}" in text
    inside = re.search(r'<script type="application/json" id="figures">(.*?)</script>', html)
    assert inside is not None
    figures = json.loads(inside.group(1))
    assert figures["inputs"] == made["inputs"]
    classes = made["policies"]["round_robin"]["classes"]
    assert figures["policies"]["round_robin"]["classes"] == classes


def test_nothing_is_fetched_and_nothing_runs(made: dict[str, Any]) -> None:
    """No address, no script but the data, and a policy that forbids both."""
    read = Reader(page(made))
    for tag, attributes in read.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form", "img"}
        assert tag != "script" or attributes["type"] == "application/json"
        assert not [name for name in attributes if name.startswith("on") or name == "src"]
        assert str(attributes.get("href", "#")).startswith("#")
    policies = [attributes for _, attributes in read.tags if "http-equiv" in attributes]
    assert str(policies[0]["content"]).startswith("default-src 'none'")
    assert "url(" not in page(made)
    assert "@import" not in page(made)


def test_names_cannot_become_markup(made: dict[str, Any]) -> None:
    """Whatever users can name: files, policies, problems, GPUs, classes, pools."""
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"
    spoilt = copy.deepcopy(made)
    spoilt["workload"]["name"] = spoilt["command"] = evil
    spoilt["workload"]["problem_lines"] = [evil]
    spoilt["inputs"]["model_name"] = evil
    spoilt["inputs"]["fleet"]["name"] = evil
    for pool in spoilt["inputs"]["fleet"]["pools"]:
        pool["shape"] = pool["gpu"]["title"] = pool["gpu"]["name"] = evil
        pool["gpu"]["calibrated"] = False
    policy = spoilt["policies"].pop("round_robin")
    spoilt["policies"][evil] = policy
    policy["where"]["pools"] = [evil, evil]
    policy["samples"]["rows"] = [f"{evil}/{row}" for row in policy["samples"]["rows"]]
    for one in policy["replicas"]:
        one["id"] = evil
    for name, figures in spoilt["policies"].items():
        figures["classes"][0]["name"] = evil
        figures["curves"][evil] = figures["curves"].pop("short")
        for point in figures["sweep"]["points"]:
            point["share_met"][evil] = point["share_met"].pop("short")
        assert name
    spoilt["inputs"]["slo"]["classes"][0]["name"] = evil
    read = Reader(page(spoilt))
    assert evil in read.text
    assert {tag for tag, _ in read.tags} == {tag for tag, _ in Reader(page(made)).tags} | {
        "aside",
    }
    assert [tag for tag, _ in read.tags].count("script") == 1
    assert not [a for _, a in read.tags if any(name.startswith("on") for name in a)]


def test_one_policy_needs_no_choice(tmp_path: Path) -> None:
    """No boxes to choose policies by; without a sweep the load section says how to get one."""
    html = page(document(tmp_path))
    assert 'type="checkbox"' not in html
    assert "<code>--sweep</code>" in html


def test_intervals_are_shown(tmp_path: Path) -> None:
    """With several seeds their means and ranges stand below the verdict."""
    found = document(tmp_path, "--seeds", "3")
    text = Reader(page(found)).text
    assert "Mean and 95 % interval over 3 workloads made with other seeds" in text
    goodput = found["policies"]["earliest_completion"]["repeats"]["goodput_per_s"]
    assert f"{goodput['mean']:.2f}/s ({goodput['low']:.2f}–{goodput['high']:.2f}/s)" in text


def big_outcome(requests: int, replicas: int) -> Outcome:
    """Many requests over a long time on a large fleet, none alike."""
    rng = np.random.default_rng(1)
    rows = [
        (float(at), int(tokens), 50, int(end), float(ttft), float(ttft + e2e), int(place))
        for at, tokens, end, ttft, e2e, place in zip(
            np.sort(rng.uniform(0, 43_200, requests)),
            rng.integers(1, 120_000, requests),
            rng.integers(0, 5, requests),
            rng.lognormal(0, 2, requests),
            rng.lognormal(2, 2, requests),
            rng.integers(0, replicas, requests),
            strict=True,
        )
    ]
    noisy = samples(4000, replicas, 10.8)
    noisy.utilization[:] = rng.uniform(0, 1, noisy.utilization.shape)
    noisy.kv_share[:] = rng.uniform(0, 1, noisy.kv_share.shape)
    noisy.decoding[:] = rng.integers(0, 256, noisy.decoding.shape)
    noisy.waiting[:] = rng.integers(0, 500, noisy.waiting.shape)
    return outcome(rows, ("h100-tp1",) * replicas, noisy, end_s=43_200.0)


@pytest.mark.parametrize(("replicas", "policies"), [(8, 10), (300, 10), (1000, 1)])
def test_size(replicas: int, policies: int, made: dict[str, Any]) -> None:
    """Under 1 MB even for ten policies, hundreds of replicas and noise everywhere."""
    slo = Slo()
    run = big_outcome(20_000, replicas)
    figures = as_json(run, judge(run, slo), slo, policies)
    fleet = Fleet((Pool(replica(), replicas),))
    inputs = {**made["inputs"], "slo": slo_json(slo), "fleet": fleet_json(fleet, [Failure(3, 9.0)])}
    whole = {
        **made,
        "inputs": inputs,
        "policies": {f"policy_{number}": figures for number in range(policies)},
    }
    html = page(whole)
    assert len(html.encode()) < 1_000_000


ROWS = st.lists(
    st.tuples(
        st.floats(0, 10),
        st.integers(1, 200_000),
        st.integers(1, 3),
        st.integers(0, 4),
        st.floats(0, 1e4),
        st.floats(0, 1e4),
        st.integers(-1, 1),
    ),
    max_size=12,
)
CLASSES = st.lists(
    st.tuples(st.integers(1, 100_000), st.floats(1e-3, 1e3), st.floats(1e-4, 10)),
    max_size=3,
    unique_by=lambda one: one[0],
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(rows=ROWS, bounds=CLASSES, share=st.floats(0.01, 1.0), sampled=st.booleans())
def test_any_outcome_can_be_drawn(
    rows: list[tuple[float, int, int, int, float, float, int]],
    bounds: list[tuple[int, float, float]],
    share: float,
    sampled: bool,
    made: dict[str, Any],
) -> None:
    """Nobody came, nobody was served, answers of one token, times of zero, any classes: a page,
    whose coordinates are numbers within their pictures."""
    classes = [SloClass(f"c{n}", float(n), *rest) for n, *rest in sorted(bounds)]
    slo = Slo((*classes, SloClass("rest", math.inf, 1.0, 0.1)), share)
    run = outcome(rows, samples=samples(7, 2) if sampled else None)
    figures = json.loads(json.dumps(as_json(run, judge(run, slo), slo)))
    inputs = {**made["inputs"], "slo": json.loads(json.dumps(slo_json(slo)))}
    html = page({**made, "inputs": inputs, "policies": {"p": figures, "q": figures}})
    assert not re.search(r'="[^"<>]*(?:nan|inf|None)[^"<>]*"', html)
    plots = list(re.finditer(r'<svg viewBox="0 0 ([\d.]+) [\d.]+" class="plot".*?</svg>', html))
    assert len(plots) >= 7
    for plot in plots:
        for path in re.findall(r'<path d="M([\d. L]+)" class="curve', plot[0]):
            assert max(map(float, re.findall(r"[\d.]+", path))) <= float(plot[1])


def test_the_style_is_installed() -> None:
    """The package's data name it."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = data["tool"]["setuptools"]["package-data"]["gpt_oss_server"]
    package = ROOT / "src" / "gpt_oss_server"
    style = package / "simulate" / "html" / "report.css"
    assert style.is_file()
    assert any(fnmatch(str(style.relative_to(package)), pattern) for pattern in patterns)
