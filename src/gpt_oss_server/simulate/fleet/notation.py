"""A fleet as people write it: `4xtp1+2xtp2`, `2xtp4@h200`, `2xpp2`; its failures: `2@300+60`.

Knows: the notation. Does not know: models, memory.
"""

from __future__ import annotations

import math
import re

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.simulate.cost.gpu_types import GpuType, gpu_type
from gpt_oss_server.simulate.cost.layout import Shape
from gpt_oss_server.simulate.fleet.pools import Failure

MOST_REPLICAS = 4096

_FAILURE = re.compile(r"(\d{1,9})@(\d{1,12}(?:\.\d+)?)(?:\+(\d{1,12}(?:\.\d+)?))?")
_POOL = re.compile(r"(\d{1,9})x(?=tp|pp)(?:tp(\d{1,9}))?-?(?:pp(\d{1,9}))?(?:@(\S+))?")


def parse_pools(
    text: str, default_gpu: str | GpuType, flag: str = "--pools"
) -> tuple[tuple[Shape, int], ...]:
    """(shape, replicas) of each pool. Raises ConfigError saying what of the flag is not
    understood."""
    default = gpu_type(default_gpu) if isinstance(default_gpu, str) else default_gpu
    pools = []
    for part in text.split("+"):
        match = _POOL.fullmatch(part.strip())
        if match is None:
            raise ConfigError(f"{flag} {part.strip()}: write COUNTxtpN, COUNTxppN or COUNTxtpN@GPU")
        count, tp, pp, gpu = match.groups()
        if not 1 <= int(count) <= MOST_REPLICAS:
            raise ConfigError(
                f"{flag} {part.strip()}: a pool needs at least one replica, and at most "
                f"{MOST_REPLICAS}"
            )
        kind = default if gpu in (None, default.name) else gpu_type(gpu)
        shape = Shape(kind, int(tp or 1), int(pp or 1))
        pools.append((shape, int(count)))
    return tuple(pools)


def parse_failure(text: str) -> Failure:
    """`2@300` (replica 2 dies at 300 s, for good) or `2@300+60` (for a minute). Raises
    ConfigError."""
    match = _FAILURE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"--fail {text}: write REPLICA@AT or REPLICA@AT+FOR, in seconds")
    replica, at_s, for_s = match.groups()
    return Failure(int(replica), float(at_s), float(for_s) if for_s else math.inf)


def parse_slo(text: str) -> tuple[tuple[float, float, float], ...]:
    """`2048:2:0.05,inf:10:0.05`: up to so many prompt tokens, seconds to the first, seconds per
    further token. Raises ConfigError."""
    rows = []
    for part in text.split(","):
        try:
            tokens, ttft_s, tpot_s = (float(number) for number in part.split(":"))
        except ValueError:
            raise ConfigError(f"--slo {part}: write TOKENS:TTFT_S:TPOT_S") from None
        rows.append((tokens, ttft_s, tpot_s))
    return tuple(rows)
