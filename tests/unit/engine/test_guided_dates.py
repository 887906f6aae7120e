"""Dates that guided decoding lets through are days that exist."""

from __future__ import annotations

import datetime
import json
import re
from typing import Any

import pytest

from gpt_oss_server.engine.guided_dates import DATE, with_real_dates
from gpt_oss_server.engine.guided_grammar import compiled
from guided_runs import of_schema, vocabulary


def test_every_day_of_some_years_and_no_other() -> None:
    """The pattern takes exactly the calendar's days: leap years, centuries, short months."""
    pattern = re.compile(DATE)
    for year in (1000, 1600, 1900, 1999, 2000, 2023, 2024, 2100, 9996, 9999):
        for month in range(1, 13):
            for day in range(32):
                try:
                    exists = bool(datetime.date(year, month, day))
                except ValueError:
                    exists = False
                text = f"{year:04}-{month:02}-{day:02}"
                assert bool(pattern.fullmatch(text)) == exists, text


@pytest.mark.parametrize(
    ("schema", "text", "taken"),
    [
        ({"format": "date"}, "2024-02-29", True),
        ({"format": "date"}, "2023-02-29", False),
        ({"format": "date"}, "0000-01-01", False),
        ({"format": "date", "pattern": "^2"}, "2024-02-29", True),
        ({"format": "date", "pattern": "^2"}, "1999-01-01", False),
        ({"format": "date", "pattern": "^2"}, "2023-02-29", False),
        ({"format": "date-time"}, "2023-02-28T23:59:59Z", True),
        ({"format": "date-time"}, "2023-02-28T23:59:59.25+01:00", True),
        ({"format": "date-time"}, "2023-02-28T23:59:60Z", False),
        ({"format": "date-time"}, "2023-02-29T00:00:00Z", False),
    ],
)
def test_what_a_matcher_takes(schema: dict[str, Any], text: str, taken: bool) -> None:
    """Beside a schema's own pattern too."""
    matcher = compiled(vocabulary().tokenizer, of_schema({"type": "string", **schema}))
    ids = [vocabulary().byte_ids[byte] for byte in json.dumps(text).encode()]
    assert (matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()) == taken


@pytest.mark.parametrize(
    "schema",
    [
        {"const": {"format": "date"}},
        {"enum": [{"format": "date"}]},
        {"properties": {"format": {"const": "date"}}},
        {"type": "string", "format": "uuid", "title": "date"},
        {"format": ["date"]},
    ],
)
def test_values_are_left_alone(schema: dict[str, Any]) -> None:
    """What only looks like a format is not one."""
    assert json.loads(with_real_dates(json.dumps(schema))) == schema


def test_nothing_is_read_without_need() -> None:
    """A schema without dates is handed on as it is."""
    text = json.dumps({"type": "integer", "minimum": 7})
    assert with_real_dates(text) is text
