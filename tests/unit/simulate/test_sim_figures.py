"""What is drawn of a run: counted and averaged, never picked."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sim_documents import outcome, samples

from gpt_oss_server.simulate.results.figures import CELLS, COLUMNS, CURVE_PERCENTILES, ROWS, figures
from gpt_oss_server.simulate.results.outcome import DROPPED, FAILED, REFUSED, SERVED, Outcome
from gpt_oss_server.simulate.results.slo import Slo, SloClass, class_places, judge, kept

NAN = math.nan
SLO = Slo((SloClass("short", 100, 1.0, 0.1), SloClass("long", math.inf, 2.0, 0.1)))
# In time; first token late; steps slow; in time and long; turned away; too large; died on.
ROWS_OF_ALL_KINDS = [
    (0.0, 10, 11, SERVED, 0.5, 1.0, 0),
    (1.0, 100, 11, SERVED, 1.5, 2.0, 0),
    (2.0, 20, 11, SERVED, 0.5, 2.0, 1),
    (3.0, 101, 11, SERVED, 1.5, 2.0, 1),
    (9.9, 30, 11, DROPPED, NAN, NAN, -1),
    (9.9, 5000, 11, REFUSED, NAN, NAN, -1),
    (9.9, 40, 11, FAILED, NAN, NAN, 1),
]


def test_who_was_served_as_promised() -> None:
    """A prompt exactly as long as a class's bound is in it; both promises must be kept."""
    run = outcome(ROWS_OF_ALL_KINDS)
    assert class_places(run, SLO).tolist() == [0, 0, 0, 1, 0, 1, 0]
    assert kept(run, SLO).tolist() == [True, False, False, True, False, False, False]
    report = judge(run, SLO)
    assert [(one.requests, one.met) for one in report.classes] == [(5, 1), (2, 1)]
    assert report.goodput_per_s == 0.2


def test_curves_are_quantiles_of_those_served() -> None:
    """From the least to the most; the median of three is the middle one."""
    curves = figures(outcome(ROWS_OF_ALL_KINDS), SLO)["curves"]
    middle = CURVE_PERCENTILES.index(50.0)
    ttft_s = curves["short"]["ttft_s"]
    assert (ttft_s[0], ttft_s[middle], ttft_s[-1]) == (0.5, 0.5, 1.5)
    assert curves["short"]["tpot_s"][-1] == 0.15
    assert curves["long"]["e2e_s"] == [2.0] * len(CURVE_PERCENTILES)
    nobody = outcome([(0.0, 10, 5, DROPPED, NAN, NAN, -1)])
    assert figures(nobody, SLO)["curves"]["short"] == {
        "ttft_s": None,
        "tpot_s": None,
        "e2e_s": None,
    }


def test_where_classes_and_lengths_ran() -> None:
    """Rows by class, columns by pool, the last for those sent nowhere; lengths by powers of two."""
    where = figures(outcome(ROWS_OF_ALL_KINDS), SLO)["where"]
    assert (where["pools"], where["classes"]) == (["a", "b"], ["short", "long"])
    assert where["counts"] == [[2, 2, 1], [0, 1, 1]]
    by_length = where["by_length"]
    assert by_length["edges"] == [16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192]
    assert by_length["counts"][0] == [1, 0, 0]
    assert by_length["counts"][1] == [0, 1, 1]
    assert by_length["counts"][3] == [1, 1, 0]
    assert by_length["counts"][9] == [0, 0, 1]


def test_ends_by_time_of_arrival() -> None:
    """Each request once, in the bin of its arrival; kinds that never happened are not there."""
    ends = figures(outcome(ROWS_OF_ALL_KINDS), SLO)["ends"]
    assert ends["bin_s"] == 10.0 / (COLUMNS // 2)
    assert set(ends["counts"]) == {"as_promised", "too_late", "refused", "dropped", "failed"}
    assert sum(map(sum, ends["counts"].values())) == 7
    assert [place for place, n in enumerate(ends["counts"]["too_late"]) if n] == [8, 16]
    assert ends["counts"]["dropped"][79] == 1


def test_samples_are_averaged_in_stretches() -> None:
    """Ten moments to a column at most; the peak of waiting is kept; the first, empty one is not."""
    run = outcome(ROWS_OF_ALL_KINDS, samples=samples(COLUMNS * 2, 2))
    found = figures(run, SLO)["samples"]
    assert (found["bin_s"], found["rows"], found["replicas"]) == (2.0, ["a/000", "b/001"], [1, 1])
    assert len(found["utilization"][0]) == COLUMNS
    assert found["utilization"][0][:2] == [round(1.5 / 320, 3), round(3.5 / 320, 3)]
    assert found["kv_share"][1][0] == 0.5
    assert found["waiting"][0][:2] == [1.5, 3.5]
    assert found["waiting_most"][:2] == [4, 8]


def test_no_samples_no_figure() -> None:
    """A run that was not looked at, or only before it began."""
    assert figures(outcome(ROWS_OF_ALL_KINDS), SLO)["samples"] is None
    once = outcome(ROWS_OF_ALL_KINDS, samples=samples(0, 2))
    assert figures(once, SLO)["samples"] is None


def test_many_replicas_share_rows_within_their_pool() -> None:
    """At most ROWS rows; a row is named after its first and last replica."""
    pools = ("a",) * 150 + ("b",) * 2
    run = outcome(ROWS_OF_ALL_KINDS, pools, samples(50, len(pools)))
    found = figures(run, SLO)["samples"]
    assert found["replicas"] == [3] * 50 + [2]
    assert (found["rows"][0], found["rows"][-1]) == ("a/000–002", "b/150–151")
    assert found["waiting"][0][0] == 3.0
    assert found["utilization"][0][0] == 0.02


@given(
    moments=st.integers(1, 3000),
    replicas=st.integers(1, 200),
    policies=st.integers(1, 12),
)
def test_size_is_bounded(moments: int, replicas: int, policies: int) -> None:
    """However long a run and however large a fleet: few rows and columns, all requests counted."""
    run: Outcome = outcome(ROWS_OF_ALL_KINDS, ("a",) * replicas, samples(moments, replicas))
    found = figures(run, SLO, policies)["samples"]
    rows, columns = len(found["rows"]), len(found["utilization"][0])
    assert rows <= ROWS
    assert columns <= COLUMNS
    assert rows * columns * policies <= max(CELLS, rows * policies * 24)
    assert sum(found["replicas"]) == replicas
    assert found["bin_s"] * columns >= moments > found["bin_s"] * (columns - 1)


def test_a_mean_is_kept_by_thinning() -> None:
    """Where stretches are full, the mean of the columns is the mean of the moments."""
    run = outcome(ROWS_OF_ALL_KINDS, samples=samples(COLUMNS * 3, 2))
    found = figures(run, SLO)["samples"]
    assert run.samples is not None
    whole = float(run.samples.waiting[1:].mean())
    assert float(np.mean(found["waiting"])) == pytest.approx(whole)
