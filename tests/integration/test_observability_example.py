"""The observability example: the script brings up what it says, and the compose file mounts what
is there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from alertmanager_process import needs_alertmanager
from app_process import running
from prometheus_process import Prometheus, free_port, needs_prometheus

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "observability"
SCRIPT = EXAMPLE / "run.sh"


def until_known(api: Prometheus) -> list[str]:
    """The Alertmanagers that Prometheus tells, once there are any."""
    pause = threading.Event()
    for _ in range(300):
        if known := api.get("alertmanagers")["activeAlertmanagers"]:
            return [one["url"] for one in known]
        pause.wait(0.1)  # another process gives no event to wait for
    raise AssertionError("no Alertmanager within 30 s")


@needs_prometheus
@needs_alertmanager
def test_the_script_brings_up_prometheus_and_alertmanager(tmp_path: Path) -> None:
    """The server is scraped, our alerts are loaded, Alertmanager is known; SIGTERM ends it all."""
    with running("steered") as server:
        url = server.url()
        server.read_until("ready")
        address = f"127.0.0.1:{free_port()}"
        to_alertmanager = f"127.0.0.1:{free_port()}"
        environ = os.environ | {
            "SERVER": url.removeprefix("http://"),
            "PROMETHEUS": address,
            "ALERTMANAGER": to_alertmanager,
            "DATA": str(tmp_path),
        }
        script = subprocess.Popen([SCRIPT], env=environ, stdout=subprocess.PIPE, text=True)
        api = Prometheus(f"http://{address}")
        try:
            api.until('up{job="gpt-oss-server"} == 1')
            api.until("gpt_oss_build_info")
            groups = api.get("rules")["groups"]
            known = until_known(api)
        finally:
            api.close()
            script.send_signal(signal.SIGTERM)
            said, _ = script.communicate(timeout=30)
    loaded = {rule["name"] for group in groups for rule in group["rules"]}
    assert script.returncode == 0
    assert said.splitlines() == [
        f"scraping      {url}/metrics",
        f"Prometheus    http://{address}/alerts",
        f"Alertmanager  http://{to_alertmanager}",
    ]
    written = yaml.safe_load((ROOT / "deploy/prometheus/rules/alerts.yml").read_text())
    assert loaded >= {rule["alert"] for group in written["groups"] for rule in group["rules"]}
    assert known == [f"http://{to_alertmanager}/api/v2/alerts"]


@needs_prometheus
@needs_alertmanager
def test_the_script_says_what_is_wrong(tmp_path: Path) -> None:
    """A configuration that Alertmanager refuses ends it, with what Alertmanager said."""
    (tmp_path / "alertmanager.yml").write_text("route: {receiver: nobody}\n")
    environ = os.environ | {
        "PROMETHEUS": f"127.0.0.1:{free_port()}",
        "ALERTMANAGER": f"127.0.0.1:{free_port()}",
        "ALERTMANAGER_CONFIG": str(tmp_path / "alertmanager.yml"),
        "DATA": str(tmp_path),
    }
    done = subprocess.run(
        [SCRIPT], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "error: one of them ended" in done.stderr
    assert "nobody" in done.stderr


def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((EXAMPLE / "compose.yaml").read_text())
    return content


def test_compose_mounts_what_is_there() -> None:
    """Every mounted path exists, every other volume is declared."""
    content = compose()
    for service in content["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (EXAMPLE / source).resolve().exists(), source
            else:
                assert source in content["volumes"]


def test_compose_shows_nothing_to_others() -> None:
    """Ports are published on this machine alone, and images have versions."""
    for service in compose()["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert not service["image"].endswith(":latest")
        assert ":" in service["image"]


def test_compose_and_configuration_agree() -> None:
    """The names in Prometheus's and Grafana's files are services with these ports, and the
    dashboards are where Grafana is told to look."""
    services = compose()["services"]
    prometheus = yaml.safe_load((EXAMPLE / "prometheus.yml").read_text())
    (target,) = prometheus["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]
    assert target.partition(":")[0] in services
    provisioning = ROOT / "deploy" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"
    assert source["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "gpt-oss-server.yaml").read_text())[
        "providers"
    ]
    mounts = dict(
        reversed(volume.split(":")[:2])  # type: ignore[misc]
        for volume in services["grafana"]["volumes"]
    )
    folder = (EXAMPLE / mounts[provider["options"]["path"]]).resolve()
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert json.loads((folder / Path(home).name).read_text())["uid"] == "gpt-oss-overview"


@pytest.mark.skipif(shutil.which("amtool") is None, reason="needs amtool (Debian: alertmanager)")
def test_amtool_takes_the_configuration() -> None:
    """Alertmanager's own checker finds no fault, and pages go to `pages`."""
    config = str(EXAMPLE / "alertmanager.yml")
    to_pages = [f"--config.file={config}", "--verify.receivers=pages", "severity=page"]
    for arguments in (["check-config", config], ["config", "routes", "test", *to_pages]):
        done = subprocess.run(["amtool", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@needs_prometheus
def test_promtool_takes_the_configuration(tmp_path: Path) -> None:
    """With the rules beside it, as compose mounts them, Prometheus's file is valid."""
    shutil.copy(EXAMPLE / "prometheus.yml", tmp_path)
    shutil.copytree(ROOT / "deploy" / "prometheus" / "rules", tmp_path / "rules")
    done = subprocess.run(
        ["promtool", "check", "config", str(tmp_path / "prometheus.yml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rules found" in done.stdout
