"""What a simulated dispatcher sees: reports of some age, and its own books at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import pytest
from sim_builders import replica, workload

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.routing.policies import policy
from gpt_oss_server.routing.policies.reports import (
    Report,
    Sent,
    with_ended,
    with_sent,
    with_started,
)
from gpt_oss_server.routing.policies.view import Ask, Ranked, ReplicaState
from gpt_oss_server.simulate.fleet.cluster import simulate
from gpt_oss_server.simulate.fleet.pools import Failure, Fleet, Pool
from gpt_oss_server.simulate.fleet.roster import Roster
from gpt_oss_server.simulate.replica.sequence import Sequence as Seq
from gpt_oss_server.simulate.workload.made import make_workload
from gpt_oss_server.simulate.workload.requests import Request

TWO = Fleet((Pool(replica(), 2),))


class Watching:
    """Round robin that keeps what it was shown."""

    name = "watching"

    def __init__(self) -> None:
        self.seen: list[tuple[float, list[ReplicaState]]] = []
        self._rule = policy("round_robin")

    def rank(self, ask: Ask, replicas: Sequence[ReplicaState]) -> list[Ranked]:
        self.seen.append((ask.now_s, list(replicas)))
        return self._rule.rank(ask, replicas)


def test_what_was_sent_since_the_report_waits_there() -> None:
    """A report is brought up to date by what came after it: one more waits, in its size class."""
    first = with_sent(Report(waiting_work_s=(0.0, 0.5, 0.0)), Sent(9, 2, 0.25))
    assert (first.waiting, first.waiting_tokens, first.waiting_work_s) == (1, 2, [0.0, 0.5, 0.25])
    second = with_sent(first, Sent(1000, 1000, 1.0))
    assert (second.waiting, second.waiting_tokens) == (2, 1002)
    assert second.waiting_work_s == [0.0, 0.5, 1.25]  # the last class has all that is larger
    assert with_sent(Report(), Sent(5, 5, 0.1)).waiting_work_s == [0.0, 0.0, 0.0, 0.1]
    assert first.waiting == 1


def test_what_came_back_since_the_report() -> None:
    """A first token makes a waiting one a decoding one, an end takes it out; never below nothing,
    whatever the report had counted."""
    sent = Sent(100, 60, 0.5)
    report = Report(kv_free_tokens=1000, waiting_work_s=(0.0,) * 8)
    waiting = with_sent(report, sent)
    begun = with_started(waiting, sent)
    assert begun == Report(
        decoding=1, context_tokens=100, kv_free_tokens=940, waiting_work_s=[0.0] * 8
    )
    over = with_ended(begun, msgspec.structs.replace(sent, started=True), 30)
    assert (over.decoding, over.context_tokens, over.kv_free_tokens) == (0, 0, 1070)
    left = with_ended(waiting, sent, 0)
    assert left == msgspec.structs.replace(report, waiting_work_s=[0.0] * 8)
    assert with_started(report, sent).waiting == with_started(report, sent).waiting_tokens == 0


def test_reports_come_in_turns() -> None:
    """With an age of a second two replicas report half a second apart; between, what they did is
    not seen, what was sent is."""
    roster = Roster(TWO, 512, hashed=False, view_age_s=1.0)
    one, two = roster.members
    roster.refresh(0.0)
    seq = Seq(0, 0.0, 1000, 50)
    assert one.server.enqueue(seq, Request(0.0, 1000, 50), 0.0) == "taken"
    roster.sent(one, seq, 50.0, 0)
    state = roster.states(seq, 0.1)[0]
    assert (state.waiting, state.waiting_tokens, state.decoding) == (1, 1000, 0)
    assert (state.in_flight, state.assigned_tokens) == (1, 1050.0)
    one.server.step()
    one.server.step()
    assert roster.next_s == 0.5
    roster.refresh(0.6)
    assert (one.reported_s, two.reported_s) == (0.0, 0.5)
    assert roster.states(seq, 0.6)[0].decoding == 0
    assert roster.next_s == 1.0
    while one.server.next_s < math.inf:
        one.server.step()
    roster.refresh(2.7)
    assert (one.reported_s, two.reported_s, roster.next_s) == (2.0, 2.5, 3.0)
    assert roster.states(seq, 2.7)[0].waiting == 0
    with pytest.raises(ConfigError, match="at least 0 s, not -1"):
        Roster(TWO, 512, hashed=False, view_age_s=-1.0)


def test_a_view_is_no_older_than_it_may_be() -> None:
    """Played with reports every 0.5 s, a policy sees states of the last 0.5 s only, and its own
    books as they are; without, the replicas as they are."""
    asked = make_workload("chat", requests_per_s=8, duration_s=30, seed=2)
    fresh, stale = Watching(), Watching()
    simulate(asked, TWO, fresh)
    simulate(asked, TWO, stale, view_age_s=0.5)
    assert len(fresh.seen) == len(stale.seen) == len(asked.requests)
    behind = 0
    for (now_s, now), (_, old) in zip(fresh.seen, stale.seen, strict=True):
        assert [r.in_flight for r in now] == [r.in_flight for r in old]
        assert [r.assigned_tokens for r in now] == [r.assigned_tokens for r in old]
        behind += [r.context_tokens for r in now] != [r.context_tokens for r in old]
        assert all(r.decoding + r.waiting >= 0 for r in old), now_s
    assert behind > len(asked.requests) // 2


def test_a_death_is_known_at_once_whatever_the_age() -> None:
    """The dispatcher's connections break: nothing is sent to a dead replica, and what it reported
    before is forgotten."""
    asked = workload(*[(0.5 * i, 500, 20) for i in range(20)])
    watching = Watching()
    found = simulate(asked, TWO, watching, failures=[Failure(0, 3.2, 4.0)], view_age_s=5.0)
    down = [states[0] for now_s, states in watching.seen if 3.2 <= now_s < 7.2]
    assert down
    assert not any(state.ready or state.decoding for state in down)
    assert all(found.replica[7:14] == 1)
    assert 0 in found.replica[15:]


def test_age_zero_is_exact() -> None:
    """Asking for views without age changes nothing."""
    asked = make_workload("mixed", requests_per_s=5, duration_s=20, seed=4)
    plain = simulate(asked, TWO, policy("earliest_completion"))
    zero = simulate(asked, TWO, policy("earliest_completion"), view_age_s=0.0)
    assert plain.e2e_s.tolist() == zero.e2e_s.tolist()
