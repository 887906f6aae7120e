"""PURE: facts in, decision out. No torch, no web, no asyncio, no metrics, no clock.

Records and what-if: `routing.replay`."""

from gpt_oss_server.routing.balance import Balance, gpu_balance
from gpt_oss_server.routing.config import RoutingConfig, with_overrides
from gpt_oss_server.routing.decide import Policy, TriggerPolicy
from gpt_oss_server.routing.ledger import (
    RoutingLedger,
    RoutingSnapshot,
    bundle_section,
    stats_section,
)
from gpt_oss_server.routing.notices import NoticeLimit
from gpt_oss_server.routing.pressure import effective_pressure
from gpt_oss_server.routing.targets import missed_targets

__all__ = [
    "Balance",
    "NoticeLimit",
    "Policy",
    "RoutingConfig",
    "RoutingLedger",
    "RoutingSnapshot",
    "TriggerPolicy",
    "bundle_section",
    "effective_pressure",
    "gpu_balance",
    "missed_targets",
    "stats_section",
    "with_overrides",
]
