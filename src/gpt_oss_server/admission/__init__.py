"""PURE: who may start, who waits, who is turned away. No torch, no web, no asyncio, no clock."""

from gpt_oss_server.admission.capacity import BlockGroup, Capacity, slots
from gpt_oss_server.admission.config import AdmissionConfig, parse_priority
from gpt_oss_server.admission.core import AdmissionCore, AdmissionCounts, AdmissionSnapshot
from gpt_oss_server.admission.ledger import LeaseError, LeaseLedger
from gpt_oss_server.admission.offers import (
    Action,
    Admission,
    AdmissionRequest,
    Changes,
    Departure,
    Plan,
    Verdict,
)
from gpt_oss_server.admission.outputs import OutputLengths
from gpt_oss_server.admission.sessions import Session, SessionConfig, SessionTable

__all__ = [
    "Action",
    "Admission",
    "AdmissionConfig",
    "AdmissionCore",
    "AdmissionCounts",
    "AdmissionRequest",
    "AdmissionSnapshot",
    "BlockGroup",
    "Capacity",
    "Changes",
    "Departure",
    "LeaseError",
    "LeaseLedger",
    "OutputLengths",
    "Plan",
    "Session",
    "SessionConfig",
    "SessionTable",
    "Verdict",
    "parse_priority",
    "slots",
]
