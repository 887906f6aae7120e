"""The fit finds what made the points, and says honestly how well it foresees others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from sim_builders import MODEL_120B

from gpt_oss_server.errors import ConfigError, StartupError
from gpt_oss_server.simulate.calibrate.calibration import (
    Fit,
    Point,
    accuracy,
    fit,
    leave_one_out,
    predict,
)
from gpt_oss_server.simulate.calibrate.measurements import read_points
from gpt_oss_server.simulate.cost.gpu_types import gpu_type
from gpt_oss_server.simulate.cost.roofline import Efficiency

TRUE = Fit(Efficiency(1.1, 20e-6, 2e-6, 0.5, 0.3, 0.02), {"h100": 0.9, "h200": 0.75})


def made_points(truth: Fit = TRUE) -> list[Point]:
    """Closed loops as the truth would have run them."""
    points = []
    for gpu, tps in (("h100", (1, 2, 8)), ("h200", (1, 4))):
        for tp in tps:
            for concurrency in (2, 8, 64):
                for prompt, answer in ((900.0, 900.0), (7000.0, 900.0), (900.0, 7000.0)):
                    asked = Point(gpu_type(gpu), tp, concurrency, prompt, answer, None)
                    tpot_s, ttft_s = predict(asked, MODEL_120B, truth)
                    points.append(replace(asked, tpot_s=tpot_s, ttft_s=ttft_s))
    return points


def test_the_fit_finds_what_made_the_points() -> None:
    """Exact points give back every efficiency, without a starting point."""
    found = fit(made_points(), MODEL_120B)
    for name in ("overhead", "sequence_s", "hop_latency_s", "link", "compute", "first_token_s"):
        wanted = getattr(TRUE.efficiency, name)
        assert getattr(found.efficiency, name) == pytest.approx(wanted, rel=1e-3), name
    assert found.bandwidth == pytest.approx(TRUE.bandwidth, rel=1e-3)
    assert accuracy(made_points(), MODEL_120B, found).mean_absolute < 1e-3


def test_one_wild_point_moves_little() -> None:
    """Least absolute errors: a measurement ten times too slow does not spoil the others."""
    points = made_points()
    assert points[4].tpot_s is not None
    wild = [*points[:4], replace(points[4], tpot_s=10 * points[4].tpot_s), *points[5:]]
    found = fit(wild, MODEL_120B)
    assert accuracy(points, MODEL_120B, found).mean_absolute < 0.01


def test_leaving_one_degree_out() -> None:
    """What is held out is foreseen from the rest; each group is reported by its own."""
    found = leave_one_out(made_points(), MODEL_120B, key=lambda point: point.tp)
    assert set(found) == {1, 2, 4, 8}
    assert all(one.mean_absolute < 0.01 for one in found.values())
    assert found[1].points == 18


def test_a_type_without_points_takes_the_mean_share() -> None:
    """A GPU that was never measured is assumed to attain what the measured ones do."""
    assert TRUE.gpu(gpu_type("b200")).bandwidth_efficiency == pytest.approx(0.825)
    assert TRUE.gpu(gpu_type("h200")).bandwidth_efficiency == 0.75


def test_nothing_to_fit() -> None:
    """No points is a clear error, as is asking for the accuracy of none."""
    with pytest.raises(ConfigError, match="at least one measured point"):
        fit([], MODEL_120B)
    bare = Point(gpu_type("h100"), 1, 1, 10, 10, None)
    with pytest.raises(ConfigError, match="no point has"):
        accuracy([bare], MODEL_120B, TRUE)


HEADER = "hw,isl,osl,tp,ep,conc,mean_tpot,median_ttft\n"


def test_reading_published_points(tmp_path: Path) -> None:
    """Lengths are nine tenths of the nominal ones; rows that cannot be used are named."""
    path = tmp_path / "points.csv"
    path.write_text(
        HEADER
        + "h100,1000,2000,2.0,1.0,16,0.008,0.06\n"
        + "mi300,1000,2000,2.0,1.0,16,0.008,0.06\n"
        + "h100,1000,2000,2.0,8.0,16,0.008,0.06\n"
        + "h100,1000,2000,2.0,1.0,16,nan,0.06\n"
        + "h100,1000,2000,2.0,1.0,16,,0.06\n"
    )
    points, problems = read_points(path)
    assert points == [Point(gpu_type("h100"), 2, 16, 900.0, 1800.0, 0.008, 0.06)]
    assert problems == [
        "line 3: unknown GPU type mi300",
        "line 4: expert parallelism is not modelled",
        "line 5: mean_tpot is nan",
        "line 6: could not convert string to float: ''",
    ]


def test_files_that_are_no_measurements(tmp_path: Path) -> None:
    """Missing, empty, without columns: one line each."""
    path = tmp_path / "points.csv"
    with pytest.raises(StartupError, match="cannot read"):
        read_points(path)
    path.write_text("")
    with pytest.raises(ConfigError, match="empty"):
        read_points(path)
    path.write_text("hw,isl\nh100,1\n")
    with pytest.raises(ConfigError, match="no column osl, tp, conc, mean_tpot, median_ttft"):
        read_points(path)
