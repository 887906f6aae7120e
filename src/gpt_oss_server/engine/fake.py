"""A deterministic engine without a model, for tests of everything above the engine port.

Knows: the `Engine` port and what it promises; `tests/contract/test_engine_contract.py` holds this
engine and the real one to the same promises. Does not know: torch, processes, time. It never
sleeps: jobs advance as fast as they are read, or, behind a closed gate, when a test lets them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec

from gpt_oss_server.engine.guided_spec import check_spec
from gpt_oss_server.errors import BadRequest, ContextTooLong, EngineFailed, NotReady, Overloaded
from gpt_oss_server.types import (
    EngineInfo,
    EngineState,
    EngineStats,
    Job,
    KvGroupInfo,
    SamplingParams,
    TokenDelta,
    TokenLogprob,
)

EOS = 2
DEFAULT_INFO = EngineInfo(
    vocab_size=1024,
    max_model_len=4096,
    eos_token_ids=(EOS,),
    block_size=16,
    kv_groups=(KvGroupInfo(name="full", layers=1, window=None, num_blocks=256, block_bytes=1),),
    kv_token_capacity=4096,
    max_num_seqs=64,
    dtype="float32",
    device="cpu",
    weights_bytes=0,
    attention_backend="none",
)


@dataclass(frozen=True)
class Script:
    """What one job produces: `token_ids`, over and over, until an end or the job's limit.

    Args:
        token_ids: at least one id.
        fail_after: raise `error` instead of the token with this index.
        tokens_per_delta: how many tokens come at once.
        cached_tokens: what the first delta reports.
    """

    token_ids: tuple[int, ...]
    fail_after: int | None = None
    error: Exception | None = None
    tokens_per_delta: int = 1
    cached_tokens: int = 0


def echo(job: Job) -> Script:
    """The prompt, then the end."""
    return Script((*job.prompt, EOS))


class FakeEngine:
    """An `Engine` that follows scripts.

    Args:
        script: the script of each job; by default the prompt is echoed.
        info: what the engine claims to be.
        max_active: more jobs than this at once raise Overloaded; None for no bound.
        retry_after_s: what Overloaded suggests.

    Attributes:
        jobs: every job accepted, in order.
        forgotten: every call of `forget`, in order.
        active: jobs between their first step and their end.
        finished, cancelled, failed: how jobs have ended so far.
    """

    def __init__(
        self,
        script: Callable[[Job], Script] = echo,
        *,
        info: EngineInfo = DEFAULT_INFO,
        max_active: int | None = None,
        retry_after_s: float = 2.0,
    ) -> None:
        self.script = script
        self.jobs: list[Job] = []
        self.forgotten: list[tuple[str, int]] = []
        self.active = 0
        self.finished = 0
        self.cancelled = 0
        self.failed = 0
        self._info = info
        self._max_active = max_active
        self._retry_after_s = retry_after_s
        self._state = EngineState(False, "not started")
        self._life = 0
        self._steps = 0
        self._decode_tokens = 0
        self._prefill_tokens = 0
        self._gate_open = True
        self._passes = 0
        self._changed = asyncio.Event()

    # The port.

    async def start(self) -> None:
        self._state = EngineState(True, "ready", self._state.restarts)
        self._notify()

    def forget(self, session: str, keep_tokens: int = 0) -> None:
        self.forgotten.append((session, keep_tokens))

    def info(self) -> EngineInfo:
        return self._info

    def state(self) -> EngineState:
        return self._state

    def stats(self) -> EngineStats:
        return EngineStats(
            running=self.active,
            steps=self._steps,
            prefill_tokens=self._prefill_tokens,
            decode_tokens=self._decode_tokens,
            jobs_finished=self.finished,
            jobs_failed=self.failed,
            jobs_cancelled=self.cancelled,
        )

    async def close(self) -> None:
        self._end_life("closed")

    async def generate(self, job: Job) -> AsyncGenerator[TokenDelta, None]:
        """The script's tokens as deltas. See the port for what is raised."""
        limit_tokens = self._admit(job)
        life = self._life
        self.jobs.append(job)
        self.active += 1
        self._prefill_tokens += len(job.prompt)
        self._notify()
        outcome: Literal["finished", "failed", "cancelled"] = "cancelled"
        try:
            for delta in self._deltas(job, limit_tokens):
                await self._pass_gate(life)
                if isinstance(delta, Exception):
                    raise delta
                self._steps += 1
                self._decode_tokens += len(delta.token_ids)
                if delta.finish is not None:
                    outcome = "finished"
                yield delta
        except Exception:
            outcome = "failed"
            raise
        finally:
            self.active -= 1
            setattr(self, outcome, getattr(self, outcome) + 1)
            self._notify()

    # What tests steer and see.

    def close_gate(self) -> None:
        """From now on, deltas wait for `let_pass` or `open_gate`."""
        self._gate_open = False

    def open_gate(self) -> None:
        self._gate_open = True
        self._notify()

    def let_pass(self, deltas: int) -> None:
        """Let this many deltas, of whatever jobs, through the closed gate."""
        self._passes += deltas
        self._notify()

    def crash(self, reason: str = "the worker died") -> None:
        """Every running job raises EngineFailed; the engine is not ready until `recover`."""
        self._end_life(reason)

    def recover(self) -> None:
        self._state = EngineState(True, "ready", self._state.restarts + 1)
        self._notify()

    async def until(self, predicate: Callable[[FakeEngine], bool]) -> None:
        """Return once `predicate` holds; looked at after every change of this engine."""
        while not predicate(self):
            await self._changed.wait()

    # Inside.

    def _admit(self, job: Job) -> int:
        if not self._state.ready:
            raise NotReady(f"The engine is not ready: {self._state.reason}")
        info, prompt_tokens = self._info, len(job.prompt)
        if not job.prompt or any(not 0 <= token < info.vocab_size for token in job.prompt):
            raise BadRequest("The prompt is empty or has ids outside the vocabulary.")
        if job.sampling.guided is not None:
            check_spec(job.sampling.guided, info.vocab_size)
        room_tokens = info.max_model_len - prompt_tokens
        wanted_tokens = job.sampling.max_tokens
        if room_tokens < 1 or (job.max_tokens_explicit and wanted_tokens > room_tokens):
            raise ContextTooLong(f"The context has {info.max_model_len} tokens.")
        if self._max_active is not None and self.active >= self._max_active:
            raise Overloaded("The engine is full.", retry_after_s=self._retry_after_s)
        return min(wanted_tokens, room_tokens)

    def _deltas(self, job: Job, limit_tokens: int) -> Iterator[TokenDelta | Exception]:
        script = self.script(job)
        ends = _ends(job.sampling, self._info)
        tokens: list[int] = []
        cached: int | None = script.cached_tokens
        for position, token in enumerate(_tokens(script, job.sampling, ends)):
            if position == script.fail_after:
                yield script.error or EngineFailed("The script says so.")
                return
            tokens.append(token)
            stopped = token in ends
            ended = stopped or position + 1 == limit_tokens
            if not ended and len(tokens) < script.tokens_per_delta:
                continue
            yield TokenDelta(
                token_ids=tuple(tokens),
                logprobs=self._logprobs(tokens, job.sampling.logprobs),
                finish=("stop" if stopped else "length") if ended else None,
                cached_tokens=cached,
            )
            if ended:
                return
            tokens, cached = [], None

    def _logprobs(self, tokens: list[int], wanted: int | None) -> tuple[TokenLogprob, ...] | None:
        """-0.5 for the chosen token, which is the likeliest; its successors follow one apart."""
        if wanted is None:
            return None
        vocab = self._info.vocab_size
        return tuple(
            TokenLogprob(
                token,
                -0.5,
                tuple(((token + rank) % vocab, -0.5 - rank) for rank in range(wanted)),
            )
            for token in tokens
        )

    async def _pass_gate(self, life: int) -> None:
        # Even an open gate lets the event loop run, as a real engine's queue does.
        await asyncio.sleep(0)
        await self.until(lambda _: self._gate_open or self._passes > 0 or self._life != life)
        if self._life != life:
            raise EngineFailed(f"The engine failed: {self._state.reason}")
        if not self._gate_open:
            self._passes -= 1

    def _end_life(self, reason: str) -> None:
        self._life += 1
        self._state = msgspec.structs.replace(self._state, ready=False, reason=reason)
        self._notify()

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _ends(params: SamplingParams, info: EngineInfo) -> frozenset[int]:
    eos = () if params.ignore_eos else info.eos_token_ids
    return frozenset((*params.stop_token_ids, *eos))


def _tokens(script: Script, params: SamplingParams, ends: frozenset[int]) -> Iterator[int]:
    """The script's ids without end; before `min_tokens` others stand in for those that end."""
    others = [token for token in script.token_ids if token not in ends] or [max(ends) + 1]
    position = 0
    while True:
        token = script.token_ids[position % len(script.token_ids)]
        if token in ends and position < params.min_tokens:
            token = others[position % len(others)]
        yield token
        position += 1
