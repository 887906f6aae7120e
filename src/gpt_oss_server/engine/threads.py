"""How many of the machine's cores an engine process takes. Knows: torch's thread pool."""

from __future__ import annotations

import os

from gpt_oss_server.engine.spec import EngineSpec


def set_threads(spec: EngineSpec) -> None:
    """`threads` 0 leaves one core to the front: two busy torch threads on two cores slow both
    processes down by up to ten times. Ranks have a core at least, and share them evenly."""
    import torch

    cores = len(os.sched_getaffinity(0))
    share = cores - 1 if spec.world == 1 else cores // spec.world
    torch.set_num_threads(spec.threads or max(1, share))
