"""Grafana's variables in a query, filled in as Grafana would.

Knows: the variables that our queries use. Does not know: metrics.
"""

from __future__ import annotations


def expand(expression: str, *, interval_s: int = 10, range_s: int = 60) -> str:
    """The query for all instances. Raises ValueError for a variable that is none of ours."""
    filled = (
        expression.replace("$instance", ".+")
        .replace("$__rate_interval", f"{interval_s}s")
        .replace("$__range", f"{range_s}s")
    )
    if "$" in filled:
        raise ValueError(f"unknown variable: {filled}")
    return filled
