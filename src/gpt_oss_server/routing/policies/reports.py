"""What a replica reported, brought up to date by what its dispatcher has seen of it since.

Knows: the fields of a report; how a request that is sent there, whose first token comes back, or
whose answer ends, changes them. Does not know: how reports travel, how old they are, policies. A
dispatcher relays every stream, so it knows all three at once; without them it sends all that comes
between two reports to the one replica that looked best in the last.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class Report(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The part of a `ReplicaState` that only the replica itself knows, at the moment it says so."""

    decoding: int = 0
    context_tokens: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
    waiting_work_s: Sequence[float] = ()
    kv_free_tokens: int = 0
    kv_reserved_tokens: int = 0
    prefill_share: float = 0.0


class Sent(msgspec.Struct, frozen=True, gc=False):
    """A request that was sent to a replica: prompt tokens, of them those it had to compute, the
    pure prefill that takes, and whether its first token has come back."""

    input_tokens: int
    new_tokens: int
    work_s: float
    started: bool = False


def with_sent(report: Report, sent: Sent) -> Report:
    """The report, had this request come there: it waits."""
    return msgspec.structs.replace(
        report,
        waiting=report.waiting + 1,
        waiting_tokens=report.waiting_tokens + sent.new_tokens,
        waiting_work_s=_added(report.waiting_work_s, sent.new_tokens, sent.work_s),
    )


def with_started(report: Report, sent: Sent) -> Report:
    """Its first token came back: it waits no more, and decodes. Never less than nothing waits: the
    report may have counted part of its prompt as done."""
    return msgspec.structs.replace(
        report,
        decoding=report.decoding + 1,
        context_tokens=report.context_tokens + sent.input_tokens,
        waiting=max(0, report.waiting - 1),
        waiting_tokens=max(0, report.waiting_tokens - sent.new_tokens),
        waiting_work_s=_added(report.waiting_work_s, sent.new_tokens, -sent.work_s),
        kv_free_tokens=max(0, report.kv_free_tokens - sent.new_tokens),
    )


def with_ended(report: Report, sent: Sent, output_tokens: int) -> Report:
    """Its answer is over, or it was turned away: what it held is free."""
    if not sent.started:
        return msgspec.structs.replace(
            report,
            waiting=max(0, report.waiting - 1),
            waiting_tokens=max(0, report.waiting_tokens - sent.new_tokens),
            waiting_work_s=_added(report.waiting_work_s, sent.new_tokens, -sent.work_s),
        )
    held = sent.input_tokens + output_tokens
    return msgspec.structs.replace(
        report,
        decoding=max(0, report.decoding - 1),
        context_tokens=max(0, report.context_tokens - held),
        kv_free_tokens=report.kv_free_tokens + held,
    )


def _added(work_s: Sequence[float], new_tokens: int, more_s: float) -> Sequence[float]:
    """Waiting work by size class, more or less of it in the class of so many tokens."""
    work = list(work_s)
    place = new_tokens.bit_length()
    if work:
        place = min(place, len(work) - 1)
    else:
        work = [0.0] * (place + 1)
    work[place] = max(0.0, work[place] + more_s)
    return work
