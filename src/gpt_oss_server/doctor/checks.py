"""All checks, in the order in which a cause comes before its consequences.

Knows: which checks there are. Does not know: how any of them judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpt_oss_server.doctor.checks_gpu import GPU_CHECKS
from gpt_oss_server.doctor.checks_host import HOST_CHECKS
from gpt_oss_server.doctor.findings import Check, Examined, Finding

CHECKS: tuple[Check, ...] = (*HOST_CHECKS, *GPU_CHECKS)


@dataclass(frozen=True)
class Found:
    """A finding with the id of its check."""

    id: str
    finding: Finding


def run_checks(seen: Examined) -> Sequence[Found]:
    """What the checks have to say, problems first."""
    found = []
    for check in CHECKS:
        finding = check.look(seen)
        if finding is not None:
            found.append(Found(check.id, finding))
    return sorted(found, key=lambda one: one.finding.level != "problem")
