"""A fleet as people write it: `4xtp1+2xtp2`, `2xtp4@h200`, `2xpp2`.

Knows: the notation. Does not know: models, memory.
"""

from __future__ import annotations

import re

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.simulate.gpu_types import gpu_type
from gpt_oss_server.simulate.layout import Shape

_POOL = re.compile(r"(\d+)x(?:tp(\d+))?-?(?:pp(\d+))?(?:@(\S+))?")


def parse_pools(text: str, default_gpu: str) -> tuple[tuple[Shape, int], ...]:
    """(shape, replicas) of each pool. Raises ConfigError saying what is not understood."""
    pools = []
    for part in text.split("+"):
        match = _POOL.fullmatch(part.strip())
        if match is None:
            raise ConfigError(
                f"--pools {part.strip()}: write COUNTxtpN, COUNTxppN or COUNTxtpN@GPU"
            )
        count, tp, pp, gpu = match.groups()
        shape = Shape(gpu_type(gpu or default_gpu), int(tp or 1), int(pp or 1))
        pools.append((shape, int(count)))
    return tuple(pools)


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
