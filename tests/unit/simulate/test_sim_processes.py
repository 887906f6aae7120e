"""Trials in other processes are the same trials."""

from __future__ import annotations

import signal

import pytest
from plan_builders import candidate, fleet
from sim_builders import replica

from gpt_oss_server.commands.trial_processes import ProcessRunner, _uninterrupted
from gpt_oss_server.errors import ConfigError, StartupError
from gpt_oss_server.simulate.fleet.pools import Fleet, Pool
from gpt_oss_server.simulate.plan.rules import Rule
from gpt_oss_server.simulate.plan.trials import Candidate, LocalRunner, Player, Trial
from gpt_oss_server.simulate.results.slo import Slo
from gpt_oss_server.simulate.workload.made import make_workload
from gpt_oss_server.simulate.workload.requests import Request, workload_of

CHAT = make_workload("chat", requests_per_s=10, duration_s=6, seed=2)
ODD = workload_of("odd", [Request(0.0, 100, 5, (1, 2))], unit_tokens=50)
PLAYER = Player({"base": CHAT, "odd": ODD}, Slo())


def test_processes_change_no_figure() -> None:
    """Two processes, four trials, any order: verdicts equal to those made here, to the last bit."""
    trials = [
        Trial(candidate(pools, rule=rule), "base", factor)
        for pools in ((2, 1), (1, 2))
        for rule, factor in (("least_request", 1.0), ("earliest_completion", 2.0))
    ]
    here = LocalRunner(PLAYER.play)
    with ProcessRunner(PLAYER, 2) as there:
        for trial in trials:
            here.submit(trial)
            there.submit(trial)
        elsewhere = {trial.key: verdict for trial, verdict in (there.take() for _ in trials)}
    assert elsewhere == {trial.key: verdict for trial, verdict in (here.take() for _ in trials)}
    assert len(elsewhere) == 4


def test_what_is_wrong_with_the_input_comes_back_as_one_line() -> None:
    """An error of a trial is raised where it is asked for."""
    with ProcessRunner(PLAYER, 1) as there:
        there.submit(Trial(candidate((1, 1)), "odd", 1.0))
        with pytest.raises(ConfigError, match="50 tokens is no whole number of blocks"):
            there.take()


def test_a_process_that_dies_is_not_waited_for() -> None:
    """One line that says what to try."""
    broken = Candidate(Fleet((Pool(replica(), 1),)), Rule("least_request"))
    with ProcessRunner(PLAYER, 1) as there:
        there.submit(Trial(broken, "no such traffic", 1.0))
        with pytest.raises(StartupError, match="ended by itself"):
            there.take()


def test_a_verdict_has_what_was_asked_for() -> None:
    """Loads, tokens per second and shares, of all requests."""
    verdict = PLAYER.play(Trial(candidate((2, 1)), "base", 2.0))
    assert verdict.requests_per_s == pytest.approx(2 * CHAT.requests_per_s)
    tokens = sum(request.output_tokens for request in CHAT.requests)
    mean = tokens / len(CHAT.requests)
    assert verdict.output_tokens_s == pytest.approx(2 * mean * CHAT.requests_per_s)
    assert verdict.met
    assert 0.0 < verdict.busy_share < 1.0
    assert (verdict.lost, verdict.cached_share) == ({}, 0.0)
    assert fleet((2, 1)).gpus == 2


def test_a_process_that_is_gone_is_sent_nothing() -> None:
    """One that ended while it had nothing to do is noticed when it gets something."""
    with ProcessRunner(PLAYER, 1) as there:
        (worker,) = there._workers
        worker.kill()
        worker.join()
        with pytest.raises(StartupError, match="ended by itself"):
            there.submit(Trial(candidate((1, 1)), "base", 1.0))


def test_processes_hear_no_interrupt_before_they_can_ignore_it() -> None:
    """It is held back while one is started, and no longer."""
    nothing: set[signal.Signals] = set()
    with _uninterrupted():
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, nothing)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, nothing)


def test_only_what_was_answered_is_paid_for() -> None:
    """A prompt that no replica holds makes no tokens, and so none cheaper. Three requests at two a
    second take a second and a half."""
    asked = workload_of("t", [Request(0.0, 100, 10), Request(1.0, 100, 10), Request(1.0, 10**6, 9)])
    verdict = Player({"base": asked}, Slo()).play(Trial(candidate((1, 1)), "base", 1.0))
    assert verdict.input_tokens_s == pytest.approx(200 / 1.5)
    assert verdict.output_tokens_s == pytest.approx(20 / 1.5)
    assert verdict.lost == {"refused": 1}
