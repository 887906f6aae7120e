"""Admission counts that outlive the pools they were counted on.

Knows: gates that were replaced because their engine came back with other pools. Does not know:
why, or what is admitted now. What such a gate still counts (its leases end, its queue empties)
goes on counting.
"""

from __future__ import annotations

import msgspec

from gpt_oss_server.admission.core import AdmissionCounts, AdmissionSnapshot
from gpt_oss_server.dispatch.gate import AdmissionGate


class PastCounts:
    """The sum over all replaced gates; those at rest are kept as numbers alone."""

    def __init__(self) -> None:
        self._gates: list[AdmissionGate] = []
        self._at_rest = AdmissionCounts()

    def retire(self, gate: AdmissionGate) -> None:
        """From now on, `gate` counts here."""
        live: list[AdmissionGate] = []
        for one in (*self._gates, gate):
            snapshot = one.snapshot()
            if snapshot.running or snapshot.waiting:
                live.append(one)
            else:
                self._at_rest = _sum(self._at_rest, snapshot.counts)
        self._gates = live

    def added_to(self, snapshot: AdmissionSnapshot) -> AdmissionSnapshot:
        """`snapshot` with the counts, the running and the waiting of the past ones added."""
        counts = _sum(snapshot.counts, self._at_rest)
        running, waiting = snapshot.running, snapshot.waiting
        by_client = dict(snapshot.waiting_by_client)
        for gate in self._gates:
            past = gate.snapshot()
            counts = _sum(counts, past.counts)
            running += past.running
            waiting += past.waiting
            for client, number in past.waiting_by_client.items():
                by_client[client] = by_client.get(client, 0) + number
        return msgspec.structs.replace(
            snapshot, counts=counts, running=running, waiting=waiting, waiting_by_client=by_client
        )


def _sum(one: AdmissionCounts, other: AdmissionCounts) -> AdmissionCounts:
    return AdmissionCounts(
        **{
            name: getattr(one, name) + getattr(other, name)
            for name in AdmissionCounts.__struct_fields__
        }
    )
