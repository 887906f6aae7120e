"""The order of the queue: classes, ageing, fairness, who gives way."""

from __future__ import annotations

from collections import Counter

from admission_requests import ask
from hypothesis import given
from hypothesis import strategies as st

from gpt_oss_server.admission.guard import Bounds
from gpt_oss_server.admission.queue import Entry, FairQueue

AGEING_S = 2.0


class Desk:
    """A queue with tickets and costs, for tests of order alone."""

    def __init__(self) -> None:
        self.queue = FairQueue(AGEING_S, 1)
        self.tickets = 0

    def push(self, client: str = "a", cost: int = 10, priority: int = 5, now_s: float = 0.0) -> int:
        self.tickets += 1
        request = ask(cost, 0, client_id=client, priority=priority)
        entry = Entry(
            ticket=self.tickets,
            request=request,
            bounds=Bounds(0, 0),
            need=(cost,),
            cost_tokens=cost,
            arrived_s=now_s,
            deadline_s=now_s + 100,
        )
        self.queue.push(entry)
        return self.tickets

    def pop(self, now_s: float = 0.0) -> Entry:
        return self.queue.start(next(self.queue.in_order(now_s)).ticket, now_s)

    def order(self, now_s: float = 0.0) -> list[int]:
        return [entry.ticket for entry in self.queue.in_order(now_s)]


def test_first_come_first_served_within_a_client() -> None:
    """One client, one class: by arrival."""
    desk = Desk()
    tickets = [desk.push() for _ in range(5)]
    assert desk.order() == tickets
    assert [desk.pop().ticket for _ in range(5)] == tickets


def test_a_higher_class_goes_first() -> None:
    """Strict between classes, across and within clients."""
    desk = Desk()
    low, high, mid = desk.push(priority=0), desk.push(priority=9), desk.push("b", priority=5)
    assert desk.order() == [high, mid, low]


def test_an_unserved_class_rises_to_the_top_and_no_further() -> None:
    """One class per ageing time, so (9 - priority) of them reach the top class."""
    desk = Desk()
    old = desk.push("a", priority=0, now_s=0.0)
    young = desk.push("b", priority=9, now_s=17.9)
    assert desk.order(17.9) == [young, old]
    assert desk.order(18.0) == [old, young]
    moments = (0.0, 1.9, 2.0, 17.9, 18.0, 500.0)
    assert [desk.queue.class_of(0, t) for t in moments] == [0, 0, 1, 8, 9, 9]


def test_a_class_that_was_served_starts_ageing_anew() -> None:
    """Under endless work of the top class the lowest gets one start every 18 s, not more."""
    desk = Desk()
    low = [desk.push("low", priority=0) for _ in range(3)]
    started: dict[int, float] = {}
    for second in range(60):
        desk.push("high", priority=9, now_s=float(second))
        started[desk.pop(float(second)).ticket] = float(second)
    assert [started[ticket] for ticket in low] == [18.0, 36.0, 54.0]


def test_age_does_not_undo_fairness() -> None:
    """A flood's old requests stay behind a newcomer of the same priority."""
    desk = Desk()
    for _ in range(10):
        desk.push("flood", cost=100)
    for second in range(3):
        assert desk.pop(float(second)).request.client_id == "flood"
    young = desk.push("young", now_s=1000.0)
    # Level with the flood's next, which came first, and before the one after that.
    assert desk.order(1000.0)[0] == 4
    assert [desk.pop(1000.0).ticket for _ in range(2)] == [4, young]


def test_clients_take_turns_by_tokens_not_by_requests() -> None:
    """Three small requests go for one large one."""
    desk = Desk()
    for _ in range(3):
        desk.push("giant", cost=30)
    for _ in range(9):
        desk.push("small", cost=10)
    order = [desk.pop().request.client_id for _ in range(12)]
    assert order[:5] == ["giant", "small", "small", "small", "giant"]
    assert Counter(order[:8]) == {"giant": 2, "small": 6}


def test_idling_saves_up_nothing() -> None:
    """A client that comes late starts level with the others, not with their past as credit."""
    desk = Desk()
    for _ in range(20):
        desk.push("a")
    for _ in range(10):
        desk.pop()
    for _ in range(5):
        desk.push("b")
    assert Counter(desk.pop().request.client_id for _ in range(6)) == {"a": 3, "b": 3}


def test_a_short_absence_wipes_out_no_debt() -> None:
    """Leaving the queue and coming back at once does not put a served client first."""
    desk = Desk()
    desk.push("heavy", cost=100)
    for _ in range(5):
        desk.push("b", cost=10)
    assert desk.pop().request.client_id == "heavy"
    desk.push("heavy", cost=100)
    assert [desk.pop().request.client_id for _ in range(5)] == ["b"] * 5


def test_an_empty_queue_starts_anew() -> None:
    """Nobody waiting, nobody owed: the memory of clients is empty."""
    desk = Desk()
    desk.push("a", cost=1000)
    desk.pop()
    assert len(desk.queue._clients) == 0
    first, second = desk.push("a"), desk.push("b")
    assert desk.order() == [first, second]


@given(
    a=st.lists(st.integers(1, 100), min_size=1, max_size=30),
    b=st.lists(st.integers(1, 100), min_size=1, max_size=30),
)
def test_two_waiting_clients_differ_by_at_most_one_request_each(a: list[int], b: list[int]) -> None:
    """While both wait, tokens served differ by no more than the two largest requests."""
    desk = Desk()
    for cost in a:
        desk.push("a", cost)
    for cost in b:
        desk.push("b", cost)
    served = {"a": 0, "b": 0}
    left = {"a": len(a), "b": len(b)}
    while left["a"] and left["b"]:
        entry = desk.pop()
        served[entry.request.client_id] += entry.cost_tokens
        left[entry.request.client_id] -= 1
        assert abs(served["a"] - served["b"]) <= max(a) + max(b)


@given(flood=st.lists(st.integers(1, 50), min_size=60, max_size=200), own=st.integers(1, 50))
def test_a_flood_of_new_clients_starves_nobody(flood: list[int], own: int) -> None:
    """Three places are kept full by ever new clients; a served client's second request starts
    once newcomers took (its first request) × (clients waiting), plus one each of theirs."""
    desk = Desk()
    desk.push("old", own)
    second = desk.push("old", own)
    costs = iter(flood)
    for index in range(3):
        desk.push(f"new-first-{index}", next(costs))
    taken = 0
    for index, cost in enumerate(costs):
        entry = desk.pop()
        if entry.ticket == second:
            break
        if entry.request.client_id != "old":
            taken += entry.cost_tokens
            desk.push(f"new-{index}", cost)
    assert taken <= 4 * own + 4 * max(flood)


@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.integers(0, 9), st.integers(0, 30)), max_size=40
    ),
    st.floats(0, 30),
)
def test_the_order_is_the_one_documented(pushes: list[tuple[str, int, int]], more_s: float) -> None:
    """The lanes give exactly what sorting everything by (class, tag, arrival) would."""
    desk = Desk()
    now_s = 0.0
    for index, (client, priority, gap_s) in enumerate(pushes):
        now_s += gap_s / 10
        desk.push(client, 10, priority, now_s)
        if index % 7 == 6:
            desk.pop(now_s)
    now_s += more_s
    queue = desk.queue
    expected = sorted(
        queue,
        key=lambda e: (
            -queue.class_of(e.request.priority, now_s),
            queue._clients[e.request.client_id].tag,
            e.ticket,
        ),
    )
    assert desk.order(now_s) == [e.ticket for e in expected]
    assert len(queue) == len(expected)


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 1000)), max_size=120))
def test_memory_of_clients_is_bounded_and_sums_return_to_zero(
    steps: list[tuple[str, int]],
) -> None:
    """Whatever order of pushes, starts and removals: when all are gone nothing is left."""
    desk = Desk()
    for index, (client, cost) in enumerate(steps):
        ticket = desk.push(client, cost)
        if index % 3 == 1:
            desk.pop()
        elif index % 3 == 2:
            desk.queue.remove(ticket)
    assert desk.queue.need == (sum(entry.cost_tokens for entry in desk.queue),)
    while desk.queue:
        desk.pop()
    assert desk.queue.need == (0,)
    assert desk.queue.waiting_by_client() == {}
    assert len(desk.queue._clients) == 0


def test_who_gives_way_when_full() -> None:
    """The lowest class, and there the newest of whoever has most; equals only if they have more."""
    desk = Desk()
    for _ in range(3):
        newest_of_flood = desk.push("flood", priority=5)
    desk.push("other", priority=5)

    def victim(client: str, priority: int) -> int | None:
        entry = desk.queue.victim_for(ask(1, 1, client_id=client, priority=priority))
        return None if entry is None else entry.ticket

    assert victim("flood", 5) is None
    assert victim("other", 5) == newest_of_flood
    assert victim("third", 5) == newest_of_flood
    assert victim("third", 9) == newest_of_flood
    desk.push("third", priority=4)
    assert victim("fourth", 4) is None
    newest_low = desk.push("third", priority=4)
    assert victim("flood", 5) == newest_low
    assert victim("third", 4) is None
    assert victim("fourth", 4) == newest_low


def test_no_class_is_shut_out_or_emptied() -> None:
    """The first of its class is let in past any number of higher ones, and the last stays."""
    desk = Desk()
    for _ in range(3):
        newest = desk.push("high", priority=9)
    entry = desk.queue.victim_for(ask(1, 1, client_id="low", priority=0))
    assert entry is not None
    assert entry.ticket == newest
    desk.push("low", priority=0)
    assert desk.queue.victim_for(ask(1, 1, client_id="low", priority=0)) is None
    gives_way = desk.queue.victim_for(ask(1, 1, client_id="new", priority=9))
    assert gives_way is not None
    assert gives_way.ticket == newest


def test_one_each_is_fair_and_nobody_gives_way() -> None:
    """A newcomer does not push out an equal."""
    desk = Desk()
    desk.push("a")
    desk.push("b")
    assert desk.queue.victim_for(ask(1, 1, client_id="c")) is None
    assert FairQueue(1.0, 1).victim_for(ask(1, 1)) is None


def test_deadlines() -> None:
    """The earliest is known; those that have come are listed and stay until removed."""
    desk = Desk()
    assert desk.queue.next_deadline_s() is None
    first = desk.push(now_s=0.0)
    desk.push(now_s=5.0)
    assert desk.queue.next_deadline_s() == 100.0
    assert [e.ticket for e in desk.queue.expired(100.0)] == [first]
    assert desk.queue.expired(99.9) == []
    assert len(desk.queue) == 2
