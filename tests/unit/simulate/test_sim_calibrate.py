"""The fit finds the server that made the loops, says what it is worth, and what it cannot tell."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sim_builders import MODEL_120B
from sim_loops import (
    HARDWARE,
    SERVED,
    TINY,
    TINY_COST,
    TRIALS,
    TRUE,
    loops,
    measured,
    slower,
    tiny_like,
)

from gpt_oss_server.doctor.published import PUBLISHED
from gpt_oss_server.errors import ConfigError
from gpt_oss_server.simulate.calibrate.fit_server import fit_server
from gpt_oss_server.simulate.calibrate.forward import foreseen
from gpt_oss_server.simulate.calibrate.likeness import replica_like
from gpt_oss_server.simulate.calibrate.served import Served
from gpt_oss_server.simulate.calibrate.trial import (
    Figures,
    Measured,
    Pace,
    Row,
    Trial,
    figures,
    grid,
    within,
)
from gpt_oss_server.simulate.cost.gpu_types import gpu_type
from gpt_oss_server.simulate.cost.layout import Shape
from gpt_oss_server.simulate.cost.roofline import Efficiency

CONFIG_120B = PUBLISHED["openai/gpt-oss-120b"]
LOOPS = loops()


def test_the_fit_finds_the_server_that_made_the_loops() -> None:
    """On hardware of which nothing is known, from nothing: steps come out as they are, whatever
    their parts, and loops that were held out are foreseen."""
    found = fit_server(LOOPS, SERVED, TINY, TINY_COST, HARDWARE)
    truth, guess = tiny_like(TRUE).time, tiny_like(found.efficiency).time
    for count in (1, 8, 32):
        steps = [time.decode_run_s(1, count, count * 200 * time.kv_s) for time in (truth, guess)]
        assert steps[1] == pytest.approx(steps[0], rel=0.03), count
    for tokens, context in ((64, 0), (256, 0), (256, 4000)):
        chunks = [time.base_s(tokens) + time.prefill_s(tokens, context) for time in (truth, guess)]
        assert chunks[1] == pytest.approx(chunks[0], rel=0.06), (tokens, context)
    assert found.verdict.fitted["e2e"].mean_absolute < 0.005
    assert found.verdict.held_out["e2e"].mean_absolute < 0.02
    assert found.verdict.held_out["ttft"].mean_absolute < 0.04


def test_other_loads_are_foreseen() -> None:
    """Loops of other lengths and clients than those fitted come out right."""
    found = fit_server(LOOPS, SERVED, TINY, TINY_COST, HARDWARE)
    for seed, trial in enumerate((Trial(24, 300, 30), Trial(3, 2500, 20), Trial(12, 16, 200))):
        truth = measured(trial, tiny_like(TRUE), 100 + seed)
        guess = foreseen(truth, tiny_like(found.efficiency))
        assert guess.e2e_s == pytest.approx(truth.figures().e2e_s, rel=0.03)


def test_one_bad_pass_moves_nothing() -> None:
    """Of three passes the median counts: one that was disturbed throughout changes no figure."""
    loop = LOOPS[1]
    thrice = loop.joined(slower(loop, 3.0)).joined(loop)
    assert thrice.figures() == loop.figures()
    assert thrice.spread() == pytest.approx(2.0)
    guess = foreseen(thrice, tiny_like(TRUE))
    assert guess.e2e_s == pytest.approx(loop.figures().e2e_s, rel=1e-6)


def test_a_known_gpu_keeps_what_the_loops_do_not_tell() -> None:
    """On an H100 the fit begins at the shipped figures. Decoding alone says nothing of prompts'
    operations: they stay, and it is said."""
    shape = Shape(gpu_type("h100"))
    served = Served("vllm", "0.11", "120b", kv_blocks=20_000, block_size=16)
    truth = replace(Efficiency(memory=0.8), sequence_s=40e-6)
    replica = replica_like(served, CONFIG_120B, MODEL_120B, shape, truth)
    trials = (Trial(1, 4, 300), Trial(8, 4, 300), Trial(32, 4, 300), Trial(64, 4, 300))
    decoding = [measured(trial, replica, rounds=2) for trial in trials]
    found = fit_server(decoding, served, CONFIG_120B, MODEL_120B, shape)
    fitted = replica_like(served, CONFIG_120B, MODEL_120B, shape, found.efficiency).time
    for count in (1, 16, 64):
        steps = [time.decode_run_s(1, count, 0.0) for time in (replica.time, fitted)]
        assert steps[1] == pytest.approx(steps[0], rel=0.03), count
    assert found.efficiency.compute == pytest.approx(Efficiency().compute, rel=0.05)
    assert found.efficiency.cache is None
    (about_compute,) = [line for line in found.verdict.warnings if "(compute)" in line]
    assert "these loops" in about_compute


def test_too_few_loops() -> None:
    """Two points tell nothing of eight terms."""
    with pytest.raises(ConfigError, match="at least 3 loops, not 2"):
        fit_server(LOOPS[:2], SERVED, TINY, TINY_COST, HARDWARE)


def test_cached_prefixes_are_played_as_cached() -> None:
    """Tokens that the server found cached are not computed in the simulated loop either."""
    rows = tuple(Row(0.1 * n, 1000, 8, 0.01, 0.05) for n in range(8))
    cold = Measured(Trial(1, 1000, 8), (rows,))
    warm = Measured(cold.trial, (tuple(row._replace(cached_tokens=960) for row in rows),))
    first, second = (foreseen(loop, tiny_like(TRUE)).ttft_s for loop in (cold, warm))
    assert second < first / 3


def test_a_replica_like_the_server() -> None:
    """Pools, limits, order and admission are the server's own; the context bounds a sequence."""
    replica = tiny_like(TRUE)
    assert (replica.kv_blocks, replica.settings.max_num_seqs) == (4000, 32)
    assert replica.longest_tokens == 16_384
    assert replica.settings.max_batch_tokens == 256
    assert replica.settings.admission == "reserve"
    assert {g.name: g.num_blocks for g in replica.info.kv_groups} == {"full": 4000, "sliding": 400}
    silent = replace(SERVED, kv_blocks=None, pools={}, max_num_seqs=None, max_batch_tokens=None)
    like = replica_like(silent, TINY, TINY_COST, HARDWARE, TRUE)
    assert like.settings.max_num_seqs == 64
    assert like.kv_blocks == 64 * 1024  # every slot's longest sequence


def test_figures_leave_out_extremes_and_the_unseen() -> None:
    """A tenth at either end, and answers without visible text, do not count."""
    rows = [Row(0.0, 10, 11, 1.0, 2.0)] * 18 + [Row(0.0, 10, 11, 50.0, 99.0)]
    rows += [Row(0.0, 10, 1, float("nan"), 2.0)]
    assert figures(rows) == Figures(1.0, pytest.approx(0.1), 2.0)
    assert figures([Row(0.0, 5, 1, 0.5, 0.5)]).tpot_s is None


def test_the_grid_fits_the_server() -> None:
    """No loop has more clients or tokens than the server takes, none is there twice, and the last
    one is mostly cached."""
    whole = grid(100_000, 256)
    assert max(trial.concurrency for trial in whole) == 64
    assert whole[-1].shared_tokens == 896
    small = grid(200, 4)
    assert len(set(small)) == len(small)
    for trial in small:
        assert trial.concurrency <= 4
        assert 1.2 * (trial.input_tokens + trial.output_tokens) <= 200
        assert trial.shared_tokens < trial.input_tokens


@pytest.mark.parametrize(
    ("seconds", "smaller"),
    [
        (1000.0, Trial(16, 2048, 64)),
        (100.0, Trial(16, 512, 64)),
        (20.0, Trial(16, 128, 16)),
        (0.1, Trial(1, 128, 8)),
    ],
)
def test_loops_are_made_to_fit_the_time(seconds: float, smaller: Trial) -> None:
    """Prompts are halved first, then answers, then clients."""
    assert within(Trial(16, 2048, 64), Pace(0.003, 0.02), seconds) == smaller


def test_no_two_trials_of_the_tests_are_alike() -> None:
    """Held-out loops are really others."""
    assert len(set(TRIALS)) == len(TRIALS) == len(LOOPS)
