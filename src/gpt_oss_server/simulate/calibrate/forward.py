"""A measured loop played again by the simulator: the same requests at the same moments.

Knows: rows of a loop, a replica. Does not know: what is fitted. So whatever the loop does to its
times (waiting, chunks, prompts that hold up answers) is in the fit, as in what is foreseen. Moments
are those that were measured, not those that the simulated answers would lead to: what one answer
took does not move the next ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gpt_oss_server.routing.policies import policy
from gpt_oss_server.simulate.calibrate.trial import Figures, Measured, Row, steady_figures
from gpt_oss_server.simulate.cost.layout import Replica
from gpt_oss_server.simulate.fleet.cluster import simulate
from gpt_oss_server.simulate.fleet.pools import Fleet, Pool
from gpt_oss_server.simulate.workload.requests import Request, workload_of

BETWEEN_PASSES_S = 3600.0
"""Simulated time between two passes of a loop: all is idle by then."""


def foreseen(measured: Measured, replica: Replica) -> Figures:
    """The loop's figures on this replica."""
    size = replica.settings.block_size
    requests = list(_requests(measured.passes, size))
    outcome = simulate(
        workload_of("loop", requests, unit_tokens=size),
        Fleet((Pool(replica, 1),)),
        policy("round_robin"),
    )
    times = zip(outcome.ttft_s.tolist(), outcome.e2e_s.tolist(), strict=True)
    played = [
        [Row(row.at_s, row.input_tokens, row.output_tokens, *next(times)) for row in rows]
        for rows in measured.passes
    ]
    return steady_figures(played, measured.trial.concurrency)


def _requests(passes: Sequence[Sequence[Row]], block_size: int) -> Iterator[Request]:
    """Cached tokens are leading blocks that all of a pass share; the rest is nobody else's."""
    other = 1 << 40
    for number, rows in enumerate(passes):
        for row in rows:
            units: tuple[int, ...] = ()
            if row.cached_tokens >= block_size:
                shared = row.cached_tokens // block_size
                rest = row.input_tokens // block_size - shared
                units = (*range(number << 32, (number << 32) + shared), *range(other, other + rest))
                other += rest
            at_s = number * BETWEEN_PASSES_S + row.at_s
            yield Request(at_s, row.input_tokens, row.output_tokens, units, (), row.output_tokens)
