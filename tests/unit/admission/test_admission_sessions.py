"""Sessions: reuse, limits, and who goes first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_oss_server.admission import SessionConfig, SessionTable
from gpt_oss_server.errors import ConfigError


def used(table: SessionTable, key: str, now_s: float, tokens: int, kv_bytes: int) -> None:
    """One request of a session, over at once."""
    session, _ = table.begin(key, now_s)
    assert session is not None
    table.end(key, now_s, tokens, kv_bytes)


def test_a_session_is_reused() -> None:
    """The second request finds the prefix of the first."""
    table = SessionTable(SessionConfig())
    used(table, "a", 1.0, 100, 1000)
    session, evicted = table.begin("a", 2.0)
    assert session is not None
    assert (session.prefix_tokens, session.kv_bytes, session.requests) == (100, 1000, 2)
    assert evicted == ()
    totals = table.totals()
    assert (totals.tracked, totals.active, totals.kv_bytes, totals.reused) == (1, 1, 1000, 1)


def test_the_limit_of_a_session_keeps_the_start_of_its_prefix() -> None:
    """Over the limit by half: two thirds of the tokens may stay."""
    table = SessionTable(SessionConfig(max_session_kv_bytes=1000))
    table.begin("a", 0.0)
    session = table.end("a", 0.0, 300, 1500)
    assert (session.prefix_tokens, session.kv_bytes) == (200, 1000)
    assert table.totals().trimmed == 1
    assert table.totals().kv_bytes == 1000


def test_idle_sessions_go_and_busy_ones_stay() -> None:
    """After the idle time since its last use, unless a request is in flight."""
    table = SessionTable(SessionConfig(idle_s=10.0))
    used(table, "a", 0.0, 1, 10)
    used(table, "b", 5.0, 1, 10)
    table.begin("busy", 0.0)
    assert table.evict_idle(9.9) == ()
    evicted = table.evict_idle(10.0)
    assert [(e.session.key, e.reason) for e in evicted] == [("a", "idle")]
    assert [e.session.key for e in table.evict_idle(1000.0)] == ["b"]
    assert table.get("busy") is not None
    assert table.totals().kv_bytes == 0


def test_under_pressure_the_least_recently_used_go_first() -> None:
    """As many as it takes; those without KV free nothing and stay."""
    table = SessionTable(SessionConfig())
    used(table, "a", 0.0, 1, 100)
    used(table, "empty", 1.0, 0, 0)
    used(table, "b", 2.0, 1, 100)
    used(table, "c", 3.0, 1, 100)
    used(table, "a", 4.0, 1, 100)
    assert [e.session.key for e in table.evict_for(150)] == ["b", "c"]
    assert table.totals().kv_bytes == 100
    assert [e.session.key for e in table.evict_for(10**9)] == ["a"]
    assert table.totals().evictions == {"idle": 0, "count": 0, "pressure": 3}
    assert table.get("empty") is not None


def test_the_number_is_bounded() -> None:
    """The oldest idle one makes place; where all are busy the newcomer is served untracked."""
    table = SessionTable(SessionConfig(max_sessions=2))
    used(table, "a", 0.0, 1, 10)
    table.begin("b", 1.0)
    _, evicted = table.begin("c", 2.0)
    assert [(e.session.key, e.reason) for e in evicted] == [("a", "count")]
    session, _ = table.begin("d", 3.0)
    assert session is None
    assert (len(table), table.totals().untracked) == (2, 1)


def test_several_requests_of_one_session_at_once() -> None:
    """It is idle only once all of them are over."""
    table = SessionTable(SessionConfig(idle_s=1.0))
    table.begin("a", 0.0)
    table.begin("a", 0.0)
    table.end("a", 1.0, 5, 50)
    assert table.evict_idle(100.0) == ()
    table.end("a", 2.0, 6, 60)
    assert table.totals().kv_bytes == 60
    assert [e.session.kv_bytes for e in table.evict_idle(100.0)] == [60]
    with pytest.raises(KeyError):
        table.end("a", 3.0, 1, 1)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"max_sessions": 0}, "max_sessions must be at least 1, not 0"),
        ({"idle_s": float("nan")}, "idle_s must be finite, not nan"),
        ({"max_session_kv_bytes": -1}, "max_session_kv_bytes must be at least 0, not -1"),
    ],
)
def test_impossible_limits_are_refused(fields: dict[str, float], says: str) -> None:
    """One line naming the field."""
    with pytest.raises(ConfigError) as caught:
        SessionConfig(**fields)  # type: ignore[arg-type]
    assert str(caught.value) == says


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.integers(0, 100), st.sampled_from("bep")),
        max_size=60,
    )
)
def test_totals_are_the_sum_of_what_is_tracked(steps: list[tuple[str, int, str]]) -> None:
    """Whatever happens, bytes add up, the number is bounded and nothing in flight is lost."""
    table = SessionTable(SessionConfig(max_sessions=3, max_session_kv_bytes=60, idle_s=5.0))
    in_flight: dict[str, int] = {}
    for now_s, (key, amount, what) in enumerate(steps):
        if what == "b":
            session, _ = table.begin(key, float(now_s))
            if session is not None:
                in_flight[key] = in_flight.get(key, 0) + 1
        elif what == "e" and in_flight.get(key):
            table.end(key, float(now_s), amount, amount)
            in_flight[key] -= 1
        elif what == "p":
            table.evict_for(amount)
        known = [s for s in map(table.get, "abcdef") if s is not None]
        assert len(known) == len(table) <= 3
        assert table.totals().kv_bytes == sum(s.kv_bytes for s in known)
        assert {s.key: s.in_flight for s in known if s.in_flight} == {
            k: n for k, n in in_flight.items() if n
        }


def test_what_is_lost_is_nobodys() -> None:
    """After the cache is gone sessions go on without KV, idle or in flight, and count anew."""
    table = SessionTable(SessionConfig())
    used(table, "a", 1.0, 100, 1000)
    used(table, "b", 1.0, 50, 500)
    table.begin("b", 2.0)
    table.lost()
    totals = table.totals()
    assert (totals.tracked, totals.active, totals.kv_bytes) == (2, 1, 0)
    assert table.end("b", 3.0, 70, 700).requests == 2
    assert table.totals().kv_bytes == 700
    assert [eviction.session.key for eviction in table.evict_for(1)] == ["b"]
