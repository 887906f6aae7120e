"""How fast a core is, moment by moment, by a fixed piece of work that knows nothing of servers.

    python -m own_bench.probe CORE      # until stdin closes; then one JSON line

Knows: one core's CPU time for a third of a millisecond of small products and what goes between
them, the kind of work that a step is, forty times a second. (Plain arithmetic stays as fast when
others on the host take caches away, and a step does not.) Does not know: who else is there. CPU
time, not the clock: waiting for the core does not count, but a core that does less per second, as
a virtual one does while its host serves others, shows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import torch

from engine_bench.systems import BenchError, environment
from own_bench.pinned import put_first

EVERY_S = 0.025
WIDTH, LAYERS, ROWS = 160, 12, 8
FASTEST_SHARE = 0.1


class Probe:
    """A probe on one core, from its making until `close`."""

    def __init__(self, core: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "own_bench.probe", str(core)],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._samples: list[tuple[float, float]] = []

    def close(self) -> None:
        """Take the samples; once is enough. Raises BenchError where there are none."""
        if self._process.stdin is None or self._process.stdin.closed:
            return
        out, _ = self._process.communicate("", timeout=30)
        self._samples = [(at_s, took_s) for at_s, took_s in json.loads(out or "[]")]
        if not self._samples:
            raise BenchError("the probe took no samples")

    def slowness(self, began_s: float, ended_s: float) -> float:
        """Mean time of the work between two moments of the monotonic clock, over its time when the
        core was at its fastest. 1.0: undisturbed."""
        all_s = sorted(took_s for _, took_s in self._samples)
        fastest_s = all_s[int(FASTEST_SHARE * len(all_s))]
        within = [took_s for at_s, took_s in self._samples if began_s <= at_s <= ended_s]
        if not within:
            raise BenchError("the probe took no samples in that time")
        return sum(within) / len(within) / fastest_s


def main(core: int) -> None:
    os.sched_setaffinity(0, {core})
    put_first()
    over = threading.Event()
    samples: list[tuple[float, float]] = []

    def read() -> None:
        sys.stdin.read()
        over.set()

    torch.set_num_threads(1)
    weights = torch.randn(LAYERS, WIDTH, WIDTH) / WIDTH**0.5
    states = torch.randn(ROWS, WIDTH)
    threading.Thread(target=read, daemon=True).start()
    while not over.wait(EVERY_S):
        at_s, began_s = time.monotonic(), time.thread_time()
        work(weights, states)
        samples.append((at_s, time.thread_time() - began_s))
    print(json.dumps(samples))


@torch.inference_mode()
def work(weights: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Layers of a product, a gate, a norm and a rotation."""
    half = WIDTH // 2
    for weight in weights:
        states = torch.nn.functional.silu(states @ weight)
        states = states * torch.rsqrt((states * states).mean(-1, keepdim=True) + 1e-5)
        states = torch.cat((-states[:, half:], states[:, :half]), 1)
    return states


if __name__ == "__main__":
    main(int(sys.argv[1]))
