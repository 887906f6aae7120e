"""Small outcomes and documents for the tests of figures and of the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from gpt_oss_server import cli
from gpt_oss_server.simulate.results.outcome import Outcome, ReplicaRecord, Samples

QUICK = ("--pools", "2xtp1+1xtp2", "--workload", "chat", "--rate", "4", "--duration", "20")


def outcome(
    rows: list[tuple[float, int, int, int, float, float, int]],
    pools: tuple[str, ...] = ("a", "b"),
    samples: Samples | None = None,
    end_s: float = 10.0,
) -> Outcome:
    """From (arrival, input, output, end, TTFT, E2E, replica); one replica per entry of `pools`."""
    columns = [np.array([row[place] for row in rows]) for place in range(7)]
    arrival_s, ttft_s, e2e_s = (columns[place] for place in (0, 4, 5))
    tokens, answers, ended, replica = (columns[place].astype(np.int64) for place in (1, 2, 3, 6))
    return Outcome(
        arrival_s=arrival_s.astype(np.float64),
        input_tokens=tokens,
        output_tokens=answers,
        ended=ended,
        ttft_s=ttft_s.astype(np.float64),
        e2e_s=e2e_s.astype(np.float64),
        cached_tokens=np.zeros_like(tokens),
        preemptions=np.zeros_like(tokens),
        replica=replica,
        replicas=tuple(
            ReplicaRecord(f"{pool}/{place:03d}", pool, 1, 1, 5.0, 10, 100, 50, 0)
            for place, pool in enumerate(pools)
        ),
        span_s=end_s,
        end_s=end_s,
        samples=samples,
    )


def samples(moments: int, replicas: int, every_s: float = 1.0) -> Samples:
    """After a first empty one, utilisation is the moment's number over all, KV the replica's,
    and each replica has as many waiting as the moment's number."""
    number = np.arange(moments + 1, dtype=np.float64)[:, None] * np.ones(replicas)
    return Samples(
        at_s=np.arange(moments + 1) * every_s,
        utilization=number / max(1, moments),
        kv_share=np.ones(moments + 1)[:, None] * np.arange(replicas) / max(1, replicas),
        waiting=number.astype(np.int64),
        decoding=number.astype(np.int64),
    )


class Document(dict[str, Any]):
    """Too long to be shown when a test fails."""

    def __repr__(self) -> str:
        return f"Document({', '.join(self)})"


def document(folder: Path, *argv: str) -> Document:
    """What `simulate --json` writes, of a quick run with these flags besides."""
    path = folder / "document.json"
    assert cli.main(["simulate", *QUICK, *argv, "--json", str(path)]) == 0
    return Document(json.loads(path.read_text(encoding="utf-8")))
