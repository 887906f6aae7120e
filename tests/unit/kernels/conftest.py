"""Settles, before any test here imports Triton, whether kernels are interpreted."""

from __future__ import annotations

import kernel_device

__all__ = ["kernel_device"]
