"""Decisions as JSON lines, and what would have been decided otherwise.

Knows: one record's format; how to decide it again, with the same or other thresholds. Does not
know: files. A record holds token counts and memory figures, never text of a prompt or an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from gpt_oss_server.facts import Decision, FleetView, RequestFacts
from gpt_oss_server.routing.config import RoutingConfig, with_overrides
from gpt_oss_server.routing.decide import TriggerPolicy

RECORD_VERSION = 1
UNTRIGGERED = "none"


class RecordError(ValueError):
    """A line is not a decision record; the message says why."""


class DecisionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One decision with everything that it was made from."""

    version: int = RECORD_VERSION
    facts: RequestFacts
    fleet: FleetView
    config: RoutingConfig
    decision: Decision


class Difference(msgspec.Struct, frozen=True):
    """A decision that came out otherwise. `fields` names what differs."""

    request_id: str
    fields: tuple[str, ...]
    recorded: Decision
    replayed: Decision

    def __str__(self) -> str:
        old, new = self.recorded, self.replayed
        return (
            f"{self.request_id}: {old.route} ({old.reason}) -> {new.route} ({new.reason})"
            f" [{', '.join(self.fields)}]"
        )


class ReplayReport(msgspec.Struct, frozen=True, kw_only=True):
    """All differences, and the triggers counted before and after (`none`: not triggered)."""

    total: int
    differences: tuple[Difference, ...]
    recorded_triggers: dict[str, int]
    replayed_triggers: dict[str, int]

    @property
    def rerouted(self) -> int:
        """How many would have belonged to the other pool."""
        return sum(d.recorded.route != d.replayed.route for d in self.differences)


def to_line(record: DecisionRecord) -> str:
    """One line of JSON, without the line end."""
    return msgspec.json.encode(record).decode()


def from_line(line: str | bytes) -> DecisionRecord:
    """The record of one line. Raises RecordError for anything else."""
    try:
        record = msgspec.json.decode(line, type=DecisionRecord)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"not a decision record: {error}") from error
    if record.version != RECORD_VERSION:
        raise RecordError(f"record version {record.version}, this reads {RECORD_VERSION}")
    return record


def replay(
    records: Iterable[DecisionRecord], overrides: Mapping[str, float] | None = None
) -> ReplayReport:
    """Decide every record again with its own thresholds, or with some of them replaced.

    Without overrides any difference is a bug (or a newer version of the policy). Raises
    ConfigError when the overrides are unknown or impossible.
    """
    policies: dict[RoutingConfig, TriggerPolicy] = {}
    differences: list[Difference] = []
    before: dict[str, int] = {}
    after: dict[str, int] = {}
    total = 0
    for record in records:
        total += 1
        policy = policies.get(record.config)
        if policy is None:
            config = with_overrides(record.config, overrides) if overrides else record.config
            policy = policies[record.config] = TriggerPolicy(config)
        old, new = record.decision, policy.decide(record.facts, record.fleet)
        before[old.trigger or UNTRIGGERED] = before.get(old.trigger or UNTRIGGERED, 0) + 1
        after[new.trigger or UNTRIGGERED] = after.get(new.trigger or UNTRIGGERED, 0) + 1
        if old != new:
            fields = tuple(
                name
                for name in Decision.__struct_fields__
                if getattr(old, name) != getattr(new, name)
            )
            differences.append(Difference(old.request_id, fields, old, new))
    return ReplayReport(
        total=total,
        differences=tuple(differences),
        recorded_triggers=before,
        replayed_triggers=after,
    )
