"""NCCL settings: what is set, when, and that the user's value wins."""

from __future__ import annotations

import pytest

from gpt_oss_server.facts import GpuMode
from gpt_oss_server.nccl import nccl_environment

ALL = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    "NCCL_ASYNC_ERROR_HANDLING": "1",
    "NCCL_MIN_NCHANNELS": "4",
    "NCCL_BUFFSIZE": "8388608",
    "NCCL_P2P_DISABLE": "0",
}


@pytest.mark.parametrize(
    ("gpus", "mode", "applied"),
    [
        (8, "tensor", ALL),
        (4, "pipeline", ALL),
        (4, "auto", ALL),
        (3, "tensor", {}),
        (8, "single", {}),
        (1, "tensor", {}),
    ],
)
def test_when_they_are_set(gpus: int, mode: GpuMode, applied: dict[str, str]) -> None:
    """From four GPUs on, in the modes that use several."""
    settings = nccl_environment(gpus, mode, {"PATH": "/bin"})
    assert (dict(settings.applied), dict(settings.kept_from_user)) == (applied, {})


def test_the_user_wins_and_is_reported() -> None:
    """A value that is there stays, also one that says the same; others are set beside it."""
    environ = {"NCCL_P2P_DISABLE": "1", "NCCL_MIN_NCHANNELS": "4", "NCCL_BUFFSIZE": "", "HOME": "/"}
    settings = nccl_environment(4, "tensor", environ)
    assert settings.kept_from_user == {"NCCL_P2P_DISABLE": "1", "NCCL_MIN_NCHANNELS": "4"}
    assert settings.overridden == {"NCCL_P2P_DISABLE": "1"}
    settings.apply(environ)
    assert environ == {**ALL, "NCCL_P2P_DISABLE": "1", "HOME": "/"}
    again = nccl_environment(4, "tensor", environ)
    assert again.applied == {}, "applying is done once"


@pytest.mark.parametrize("name", ["TORCH_NCCL_ASYNC_ERROR_HANDLING", "NCCL_ASYNC_ERROR_HANDLING"])
def test_two_names_of_one_setting(name: str) -> None:
    """Who turned asynchronous errors off by either name is not contradicted by the other."""
    settings = nccl_environment(4, "tensor", {name: "0"})
    assert not set(settings.applied) & {k for k in ALL if k.endswith("ASYNC_ERROR_HANDLING")}
    assert settings.kept_from_user == {name: "0"}


def test_what_the_user_set_counts_below_four_gpus_too() -> None:
    """Two GPUs have a communicator as well, so the user's values are reported; one has none."""
    environ = {"NCCL_P2P_DISABLE": "1"}
    assert nccl_environment(2, "tensor", environ).kept_from_user == environ
    assert nccl_environment(1, "tensor", environ).kept_from_user == {}
    assert nccl_environment(8, "single", environ).kept_from_user == {}


def test_nothing_is_written_by_asking() -> None:
    """The question leaves the environment as it was."""
    environ = {"NCCL_P2P_DISABLE": "1"}
    nccl_environment(8, "tensor", environ)
    assert environ == {"NCCL_P2P_DISABLE": "1"}
