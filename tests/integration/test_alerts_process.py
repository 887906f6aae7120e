"""A missed target travels all the way: server, Prometheus, rule, Alertmanager, webhook."""

from __future__ import annotations

import queue
import re
from pathlib import Path

from alertmanager_process import Webhook, alertmanager, needs_alertmanager
from app_process import client, running
from prometheus_process import needs_prometheus, prometheus

RULES = Path(__file__).parents[2] / "deploy" / "prometheus" / "rules"
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
FASTER = 60
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
REQUESTS_A_TRY, TRIES = 10, 300


def faster(rules: str) -> str:
    """The rules with every window, wait and interval a sixtieth; nothing under a second."""

    def shorter(match: re.Match[str]) -> str:
        seconds = int(match[2]) * UNITS_S[match[3]]
        return f"{match[1]}{max(1, seconds // FASTER)}s{match[4]}"

    rules = re.sub(r"(\[)(\d+)([smhd])(\])", shorter, rules)
    return re.sub(r"((?:for|interval): )(\d+)([smhd])()$", shorter, rules, flags=re.MULTILINE)


def test_time_runs_faster() -> None:
    """Windows and waits shrink; names that contain a window stay."""
    text = "record: rate5m\nexpr: rate(x[5m])\nfor: 2m\ninterval: 30s\n"
    assert faster(text) == "record: rate5m\nexpr: rate(x[5s])\nfor: 2s\ninterval: 1s\n"


@needs_prometheus
@needs_alertmanager
def test_a_missed_target_reaches_the_webhook(tmp_path: Path) -> None:
    """With a target that nothing can meet, the page that the rules promise arrives."""
    for path in RULES.glob("*.yml"):
        (tmp_path / path.name).write_text(faster(path.read_text(encoding="utf-8")))
    with (
        Webhook() as webhook,
        alertmanager(tmp_path, webhook.url) as to_alertmanager,
        running("steered", "--max-p95-ttft-seconds", "0.000001") as server,
    ):
        url = server.url()
        config = {
            "rule_files": [str(tmp_path / path.name) for path in RULES.glob("*.yml")],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [to_alertmanager]}]}]},
        }
        target = url.removeprefix("http://")
        with prometheus(tmp_path, [target], **config) as api, client(url) as http:
            api.until("gpt_oss_engine_ready == 1")
            alert = None
            for _ in range(TRIES):
                for _ in range(REQUESTS_A_TRY):
                    assert http.post("/v1/chat/completions", json=CHAT).is_success
                try:
                    notification = webhook.notifications.get(timeout=0.2)
                except queue.Empty:
                    continue
                if notification["groupLabels"]["alertname"] == "GptOssTtftBudgetBurnsFast":
                    (alert,) = notification["alerts"]
                    break
            assert alert is not None
    assert alert["status"] == "firing"
    assert alert["labels"] == {
        "alertname": "GptOssTtftBudgetBurnsFast",
        "job": "gpt-oss-server",
        "severity": "page",
        "slo": "ttft",
    }
    assert alert["annotations"] == {
        "summary": "100% of requests to gpt-oss-server wait too long for their first token "
        "(5 % may)",
        "runbook": "docs/alerts.md#gptossttftbudgetburnsfast",
    }
