"""What a workload is, in a few figures, and a digest by which two can be told to be the same.

Knows: quantiles of lengths, the digest's bytes. Does not know: files, replicas.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from gpt_oss_server.simulate.workload.requests import Workload

LENGTH_QUANTILES = (50, 90, 99)


def workload_facts(workload: Workload) -> dict[str, Any]:
    """How many requests in which time, how long their prompts and answers are, what was wrong with
    the input, and the digest. Ready for JSON; lengths in tokens, None where there is no request."""
    requests = workload.requests
    return {
        "name": workload.name,
        "requests": len(requests),
        "duration_s": workload.duration_s,
        "requests_per_s": workload.requests_per_s,
        "sha256": digest(workload),
        "input_tokens": _lengths([request.input_tokens for request in requests]),
        "output_tokens": _lengths([request.output_tokens for request in requests]),
        "with_prefix_hashes": sum(1 for request in requests if request.units),
        "problems": dict(workload.problems.counts),
        "problem_lines": workload.problems.lines(),
    }


def digest(workload: Workload) -> str:
    """SHA-256, in hex, of the tokens that a hash stands for, then of each request's fields as
    Python writes a tuple, a line each: what is played, whatever file it came from."""
    found = hashlib.sha256(f"{workload.unit_tokens}\n".encode())
    for request in workload.requests:
        found.update(f"{tuple(request)!r}\n".encode())
    return found.hexdigest()


def _lengths(tokens: list[int]) -> dict[str, float] | None:
    if not tokens:
        return None
    quantiles = np.percentile(tokens, LENGTH_QUANTILES)
    figures = {f"p{q}": float(v) for q, v in zip(LENGTH_QUANTILES, quantiles, strict=True)}
    mean = sum(tokens) / len(tokens)
    return {**figures, "mean": mean, "most": float(max(tokens)), "total": float(sum(tokens))}
