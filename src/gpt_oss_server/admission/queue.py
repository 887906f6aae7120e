"""Who waits, and in which order: priorities, ageing, fairness across clients, deadlines.

Knows: the order. Does not know: memory, or when there is room. Moments are handed in.

Order. First by class: the priority, plus one for every `ageing_s` for which requests of that
priority have waited without one of them starting, at most the top class. So beside endless work
of priority q, one of priority p < q reaches its class every (q - p)·ageing_s seconds and there
takes its fair turn. It is the class that ages and not the request: else a flood's old requests
would rise above everybody's young ones, and the fairness below be lost just when it matters.

Within a class by the client's service tag, which grows by the expected tokens of each of its
requests that starts (start-time fair queueing): two clients that both wait get equal tokens, up
to one request each. Within a client, and on ties, by arrival.

A client that begins to wait starts at the current virtual time, which advances by cost divided
by the number of waiting clients: idling saves up nothing, and a flood of ever new clients cannot
keep an old one waiting, since newcomers' tags soon exceed its own.

When the queue is full the lowest class gives way to higher ones, and in it the newest request of
the client with most waiting there; among equals only to a client with fewer. The last one waiting
of a class never gives way, and a class of which nobody waits is always let in (in a queue longer
than there are classes), so that a full queue starves no class either.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import msgspec

from gpt_oss_server.admission.capacity import Blocks
from gpt_oss_server.admission.config import MAX_PRIORITY
from gpt_oss_server.admission.guard import Bounds
from gpt_oss_server.admission.offers import AdmissionRequest


class Entry(msgspec.Struct, eq=False):
    """One waiting request. `need` is what it would reserve with the pool to itself; `passed_by`
    counts the later ones that started before it."""

    ticket: int
    request: AdmissionRequest
    bounds: Bounds
    need: Blocks
    cost_tokens: int
    arrived_s: float
    deadline_s: float
    passed_by: int = 0


class _Client(msgspec.Struct, eq=False):
    tag: float = 0.0
    waiting: int = 0


Lane = dict[int, Entry]


class FairQueue:
    """Every method takes time linear in the clients waiting, or better. Not thread-safe."""

    def __init__(self, ageing_s: float, groups: int) -> None:
        self._ageing_s = ageing_s
        self._need = [0] * groups
        self._entries: dict[int, Entry] = {}
        # One lane per client and priority, by arrival: its first entry is always its best.
        self._lanes: dict[tuple[str, int], Lane] = {}
        self._clients: dict[str, _Client] = {}
        self._waiting_clients = 0
        self._virtual = 0.0
        # Per priority: how many wait, and since when none of them has started.
        self._waiting_of: dict[int, int] = {}
        self._unserved_since_s: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(tuple(self._entries.values()))

    def get(self, ticket: int) -> Entry | None:
        return self._entries.get(ticket)

    def waiting_by_client(self) -> dict[str, int]:
        return {name: c.waiting for name, c in self._clients.items() if c.waiting}

    @property
    def need(self) -> Blocks:
        """What all that wait would reserve, per group."""
        return tuple(self._need)

    def push(self, entry: Entry) -> None:
        """Add an entry. Tickets must grow with time: they break ties."""
        name = entry.request.client_id
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = _Client()
        if client.waiting == 0:
            client.tag = max(client.tag, self._virtual)
            self._waiting_clients += 1
        client.waiting += 1
        priority = entry.request.priority
        if priority not in self._waiting_of:
            self._waiting_of[priority] = 0
            self._unserved_since_s[priority] = entry.arrived_s
        self._waiting_of[priority] += 1
        for index, blocks in enumerate(entry.need):
            self._need[index] += blocks
        self._entries[entry.ticket] = entry
        self._lanes.setdefault((name, priority), {})[entry.ticket] = entry

    def remove(self, ticket: int) -> Entry | None:
        """Take an entry out without its having run; None when it does not wait."""
        entry = self._entries.pop(ticket, None)
        if entry is not None:
            self._unlink(entry)
        return entry

    def start(self, ticket: int, now_s: float, passed: Sequence[Entry] = ()) -> Entry:
        """Take an entry out to run, charge its client, and note whom it passed.

        Raises KeyError when the ticket does not wait.
        """
        entry = self._entries.pop(ticket)
        self._virtual += entry.cost_tokens / self._waiting_clients
        self._clients[entry.request.client_id].tag += entry.cost_tokens
        self._unserved_since_s[entry.request.priority] = now_s
        for other in passed:
            other.passed_by += 1
        self._unlink(entry)
        return entry

    def in_order(self, now_s: float) -> Iterator[Entry]:
        """The entries, best first. The queue must not change while this is read."""
        classes = {priority: self.class_of(priority, now_s) for priority in self._waiting_of}
        heap: list[tuple[int, float, int, Iterator[Entry], Entry]] = []
        for (name, priority), lane in self._lanes.items():
            rest = iter(lane.values())
            first = next(rest)
            tag = self._clients[name].tag
            heap.append((-classes[priority], tag, first.ticket, rest, first))
        heapq.heapify(heap)
        while heap:
            rank, tag, _, rest, entry = heap[0]
            yield entry
            following = next(rest, None)
            if following is None:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (rank, tag, following.ticket, rest, following))

    def class_of(self, priority: int, now_s: float) -> int:
        """The class in which requests of `priority` compete now; of those that wait only."""
        unserved_s = max(0.0, now_s - self._unserved_since_s[priority])
        return int(min(priority + unserved_s // self._ageing_s, MAX_PRIORITY))

    def expired(self, now_s: float) -> list[Entry]:
        """Those whose deadline has come, oldest first; they stay until removed."""
        return [entry for entry in self._entries.values() if entry.deadline_s <= now_s]

    def next_deadline_s(self) -> float | None:
        """The earliest deadline, for a timer; None when nobody waits."""
        return min((entry.deadline_s for entry in self._entries.values()), default=None)

    def victim_for(self, request: AdmissionRequest) -> Entry | None:
        """Who gives way to `request` in a full queue; None when it is the one to turn away."""
        priority = request.priority
        crowded = [p for p, waiting in self._waiting_of.items() if waiting > 1]
        if not crowded:
            return None
        lowest = min(crowded)
        most = max(
            (lane for (_, p), lane in self._lanes.items() if p == lowest),
            key=lambda lane: (len(lane), next(reversed(lane))),
        )
        own = len(self._lanes.get((request.client_id, priority), ()))
        gives_way = (
            lowest < priority
            or priority not in self._waiting_of
            or (lowest == priority and len(most) > own + 1)
        )
        return most[next(reversed(most))] if gives_way else None

    def _unlink(self, entry: Entry) -> None:
        for index, blocks in enumerate(entry.need):
            self._need[index] -= blocks
        name = entry.request.client_id
        key = (name, entry.request.priority)
        lane = self._lanes[key]
        del lane[entry.ticket]
        if not lane:
            del self._lanes[key]
        priority = entry.request.priority
        self._waiting_of[priority] -= 1
        if not self._waiting_of[priority]:
            del self._waiting_of[priority], self._unserved_since_s[priority]
        client = self._clients[name]
        client.waiting -= 1
        if client.waiting == 0:
            self._waiting_clients -= 1
            self._forget_settled()

    def _forget_settled(self) -> None:
        """Drop clients whose tag the virtual time has passed: a newcomer's would be the same.

        With nobody waiting nobody is owed anything, and the clock starts anew.
        """
        if not self._entries:
            self._clients.clear()
            self._virtual = 0.0
            return
        settled = [n for n, c in self._clients.items() if not c.waiting and c.tag <= self._virtual]
        for name in settled:
            del self._clients[name]
