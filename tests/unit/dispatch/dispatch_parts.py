"""A loop whose time a test sets, and desks over the fake engine, for the dispatch tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import msgspec

from gpt_oss_server.admission import AdmissionConfig, SessionConfig, SessionTable
from gpt_oss_server.dispatch.desk import Call, Desk, Lease
from gpt_oss_server.dispatch.fleet import LocalFleet
from gpt_oss_server.engine.fake import FakeEngine
from gpt_oss_server.facts import GpuMode
from gpt_oss_server.ports import GpuReading
from gpt_oss_server.routing import RoutingConfig, TriggerPolicy
from gpt_oss_server.routing.replay import DecisionRecord
from gpt_oss_server.telemetry.gpu import ProbedGpu
from gpt_oss_server.trail import Journal
from gpt_oss_server.types import EngineInfo, Job, KvGroupInfo, SamplingParams, TokenDelta

T = TypeVar("T")

# Enough turns of the loop for everything that can happen at one moment to have happened.
TURNS = 20

INFO = EngineInfo(
    vocab_size=1024,
    max_model_len=4096,
    eos_token_ids=(2,),
    block_size=16,
    kv_groups=(
        KvGroupInfo(name="full", layers=2, window=None, num_blocks=64, block_bytes=8192),
        KvGroupInfo(name="sliding", layers=2, window=32, num_blocks=40, block_bytes=4096),
    ),
    kv_token_capacity=1024,
    max_num_seqs=8,
    max_batch_tokens=64,
    dtype="float32",
    device="cpu",
    weights_bytes=1000,
    activations_peak_bytes=100,
    attention_backend="none",
)


class SteeredLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock stands still until `pass_time`."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        super().__init__()

    def time(self) -> float:
        return self.now_s

    def timers(self) -> list[float]:
        """The moments for which something is scheduled."""
        handles: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        return sorted(handle.when() for handle in handles if not handle.cancelled())


def now_s() -> float:
    """The running loop's time, as the clock of what is tested."""
    return asyncio.get_running_loop().time()


async def settle() -> None:
    """Let everything happen that can happen now."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def pass_time(seconds: float) -> None:
    """Move the clock, and let happen what was due."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SteeredLoop)
    loop.now_s += seconds
    await settle()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a test's coroutine on a steered loop."""
    with asyncio.Runner(loop_factory=SteeredLoop) as runner:
        return runner.run(work)


def info(**more: Any) -> EngineInfo:
    return msgspec.structs.replace(INFO, **more)


def gpu(id: str = "cpu", total: int | None = 10**6, used: int | None = 0, **more: Any) -> ProbedGpu:
    """A reading; `at_s` is when it was taken."""
    at_s = more.pop("at_s", 1000.0)
    reading = GpuReading(id=id, total_bytes=total, used_bytes=used, **more)
    return ProbedGpu(reading, at_s, 0.0)


def desk(
    engine: FakeEngine,
    *,
    readings: Sequence[ProbedGpu] = (gpu(),),
    routing: RoutingConfig | None = None,
    sessions: SessionConfig | None = None,
    clock: Callable[[], float] = now_s,
    gpu_mode: GpuMode = "single",
    machine_gpus: int | None = 0,
    records: list[DecisionRecord] | None = None,
    journal: Journal | None = None,
    **admission: Any,
) -> Desk:
    """A desk over this engine; worst-case reservations unless told otherwise."""
    thresholds = routing or RoutingConfig()
    return Desk(
        engine=engine,
        fleet=LocalFleet(engine, lambda: readings, clock, gpu_mode, machine_gpus),
        policy=TriggerPolicy(thresholds),
        routing=thresholds,
        admission=AdmissionConfig(**{"mode": "worst_case", **admission}),
        sessions=SessionTable(sessions or SessionConfig()),
        clock=clock,
        on_decision=(lambda _: None) if records is None else records.append,
        journal=journal,
    )


def call(
    prompt_tokens: int = 10,
    max_tokens: int = 5,
    *,
    choices: int = 1,
    explicit: bool = True,
    name: str = "req",
    **more: Any,
) -> Call:
    """A request of `choices` samples of one prompt of bytes' ids."""
    prompt = [5 + n % 100 for n in range(prompt_tokens)]
    jobs = [
        Job(
            id=f"{name}-{n}",
            prompt=prompt,
            sampling=SamplingParams(max_tokens=max_tokens, seed=n),
            max_tokens_explicit=explicit,
        )
        for n in range(choices)
    ]
    return Call(request_id=name, jobs=jobs, **more)


async def started(engine_info: EngineInfo = INFO, **options: Any) -> FakeEngine:
    engine = FakeEngine(info=engine_info, **options)
    await engine.start()
    return engine


class Guest:
    """A request in a task of its own: holds its lease until told to go."""

    def __init__(self, counter: Desk, request: Call) -> None:
        self.go = asyncio.Event()
        self.lease: Lease | None = None
        self.task = asyncio.get_running_loop().create_task(self._run(counter, request))

    async def _run(self, counter: Desk, request: Call) -> None:
        async with counter.admit(request) as lease:
            self.lease = lease
            await self.go.wait()


def output(tokens: int, **more: Any) -> TokenDelta:
    """A delta with so many tokens."""
    return TokenDelta(token_ids=(7,) * tokens, **more)


async def complete(counter: Desk, request: Call, output_tokens: int = 0) -> Lease:
    """A request that produces so many tokens and ends well."""
    async with counter.admit(request) as lease:
        lease.saw(0, output(output_tokens))
    return lease


def assert_at_rest(counter: Desk) -> None:
    """Nothing is held anywhere."""
    snapshot = counter.admission_snapshot()
    assert snapshot is not None
    assert (snapshot.running, snapshot.waiting) == (0, 0)
    assert set(snapshot.blocks_used.values()) == {0}
    assert counter.sessions.totals().active == 0
