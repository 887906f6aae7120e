"""A start-up's phases: which, how long, in what words."""

from __future__ import annotations

import pytest

from gpt_oss_server.engine.phases import Phases, summary
from gpt_oss_server.types import StartPhase


def test_phases_are_timed_in_order() -> None:
    """Each has its own seconds; one that comes twice has both, in its first place."""
    moments = iter([10.0, 12.5, 20.0, 20.25, 30.0, 31.0])
    phases = Phases(lambda: next(moments))
    with phases.during("load"):
        pass
    with phases.during("profile"):
        pass
    with phases.during("load"):
        pass
    phases.skip("capture", "--eager")
    assert phases.passed == (
        StartPhase("load", 3.5),
        StartPhase("profile", 0.25),
        StartPhase("capture", None, "--eager"),
    )
    assert summary(phases.passed) == "load 3.5 s, profile 0.2 s, capture skipped (--eager)"


def test_a_phase_that_fails_is_not_noted() -> None:
    """Its exception goes on, and nobody says that it has passed."""
    phases = Phases()
    with pytest.raises(ValueError, match="no weights"), phases.during("load"):
        raise ValueError("no weights")
    assert phases.passed == ()
