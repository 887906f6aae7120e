"""A real engine worker that writes down what its batcher was given and what it decided.

Started in place of `gpt_oss_server.engine.worker` by `recorded_server`. A JSON line for what the
engine says of itself, for every job taken (with the hashes of its prompt's blocks), every step and
every sequence that is over. It changes nothing of what it watches.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec

from gpt_oss_server.engine import worker
from gpt_oss_server.engine.batcher import Batch, Batcher
from gpt_oss_server.engine.core import EngineCore
from gpt_oss_server.engine.sequence import Sequence
from gpt_oss_server.types import Job

STEPS_FILE = "RECORDED_STEPS_FILE"


def watch(path: str) -> None:
    """Have every core and batcher of this process write to `path`."""
    out = open(path, "ab", buffering=0)  # noqa: SIM115 - as long as the process
    begin, submit = EngineCore.__init__, EngineCore.submit
    schedule, remove = Batcher.schedule, Batcher.remove

    def note(**fields: Any) -> None:
        out.write(msgspec.json.encode(fields) + b"\n")

    def begin_and_note(self: EngineCore, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        note(info=self.info(), even_tokens=self.batcher._cost.even_tokens)

    def submit_and_note(self: EngineCore, key: int, job: Job) -> None:
        submit(self, key, job)
        seq = self._jobs[key]
        hashes = [int.from_bytes(one[:6]) for one in seq.hasher.hashes]
        note(job=job.id, arrival=seq.arrival, prompt_tokens=len(job.prompt), hashes=hashes)

    def schedule_and_note(self: Batcher) -> Batch:
        before = self.preemptions
        batch = schedule(self)
        if batch.seqs:
            pairs = zip(batch.seqs, batch.tokens, strict=True)
            step = {str(seq.arrival): tokens for seq, tokens in pairs}
            note(step=step, preempted=self.preemptions - before)
        return batch

    def remove_and_note(self: Batcher, seq: Sequence) -> None:
        note(over=seq.arrival, output_tokens=seq.output_len, cached_tokens=seq.cached_tokens)
        remove(self, seq)

    EngineCore.__init__ = begin_and_note  # type: ignore[method-assign]
    EngineCore.submit = submit_and_note  # type: ignore[method-assign]
    Batcher.schedule = schedule_and_note  # type: ignore[method-assign]
    Batcher.remove = remove_and_note  # type: ignore[method-assign]


if __name__ == "__main__":
    watch(os.environ[STEPS_FILE])
    worker.main()
