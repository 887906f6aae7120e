"""The desk: facts, decision and counts of every request."""

from __future__ import annotations

import asyncio
import logging

import pytest
from dispatch_parts import (
    INFO,
    Guest,
    assert_at_rest,
    call,
    complete,
    desk,
    gpu,
    output,
    pass_time,
    run,
    settle,
    started,
)

from gpt_oss_server.dispatch.desk import Call
from gpt_oss_server.dispatch.estimate import estimator_for
from gpt_oss_server.errors import EngineFailed, Overloaded
from gpt_oss_server.facts import MB_BYTES, RequestFacts
from gpt_oss_server.routing import RoutingConfig
from gpt_oss_server.routing.replay import DecisionRecord, replay

SMALL = RoutingConfig(large_input_tokens=100, pressure_input_tokens=50)
NOTICE = "Large request detected but model in single GPU mode"


def test_facts_are_exact() -> None:
    """Input tokens of each prompt once, output bounds of all jobs, and the estimator's bytes."""

    async def story() -> None:
        records: list[DecisionRecord] = []
        counter = desk(await started(), records=records)
        request = call(
            100, 29, choices=3, name="r1", client_id="key-0", session_id="id:a", trace_id="t"
        )
        one = estimator_for(INFO).footprint(100, 29).bytes
        await complete(counter, request)
        assert one == 8 * 8192 + 7 * 4096
        assert records[0].facts == RequestFacts(
            request_id="r1",
            input_tokens=100,
            max_output_tokens=3 * 29,
            predicted_kv_bytes=3 * one,
            trace_id="t",
            client_id="key-0",
            session_id="id:a",
            priority=5,
        )

    run(story())


def test_different_prompts_each_count() -> None:
    """Two prompts of a completion with two samples each: both prompts, once."""

    async def story() -> None:
        records: list[DecisionRecord] = []
        counter = desk(await started(), records=records)
        jobs = [*call(30, 5, choices=2).jobs, *call(50, 5, choices=2).jobs]
        await complete(counter, Call(request_id="r", jobs=jobs))
        assert records[0].facts.input_tokens == 80
        assert records[0].facts.max_output_tokens == 20

    run(story())


def test_an_open_bound_can_do_with_less() -> None:
    """The prediction is for the whole bound; the least is with the smallest bound it may get."""

    async def story() -> None:
        records: list[DecisionRecord] = []
        counter = desk(await started(), records=records, min_open_output_tokens=20)
        estimator = estimator_for(INFO)
        await complete(counter, call(100, 500, explicit=False))
        await complete(counter, call(100, 15, explicit=False))
        facts = [record.facts for record in records]
        assert facts[0].predicted_kv_bytes == estimator.footprint(100, 500).bytes
        assert facts[0].least_kv_bytes == estimator.footprint(100, 20).bytes
        assert facts[1].least_kv_bytes == estimator.footprint(100, 15).bytes

    run(story())


def test_every_decision_can_be_made_again() -> None:
    """The record holds all that the decision was made from: replaying gives it again."""

    async def story() -> None:
        records: list[DecisionRecord] = []
        counter = desk(await started(), records=records, routing=SMALL)
        for tokens in (10, 101, 200):
            await complete(counter, call(tokens, 5))
        report = replay(records)
        assert (report.total, report.differences) == (3, ())
        assert report.recorded_triggers == {"none": 1, "large_input": 2}

    run(story())


def test_pressure_is_the_reading_and_what_runs() -> None:
    """The view in the decision has the probe's last reading; an old one is unknown."""

    async def story() -> None:
        records: list[DecisionRecord] = []
        routing = RoutingConfig(pressure_input_tokens=50, stale_after_s=10)
        counter = desk(
            await started(), records=records, routing=routing, readings=[gpu(used=901_000)]
        )
        await complete(counter, call(60, 5))
        await pass_time(10.5)
        await complete(counter, call(60, 5))
        first, second = (record.decision for record in records)
        assert first.trigger == "memory_pressure"
        assert first.pressure.value == (900_000 + 1100) / 10**6
        assert second.trigger is None
        assert second.pressure.value is None
        assert second.pressure.note == "gpu cpu: reading is 10.5 s old"

    run(story())


def test_the_view_counts_what_runs_and_what_waits() -> None:
    """Load is prompts of all, expected output of those that run; free KV lacks what they hold."""

    async def story() -> None:
        records: list[DecisionRecord] = []
        counter = desk(await started(), records=records)
        runs = Guest(counter, call(600, 100))
        await settle()
        waits = Guest(counter, call(500, 50))
        await settle()
        last = Guest(counter, call(10, 5))
        await settle()
        for guest in (last, runs, waits):
            guest.go.set()
        await asyncio.gather(runs.task, waits.task, last.task)
        await complete(counter, call(10, 5))
        seen = [record.fleet.replicas[0] for record in records]
        assert [view.load_tokens for view in seen] == [0, 700, 1200, 0]
        held = 44 * 8192 + 3 * 4096
        capacity = seen[0].kv_capacity_bytes
        assert [capacity - view.kv_free_bytes for view in seen[:2]] == [0, held]

    run(story())


def test_decisions_and_executions_are_counted_apart() -> None:
    """Three decided, one of them large; the one that is turned away never ran."""

    async def story() -> None:
        counter = desk(await started(), routing=SMALL, max_queue_length=0)
        held = Guest(counter, call(900, 5))
        await settle()
        with pytest.raises(Overloaded):
            await complete(counter, call(500, 5))
        await complete(counter, call(20, 5))
        assert held.lease is not None
        held.lease.saw(0, output(1))
        held.go.set()
        await held.task
        counts = counter.ledger.snapshot()
        assert counts.total_decisions == 3
        assert counts.triggers == {"large_input": 2, "large_kv": 0, "memory_pressure": 0}
        assert counts.single_gpu_decisions == 1
        assert counts.executed == {"single_gpu": 2, "multi_gpu": 0}
        assert counts.unmet_recommendations == 2
        assert_at_rest(counter)

    run(story())


def test_who_waits_is_known_by_client_and_goes_by_priority() -> None:
    """Admission sees the client, for fairness, and the priority: the later, higher one starts
    first."""

    async def story() -> None:
        counter = desk(await started())
        held = Guest(counter, call(900, 5))
        await settle()
        low = Guest(counter, call(901, 5, client_id="key-1", priority=1))
        await settle()
        high = Guest(counter, call(902, 5, client_id="key-2", priority=6))
        await settle()
        snapshot = counter.admission_snapshot()
        assert snapshot is not None
        assert snapshot.waiting_by_client == {"key-1": 1, "key-2": 1}
        held.go.set()
        await settle()
        assert (low.lease is None, high.lease is None) == (True, False)
        high.go.set()
        low.go.set()
        await asyncio.gather(held.task, low.task, high.task)
        assert_at_rest(counter)

    run(story())


def test_latency_is_of_answers_that_ended_well() -> None:
    """From arrival to the end, waiting included; a failed request has neither that nor a length."""

    async def story() -> None:
        counter = desk(await started())
        async with counter.admit(call(10, 5)):
            await pass_time(2.5)
        with pytest.raises(EngineFailed):
            async with counter.admit(call(10, 5)):
                raise EngineFailed("died")
        counts = counter.ledger.snapshot()
        assert counts.latency_sum_ms["single_gpu"] == 2500.0
        assert counts.latency_count["single_gpu"] == 1
        assert counter.latencies.quantile(1.0) == 2.5
        assert counter.lengths.quantile(1.0) == 10

    run(story())


def test_the_reason_on_the_lease() -> None:
    """What the header will say: all reasons, and whether they could be met."""

    async def story() -> None:
        counter = desk(await started(), routing=SMALL)
        small = await complete(counter, call(100, 5))
        large = await complete(counter, call(101, 5))
        assert (small.route, small.reason) == ("single_gpu", "default: no multi-GPU trigger")
        assert (large.route, large.reason) == (
            "single_gpu",
            "large_input: 101 > 100 tokens; no multi-GPU replica",
        )

    run(story())


@pytest.mark.parametrize(
    ("gpu_mode", "machine_gpus", "advice"),
    [
        ("single", 4, "Recommendation: restart with --gpu-mode auto or tensor"),
        ("single", None, "Recommendation: restart with --gpu-mode auto or tensor"),
        (
            "single",
            1,
            "Recommendation: none for this machine, it has one GPU; "
            "multi-GPU modes need at least two",
        ),
        (
            "single",
            0,
            "Recommendation: none for this machine, it has no GPU; "
            "multi-GPU modes need at least two",
        ),
    ],
)
def test_an_unmet_recommendation_is_logged_once_a_minute_and_always_counted(
    gpu_mode: str, machine_gpus: int | None, advice: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning with the advice, then silence for a minute, then how many were left out."""

    async def story() -> None:
        counter = desk(
            await started(),
            routing=SMALL,
            gpu_mode=gpu_mode,  # type: ignore[arg-type]
            machine_gpus=machine_gpus,
        )
        for n in range(3):
            await complete(counter, call(101, 5, name=f"r{n}"))
        await pass_time(59.9)
        await complete(counter, call(101, 5, name="r3"))
        await pass_time(0.1)
        await complete(counter, call(102, 5, name="r4"))
        assert counter.ledger.snapshot().unmet_recommendations == 5

    caplog.set_level(logging.INFO, "gpt_oss_server.dispatch.desk")
    run(story())
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("WARNING", f"{NOTICE} (large_input: 101 > 100 tokens). {advice} [r0]"),
        (
            "WARNING",
            f"{NOTICE} (large_input: 102 > 100 tokens). {advice}. "
            "(3 more such requests since the last line) [r4]",
        ),
    ]


def test_large_kv_counts_in_mb_of_2_to_the_20() -> None:
    """A threshold just under the prediction triggers, one at it does not."""

    async def story() -> None:
        records: list[DecisionRecord] = []
        predicted_mb = estimator_for(INFO).footprint(100, 29).bytes / MB_BYTES
        for limit in (predicted_mb, predicted_mb * 0.999):
            routing = RoutingConfig(large_kv_mb=limit, pressure_kv_mb=0)
            await complete(desk(await started(), routing=routing, records=records), call(100, 29))
        assert [record.decision.trigger for record in records] == [None, "large_kv"]

    run(story())
