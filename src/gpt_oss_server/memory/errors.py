"""What the memory room cannot answer, as typed errors.

    StartupError
    ├── ShapeUnknown        the config lacks what even an upper bound needs
    ├── PoolTooSmall        the KV budget does not hold one block of each pool
    └── ConfigError
        └── ImpossibleSplit the ranks asked for cannot share the model's heads or layers

All are start-up errors: once a model's shape and pools are known, asking what a request costs
cannot fail.
"""

from __future__ import annotations

from gpt_oss_server.errors import ConfigError, StartupError


class ShapeUnknown(StartupError):
    """The model config lacks a field without which not even an upper bound can be stated."""


class PoolTooSmall(StartupError):
    """The KV budget is too small. `needed_bytes` is the least that would do, per rank."""

    def __init__(self, message: str, *, needed_bytes: int) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes


class ImpossibleSplit(ConfigError):
    """Tensor or pipeline ranks that cannot share the model's KV heads or layers evenly."""
