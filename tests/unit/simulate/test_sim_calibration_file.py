"""Calibration files: what is written comes back; what is wrong is named in one line."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml
from sim_builders import MODEL_120B
from sim_loops import HARDWARE, SERVED, TINY, TINY_COST, TRUE, loops

from gpt_oss_server.doctor.published import PUBLISHED
from gpt_oss_server.errors import ConfigError
from gpt_oss_server.memory.errors import ImpossibleSplit
from gpt_oss_server.simulate.calibrate.calibration_file import (
    Calibration,
    as_yaml,
    parse_calibration,
    told,
)
from gpt_oss_server.simulate.calibrate.judging import Spread
from gpt_oss_server.simulate.cost.gpu_types import gpu_type
from gpt_oss_server.simulate.cost.layout import EngineSettings, Shape
from gpt_oss_server.simulate.cost.roofline import Efficiency

WHOLE = Calibration(
    made_at="2026-11-23T12:00:00Z",
    source="http://127.0.0.1:8000",
    model="tiny",
    served=SERVED,
    shape=HARDWARE,
    efficiency=TRUE,
    errors={"fitted": {"e2e": Spread(9, 0.01, -0.005, 0.03)}, "held_out": {}},
    remarks=("said: so",),
    loops=tuple(loops()[:2]),
)
TEXT = as_yaml(WHOLE)


def test_round_trip() -> None:
    """Everything but the last digits of times comes back, the raw requests too."""
    back = parse_calibration("file", TEXT)
    assert replace(back, loops=()) == replace(WHOLE, loops=())
    for found, wanted in zip(back.loops, WHOLE.loops, strict=True):
        assert found.trial == wanted.trial
        assert len(found.rows) == len(wanted.rows)
        assert found.rows[3][:3] == (
            pytest.approx(wanted.rows[3].at_s, abs=1e-4),
            *wanted.rows[3][1:3],
        )
        assert found.figures().e2e_s == pytest.approx(wanted.figures().e2e_s, rel=1e-3)


def changed(**fields: object) -> str:
    """The file with other fields."""
    return yaml.safe_dump({**yaml.safe_load(TEXT), **fields})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no calibration file (not a mapping of fields)"),
        ("a: [", "while parsing a flow node"),
        ("a: 1", "no calibration file (format must be: gpt-oss-server calibration, version 1)"),
        (changed(speed=1), "unknown field speed"),
        (changed(efficiency={"overhead": -1}), "efficiency: overhead must be finite, and not"),
        (changed(efficiency={"overhead": "x"}), "could not convert string to float: 'x'"),
        (changed(efficiency={"zeal": 1.0}), "efficiency: unknown field zeal"),
        (changed(efficiency=3), "efficiency is not a mapping of fields"),
        (changed(server={"server": "x", "version": "1"}), "missing 1 required positional argument"),
        (
            changed(server={"server": "x", "version": "1", "model": "m", "kv_blocks": "many"}),
            "server.kv_blocks must be a int, not 'many'",
        ),
        (changed(gpu={"name": "x"}), "missing 6 required positional arguments"),
        (changed(tp=0), "tp and pp must be at least 1, not 0 and 1"),
        (changed(loops=[{"concurrency": 1}]), "'input_tokens'"),
    ],
)
def test_what_is_wrong_is_named(text: str, says: str) -> None:
    """One line with the file's name, whatever is wrong in it."""
    with pytest.raises(ConfigError) as caught:
        parse_calibration("cal.yaml", text)
    line = str(caught.value)
    assert line.startswith("cal.yaml: ")
    assert says in line
    assert "\n" not in line


def test_a_missing_field_is_named() -> None:
    """Without a needed field nothing is guessed."""
    content = yaml.safe_load(TEXT)
    del content["efficiency"]
    with pytest.raises(ConfigError, match=r"cal.yaml: no field efficiency"):
        parse_calibration("cal.yaml", yaml.safe_dump(content))


def test_numbers_that_yaml_reads_as_text() -> None:
    """1e-06 without a point is text in YAML 1.1, and a number here."""
    assert parse_calibration(
        "f", changed(efficiency={"sequence_s": "2e-06"})
    ).efficiency == replace(Efficiency(), sequence_s=2e-6)


def test_replicas_of_other_shapes() -> None:
    """The measured shape is as the server is; its GPU type has its efficiency elsewhere too; other
    types have the shipped one; unknown hardware has no other shape."""
    settings = EngineSettings()
    own = WHOLE.replica(TINY, TINY_COST, HARDWARE, settings)
    assert (own.settings.max_num_seqs, own.kv_blocks) == (32, 4000)
    with pytest.raises(ImpossibleSplit, match="only replicas like the measured one"):
        WHOLE.replica(TINY, TINY_COST, replace(HARDWARE, tp=2), settings)
    config = PUBLISHED["openai/gpt-oss-120b"]
    slow = replace(Efficiency(), overhead=5.0)
    h100 = replace(WHOLE, shape=Shape(gpu_type("h100")), efficiency=slow)
    two = h100.replica(config, MODEL_120B, Shape(gpu_type("h100"), 2), settings)
    other = h100.replica(config, MODEL_120B, Shape(gpu_type("h200"), 2), settings)
    assert two.settings is settings
    assert two.time.base_s(1) > 2 * other.time.base_s(1)


def test_limits_that_were_not_measured_are_refused() -> None:
    """Its own limits may be named, others not; the queue before it is free to choose."""
    asked = EngineSettings(max_num_seqs=32, max_waiting=7, max_wait_s=2.0)
    own = WHOLE.replica(TINY, TINY_COST, HARDWARE, asked).settings
    assert (own.max_num_seqs, own.max_batch_tokens) == (32, 256)
    assert (own.max_waiting, own.max_wait_s) == (7, 2.0)
    for name, value in (("max_num_seqs", 64), ("prefill_order", "fcfs"), ("admission", "engine")):
        with pytest.raises(ConfigError, match=f"^--{name.replace('_', '-')} {value}: the calibr"):
            WHOLE.replica(TINY, TINY_COST, HARDWARE, replace(asked, **{name: value}))  # type: ignore[arg-type]


def test_errors_as_a_table() -> None:
    """What was not measured is a dash."""
    lines = told(WHOLE.errors)
    assert lines[0].split() == ["fitted", "worst", "held", "out", "worst"]
    assert lines[3].split() == ["whole", "request", "1.0%", "+3.0%", "–", "–"]
