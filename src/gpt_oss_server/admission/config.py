"""The settings of admission. Knows: defaults and ranges. Does not know: their use."""

from __future__ import annotations

from typing import Literal

import msgspec

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.limits import check_int, check_not_above, check_number

Mode = Literal["optimistic", "worst_case"]

MIN_PRIORITY = 0
MAX_PRIORITY = 9
DEFAULT_PRIORITY = 5


class AdmissionConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Validated settings. Raises ConfigError.

    Reservation:
        mode: `worst_case` reserves prompt + the whole output bound: never preempts.
            `optimistic` reserves prompt + what answers to such prompts have needed.
        output_quantile: which quantile of observed output lengths `optimistic` reserves.
        assumed_output_tokens: used until enough answers were observed.
        open_output_tokens: in `worst_case`, the bound of a request that left it open.
        min_open_output_tokens: an open bound is never shrunk below this.
    Queue:
        max_queue_length: requests that may wait.
        max_wait_s: how long any may wait.
        ageing_s: a priority of which none started for this long rises by one class.
        bypass_limit: how many later requests may start before a blocked one.
        scan_limit: how many blocked requests are looked past for one that fits.
    Retry-After:
        drain_half_life_s: memory of the drain-rate estimate.
        retry_fallback_s, retry_cap_s: when the rate is unknown; at most.
    """

    mode: Mode = "optimistic"
    output_quantile: float = 0.9
    assumed_output_tokens: int = 1024
    open_output_tokens: int = 4096
    min_open_output_tokens: int = 256
    max_queue_length: int = 256
    max_wait_s: float = 30.0
    ageing_s: float = 2.0
    bypass_limit: int = 32
    scan_limit: int = 64
    drain_half_life_s: float = 10.0
    retry_fallback_s: int = 5
    retry_cap_s: int = 120

    def __post_init__(self) -> None:
        if self.mode not in ("optimistic", "worst_case"):
            raise ConfigError(f"mode must be optimistic or worst_case, not {self.mode!r}")
        check_number("output_quantile", self.output_quantile, low=0, high=1, above=True)
        check_int("assumed_output_tokens", self.assumed_output_tokens, low=1)
        check_int("open_output_tokens", self.open_output_tokens, low=1)
        check_int("min_open_output_tokens", self.min_open_output_tokens, low=1)
        check_not_above(
            "min_open_output_tokens",
            self.min_open_output_tokens,
            "open_output_tokens",
            self.open_output_tokens,
        )
        check_int("max_queue_length", self.max_queue_length, low=0)
        check_number("max_wait_s", self.max_wait_s, low=0)
        check_number("ageing_s", self.ageing_s, low=0, above=True)
        check_int("bypass_limit", self.bypass_limit, low=0)
        check_int("scan_limit", self.scan_limit, low=1)
        check_number("drain_half_life_s", self.drain_half_life_s, low=0, above=True)
        check_int("retry_fallback_s", self.retry_fallback_s, low=1)
        check_int("retry_cap_s", self.retry_cap_s, low=1)
        check_not_above("retry_fallback_s", self.retry_fallback_s, "retry_cap_s", self.retry_cap_s)


def parse_priority(text: str) -> int:
    """A header's priority: `0` (lowest) … `9` (highest). Raises ValueError, naming the range."""
    if len(text) == 1 and "0" <= text <= "9":
        return int(text)
    raise ValueError(f"priority must be a whole number from {MIN_PRIORITY} to {MAX_PRIORITY}")
