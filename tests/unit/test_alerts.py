"""The alert rules as files: valid, documented, made of metrics that exist, and each with a case
in which it fires and one in which it does not."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpt_oss_server.telemetry.catalog import BY_NAME

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
RULE_FILES = sorted((FOLDER / "rules").glob("*.yml"))
TEST_FILES = sorted((FOLDER / "tests").glob("*.yml"))
RULES: list[dict[str, Any]] = [
    rule
    for path in RULE_FILES
    for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
DOCS = (ROOT / "docs" / "alerts.md").read_text(encoding="utf-8")

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="needs the program promtool (Debian package `prometheus`)",
)


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


@needs_promtool
def test_promtool_takes_the_rules() -> None:
    """Every expression and every template parses."""
    done = promtool("check", "rules", *map(str, RULE_FILES))
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should(path: Path) -> None:
    """The cases of this file, run by `promtool test rules`."""
    done = promtool("test", "rules", str(path))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_firing_and_a_quiet_case() -> None:
    """No alert is without either."""
    firing, quiet = set(), set()
    for path in TEST_FILES:
        for case in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]:
            for check in case["alert_rule_test"]:
                (firing if check["exp_alerts"] else quiet).add(check["alertname"])
    assert firing == set(ALERTS)
    assert quiet == set(ALERTS)


def test_cases_use_metrics_and_labels_that_exist() -> None:
    """The series of the cases could come from the server: else they would prove nothing."""
    for path in TEST_FILES:
        for case in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]:
            for series in case["input_series"]:
                name, _, labels = series["series"].partition("{")
                if name != "up":
                    known = {"job", "instance", *BY_NAME[name].labels}
                    assert set(re.findall(r"(\w+)=", labels)) <= known, series["series"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_rules_use_metrics_and_labels_that_exist(rule: dict[str, Any]) -> None:
    """Every name in an expression is of the catalogue, recorded by another rule, or `up`; every
    matched label is one that the metric has."""
    expression = re.sub(r"\b(?:by|on|ignoring|group_left) \([^)]*\)", "", rule["expr"])
    names = set(re.findall(r"\b(?:gpt_oss|vllm|llm|gpu|job)_?[\w:]*\b|\bup\b", expression))
    # Recorded names have their own names inside; `gpu` and `job` alone are labels.
    metrics = {name for name in names if name in BY_NAME}
    assert names - metrics - RECORDED - {"up", "gpt_oss", "gpu", "job"} == set()
    assert metrics or names & (RECORDED | {"up"})
    for name, matchers in re.findall(r"([\w:]+)\{([^}]*)\}", expression):
        if name in BY_NAME:
            assert set(re.findall(r"(\w+)(?:=~|!~|!=|=)", matchers)) <= set(BY_NAME[name].labels)


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_says_what_to_do(name: str) -> None:
    """A severity, a summary, and a runbook section that exists and says what it means."""
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["runbook"] == f"docs/alerts.md#{name.lower()}"
    _, found, section = DOCS.partition(f"\n### {name}\n\n")
    assert found
    assert section.startswith("*Means* ")


def test_no_section_is_about_an_alert_that_is_gone() -> None:
    """The runbook has sections for these alerts and no others."""
    assert set(re.findall(r"^### (\w+)$", DOCS, re.MULTILINE)) == set(ALERTS)


def test_links_of_the_runbook_lead_somewhere() -> None:
    """Files exist, and sections of our own pages do."""
    for target in re.findall(r"\]\(([^)]+)\)", DOCS):
        path, _, section = target.partition("#")
        file = (ROOT / "docs" / path) if path else ROOT / "docs" / "alerts.md"
        assert file.exists(), target
        if section:
            text = file.read_text(encoding="utf-8")
            headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in headings}
            assert section in anchors, target


def test_settings_named_in_the_runbook_exist() -> None:
    """A flag of `serve`, or one of the few of other commands."""
    from gpt_oss_server.config import TABLE

    flags = {row.flag for row in TABLE} | {"--set", "--url", "--gpu-memory"}
    assert set(re.findall(r"(--[a-z][a-z0-9-]+)", DOCS)) <= flags
