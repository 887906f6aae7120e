"""The page on routing names every setting with its default, and its arithmetic is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from gpt_oss_server.admission import AdmissionConfig
from gpt_oss_server.routing import RoutingConfig

PAGE = Path(__file__).parents[3] / "docs" / "routing.md"


@pytest.mark.parametrize("config", [RoutingConfig(), AdmissionConfig()])
def test_every_setting_is_documented_with_its_default(config: msgspec.Struct) -> None:
    """A row of a table for each field, and the number in it is the code's."""
    page = PAGE.read_text()

    def shown(value: Any) -> str:
        return f"`{value}`" if isinstance(value, str) else f"{value:g}"

    missing = [
        name
        for name, value in msgspec.structs.asdict(config).items()
        if f"| `{name}` | {shown(value)} |" not in page
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("tokens", "layers", "megabytes"),
    [
        (4000, 12, "96.75"),
        (8000, 12, "190.5"),
        (32_768, 12, "771"),
        (131_072, 12, "3,075"),
        (8000, 18, "285.8"),
        (32_768, 18, "1,156.5"),
        (131_072, 18, "4,612.5"),
    ],
)
def test_the_table_of_kv_sizes(tokens: int, layers: int, megabytes: str) -> None:
    """Full layers by token plus the windows, in MB, as the page prints them."""
    value = layers * 2048 * (tokens + 128) / 2**20
    assert float(megabytes.replace(",", "")) == pytest.approx(value, abs=0.051)
    assert f" {megabytes} |" in PAGE.read_text()
