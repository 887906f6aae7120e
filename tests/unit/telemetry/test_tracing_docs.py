"""The page on traces names every span and every attribute, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from trace_records import record

from gpt_oss_server.config import Settings
from gpt_oss_server.telemetry import genai
from gpt_oss_server.telemetry.tracing import CAPACITY, CLOSE_WAIT_S, EXPORT_TIMEOUT_S
from gpt_oss_server.telemetry.tracing_otlp import SERVICE_NAME
from gpt_oss_server.telemetry.tracing_spans import trace_of

PAGE = (Path(__file__).parents[3] / "docs" / "tracing.md").read_text(encoding="utf-8")
ATTRIBUTE = re.compile(r"`((?:gen_ai|routing|http|error|gpt_oss_server)\.[a-z_.]+)`")


def test_every_attribute_is_documented_and_no_other() -> None:
    """Each constant that names an attribute is on the page; each name there is a constant."""
    names = {value for name, value in vars(genai).items() if name.isupper()}
    values = {genai.PROVIDER, genai.OPERATION_CHAT, genai.OPERATION_TEXT_COMPLETION}
    assert set(ATTRIBUTE.findall(PAGE)) == names - values


def test_every_span_is_documented() -> None:
    """By its name, in the table of spans."""
    for operation in ("chat", "text_completion"):
        for span in trace_of(record(operation=operation)).spans:
            assert f"`{span.name}`" in PAGE


def test_the_figures_are_those_of_the_code() -> None:
    """Defaults and bounds as the code has them."""
    settings = Settings()
    assert f"`--trace-slow-s` ({settings.trace_slow_s:g})" in PAGE
    assert f"`--trace-sample-rate` ({settings.trace_sample_rate:g})" in PAGE
    assert f"at most {CAPACITY} requests wait" in PAGE
    assert f"each sending gets {EXPORT_TIMEOUT_S:g} seconds" in PAGE
    assert CLOSE_WAIT_S < 1
    assert f"(default `{SERVICE_NAME}`)" in PAGE
