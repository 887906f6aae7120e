"""The last routing decisions, as facts.

Knows: which fields of a decision may be shown. Does not know: bundles, logs. Who a client is and
which conversation it belongs to are left out.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from gpt_oss_server.bundle.redact import shown_request_id
from gpt_oss_server.events import DecisionTaken, Event

KEPT_DECISIONS = 100


class RecentDecisions:
    """An event sink with a short memory."""

    def __init__(self, kept: int = KEPT_DECISIONS) -> None:
        self._events: deque[DecisionTaken] = deque(maxlen=kept)

    def emit(self, event: Event) -> None:
        if isinstance(event, DecisionTaken):
            self._events.append(event)

    def shown(self) -> list[dict[str, Any]]:
        """Oldest first."""
        return [_shown(event) for event in self._events]


def _shown(event: DecisionTaken) -> dict[str, Any]:
    facts, decision = event.facts, event.decision
    return {
        "at_unix_s": event.at_unix_s,
        "request_id": shown_request_id(facts.request_id),
        "trace_id": facts.trace_id,
        "route": decision.route,
        "executed": decision.executed,
        "trigger": decision.trigger,
        "reason": decision.reason,
        "unmet_recommendation": decision.unmet_recommendation,
        "input_tokens": facts.input_tokens,
        "max_output_tokens": facts.max_output_tokens,
        "predicted_kv_mb": facts.predicted_kv_mb,
        "memory_pressure": decision.pressure.value,
        "priority": facts.priority,
        "gpu_mode": event.mode,
        "decide_us": round(1e6 * event.decide_s, 1),
    }
