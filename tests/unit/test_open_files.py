"""The open-file limit: as much as may be had, and what it leaves for connections."""

from __future__ import annotations

import resource

import pytest

from gpt_oss_server.open_files import connection_bound, raise_open_file_limit

NONE = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "after"),
    [
        (1024, 4096, 4096),  # what is allowed
        (1024, 2**20, 65_536),  # and no more than is of use
        (1024, NONE, 65_536),
        (4096, 4096, 4096),  # nothing to gain
        (100_000, NONE, 100_000),  # never lowered
        (NONE, NONE, 65_536),
    ],
)
def test_the_limit_is_raised(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, after: int
) -> None:
    """The soft limit goes up to the hard one, which stays."""
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: limits.append(both))
    assert raise_open_file_limit() == after
    assert limits[-1][1] == hard
    assert len(limits) == 1 or limits[-1][0] == after


def test_a_sandbox_may_forbid_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the limit is what it was."""

    def forbid(which: int, both: tuple[int, int]) -> None:
        raise PermissionError

    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", forbid)
    assert raise_open_file_limit() == 1024


def test_connections_leave_room_for_the_rest() -> None:
    """256 files are kept free, or half of them where there are few."""
    assert [connection_bound(n) for n in (65_536, 1024, 512, 300, 1)] == [65_280, 768, 256, 150, 1]
