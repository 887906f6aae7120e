"""The largest steps and what they take: which they are, how it is counted, what is made of it."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine_runs import job, run
from gpt_oss_server.engine import outfit, profile, single
from gpt_oss_server.engine.attention.interface import LayerKv, TorchWrites
from gpt_oss_server.engine.core import EngineCore
from gpt_oss_server.engine.graphs import DRIVER_BYTES, LIBRARY_BYTES, ladder
from gpt_oss_server.engine.meter import Peak, make_meter
from gpt_oss_server.engine.outfit import equip
from gpt_oss_server.engine.profile import Limits, decode, mixed, wide
from gpt_oss_server.engine.runner import Runner
from gpt_oss_server.engine.shortage import Shortage
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.engine.step import StepInput, StepLayout
from gpt_oss_server.errors import StartupError
from gpt_oss_server.memory.activations import activations_of
from gpt_oss_server.memory.architecture import shape_from_config
from gpt_oss_server.memory.kv import PoolGroup, PoolPlan, plan_pools
from storage_meter import PeakBytes, StorageMeter
from tiny_models import build, saved

pytestmark = pytest.mark.usefixtures("one_thread")

LIMITS = Limits(batch_tokens=50, max_num_seqs=4, max_len=20, block_size=8, vocab_size=30, groups=2)
BUDGET = 64 << 20
# So many that sampling's copies of the logits are what a step holds at most.
WIDE_VOCABULARY = 6000


class Scoreless(TorchWrites):
    """Attention as a kernel has it, which keeps no scores: only its result is allocated. A plan
    and its backend in one."""

    name = "scoreless"
    capturable = False

    def plan(self, step: StepInput) -> Scoreless:
        return self

    def attend(self, layer: LayerKv, query: torch.Tensor, **also: Any) -> torch.Tensor:
        return torch.zeros(*query.shape[:2], layer.values.shape[3], dtype=query.dtype)


class Unsorted:
    """top_p as it is found on a GPU: nothing is sorted, and what is kept is the largest."""

    candidates = 1

    def floor(
        self, scaled: torch.Tensor, largest: torch.Tensor, top_p: torch.Tensor
    ) -> torch.Tensor:
        return largest[:, :1]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    made: dict[str, str] = {}

    def folder(name: str, **changes: Any) -> str:
        key = f"{name} {changes}"
        if key not in made:
            made[key] = saved(build(name, **changes), tmp_path_factory.mktemp(name))
        return made[key]

    return folder


def spec_of(folder: str, **settings: Any) -> EngineSpec:
    defaults: dict[str, Any] = {
        "device": "cpu",
        "max_num_seqs": 4,
        "max_batch_tokens": 128,
        "max_model_len": 128,
        "memory_budget_bytes": BUDGET,
    }
    return EngineSpec(folder=folder, **{**defaults, **settings})


@pytest.mark.parametrize(
    ("limits", "tokens"),
    [
        (LIMITS, [13, 13, 12, 12]),
        (Limits(50, 2, 20, 8, 30, 2), [20, 20]),  # the context bounds it
        (Limits(3, 8, 20, 8, 30, 2), [1, 1, 1]),  # the budget bounds the sequences
    ],
)
def test_the_widest_step_shares_the_budget(limits: Limits, tokens: list[int]) -> None:
    """As many sequences as may be prefill all tokens that there are, and all get a token."""
    layout = wide(limits)
    assert np.diff(layout.host.query_start).tolist() == tokens
    assert layout.host.seq_lens.tolist() == tokens
    assert layout.sample_rows.tolist() == (np.cumsum(tokens) - 1).tolist()
    assert layout.token_ids.max() < limits.vocab_size
    assert [table.shape for table in layout.host.tables] == [
        (len(tokens), -(-max(tokens) // 8))
    ] * 2
    assert not any(table.any() for table in layout.host.tables)


def test_the_mixed_and_the_decode_step_reach_the_end_of_the_context() -> None:
    """Those that decode do so with the longest context, where attention splits most."""
    both = mixed(LIMITS)
    assert np.diff(both.host.query_start).tolist() == [1, 1, 1, 20]
    assert both.host.seq_lens.tolist() == [20, 20, 20, 20]
    assert both.sample_rows.tolist() == [0, 1, 2, 22]
    all_decode = decode(LIMITS)
    assert np.diff(all_decode.host.query_start).tolist() == [1, 1, 1, 1]
    assert all_decode.host.seq_lens.tolist() == [20, 20, 20, 20]


def test_live_bytes_are_counted_to_the_byte() -> None:
    """The meter of these tests: what is alive at once, by storage; views and freed ones are not."""
    kept: list[torch.Tensor] = []

    def work() -> None:
        first = torch.zeros(1000, dtype=torch.float32)
        view = first.view(10, 100)
        second = view.double()
        del first, view, second
        kept.append(torch.ones(300, dtype=torch.uint8))
        kept[0].add_(1)

    assert StorageMeter().peak(work) == Peak(12000, 12000)
    kept.clear()
    assert StorageMeter().taken(work) == 300
    weight = torch.ones(64, 64)
    with PeakBytes([weight]) as measured:
        product = weight.t() @ weight
    assert measured.peak == product.nbytes == 64 * 64 * 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("vocab_size", [256, WIDE_VOCABULARY])
@pytest.mark.parametrize("name", ["gpt_oss", "llama", "qwen3_moe"])
def test_the_bound_covers_the_largest_step(
    folders: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    vocab_size: int,
    dtype: str,
) -> None:
    """What the config predicts is not less than what the forward pass and the costliest sampling
    really hold, and at most three times that."""
    monkeypatch.setattr(outfit, "make_backend", lambda *_: Scoreless())
    monkeypatch.setattr(single, "make_nucleus", lambda _: Unsorted())
    folder = folders(name, vocab_size=vocab_size, num_hidden_layers=2)
    info = equip(spec_of(folder, dtype=dtype), lambda _: None, lambda _: StorageMeter()).info
    config = json.loads((Path(folder) / "config.json").read_text())
    itemsize = 4 if dtype == "float32" else 2
    assert info.activations_bound_bytes == activations_of(config, 128, 4, itemsize).peak_bytes
    measured = info.activations_measured_bytes
    assert measured is not None
    assert measured <= info.activations_bound_bytes <= 3 * measured


def test_the_pool_takes_what_the_measured_step_leaves(folders: Callable[..., str]) -> None:
    """Budget less weights less the larger of the two peaks, not less the bound."""
    folder = folders("gpt_oss", vocab_size=WIDE_VOCABULARY, num_hidden_layers=2)
    said: list[str] = []
    info = equip(spec_of(folder), said.append, lambda _: StorageMeter()).info
    config = json.loads((Path(folder) / "config.json").read_text())
    left = BUDGET - info.weights_bytes - info.activations_peak_bytes
    plan = plan_pools(shape_from_config(config), left, 16, 4, 128, 4)
    assert [group.num_blocks for group in info.kv_groups] == [g.num_blocks for g in plan.groups]
    # Two tables of 4 bytes a token id for each sequence, as they grow, beside a step.
    penalties = 2 * 4 * 4 * WIDE_VOCABULARY
    assert info.activations_measured_bytes is not None
    assert info.activations_peak_bytes > info.activations_measured_bytes
    assert info.activations_peak_bytes > penalties
    assert "profiling the largest steps" in said
    assert [phase.name for phase in info.startup] == []  # they have not all passed yet


class TooMuch(StorageMeter):
    """Finds that steps take a MiB more than they do."""

    def peak(self, work: Callable[[], None]) -> Peak:
        allocated, reserved = super().peak(work)
        return Peak(allocated + (1 << 20), reserved + (1 << 20))


def test_a_step_beyond_its_bound_is_told(folders: Callable[..., str]) -> None:
    """The operator hears that the prediction was too low; the pool goes by what was measured."""
    folder = folders("llama", num_hidden_layers=2)
    fitting, exceeding = [], []
    less = equip(spec_of(folder), fitting.append, lambda _: StorageMeter()).info
    more = equip(spec_of(folder), exceeding.append, lambda _: TooMuch()).info
    [line] = [line for line in exceeding if line.startswith("warning")]
    assert line == (
        f"warning: the largest step took {more.activations_measured_bytes} bytes, more than the "
        f"{more.activations_bound_bytes} that follow from the model's config: the measured ones "
        "are set aside"
    )
    assert more.activations_peak_bytes == less.activations_peak_bytes + (1 << 20)
    assert more.kv_token_capacity < less.kv_token_capacity


def test_an_explicit_pool_is_what_was_asked_for(folders: Callable[..., str]) -> None:
    """With --kv-cache-memory the pool has these bytes, whatever a step takes."""
    folder = folders("gpt_oss", num_hidden_layers=2)
    spec = spec_of(folder, kv_cache_bytes=1 << 20)
    plain = equip(spec, lambda _: None).info
    profiled = equip(spec, lambda _: None, lambda _: StorageMeter()).info
    assert profiled.kv_groups == plain.kv_groups
    assert plain.activations_measured_bytes is None
    assert plain.activations_peak_bytes == plain.activations_bound_bytes > 0


def test_a_cpu_has_no_meter() -> None:
    """There the prediction decides, as the memory is shared with everything else."""
    assert make_meter(torch.device("cpu")) is None


def test_steps_that_do_not_fit_are_a_line(
    folders: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the largest step has no room beside the weights, the start says what to lower."""

    class Full:
        name, capturable = "full", False

        def forward(self, step: StepInput, context: Any) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(outfit, "make_forward", lambda *_: Full())
    folder = folders("llama", num_hidden_layers=2)
    with pytest.raises(StartupError) as caught:
        equip(spec_of(folder), lambda _: None, lambda _: StorageMeter())
    assert str(caught.value).startswith(
        "too little memory on cpu: a step of 128 tokens of 4 sequences does not fit beside the "
        "weights; lower --max-batch-tokens or --max-num-seqs (OutOfMemoryError at "
    )
    assert "\n" not in str(caught.value)


def test_a_small_step_that_does_not_fit_beside_the_pools_is_a_line(
    folders: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pools of the user's size may leave nothing at all: the start ends, and says what to lower."""
    folder = folders("llama", num_hidden_layers=2)
    spec = spec_of(folder)
    made = equip(spec, lambda _: None, lambda _: StorageMeter())

    def full(*_: Any) -> None:
        raise Shortage("OutOfMemoryError at somewhere")

    monkeypatch.setattr(single.ModelRunner, "launch", full)
    with pytest.raises(StartupError) as caught:
        EngineCore(spec, outfit=made)
    assert str(caught.value) == (
        "too little memory on cpu: no step has room beside the KV cache; lower --kv-cache-memory "
        "or --gpu-memory-utilization (OutOfMemoryError at somewhere)"
    )


def test_what_a_step_ahead_finds_in_memory_is_set_aside(folders: Callable[..., str]) -> None:
    """Where the engine looks ahead, a step computes beside the logits of the one before it and the
    log-probabilities of all its tokens. The bound is not of that, and stays a bound."""
    folder = folders("gpt_oss", num_hidden_layers=2)
    vocab_size, sequences = 256, 4
    plain = equip(spec_of(folder), lambda _: None, lambda _: StorageMeter()).info
    ahead = equip(spec_of(folder, lookahead=True), lambda _: None, lambda _: StorageMeter()).info
    held = 2 * 4 * sequences * vocab_size
    more = ahead.activations_peak_bytes - plain.activations_peak_bytes
    assert held <= more <= 1.5 * held
    assert ahead.activations_measured_bytes == plain.activations_measured_bytes


def test_what_the_measured_runner_kept_is_handed_back(
    folders: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tables and pools are gone before anyone asks the driver what is free: they are set aside
    for once, not also missed."""
    made: list[weakref.ref[Runner]] = []
    alive: list[object] = []
    measure = profile.measure

    def noted(runner: Runner, *rest: Any) -> profile.Profile:
        made.append(weakref.ref(runner))
        return measure(runner, *rest)

    monkeypatch.setattr(profile, "measure", noted)
    monkeypatch.setattr(profile, "give_back", lambda _: alive.append(made[0]()))
    equip(spec_of(folders("llama", num_hidden_layers=2)), lambda _: None, lambda _: StorageMeter())
    assert alive == [None]


@pytest.mark.parametrize("free_mib", [3, 1])
def test_a_pool_that_leaves_too_little_is_told(
    monkeypatch: pytest.MonkeyPatch, free_mib: int
) -> None:
    """Pools that fit, beside which a step does not, are warned of; such as fit not are refused."""
    mib = 1 << 20
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free_mib * mib, 80 * mib))
    pool = PoolPlan((PoolGroup("full", None, (0,), 2, mib),), 32)
    told: list[str] = []
    cuda = torch.device("cuda", 1)
    if free_mib == 1:
        with pytest.raises(StartupError, match="choose a smaller --kv-cache-memory"):
            outfit.check_pools(pool, cuda, 0, told.append)
        return
    outfit.check_pools(pool, cuda, mib, told.append)
    assert told == []
    outfit.check_pools(pool, cuda, mib + mib // 2, told.append)
    assert told == [
        "warning: steps may need 0.5 MiB more than the KV cache leaves of cuda:1: choose a smaller "
        "--kv-cache-memory"
    ]


class Noted:
    """A runner, and its sampler, that keep what they are asked for."""

    depth = 1
    lookahead = False

    def __init__(self) -> None:
        self.sampler: Any = self
        self.steps: list[tuple[int, int]] = []
        self.sampled: list[int] = []
        self.dropped: list[int] = []

    def launch(self, layout: StepLayout) -> None:
        self.steps.append((len(layout.token_ids), len(layout.sample_rows)))

    def sample(self, sampling: list[Any]) -> None:
        self.sampled += [seq.key for seq in sampling]

    def collect(self, sampling: list[Any]) -> None: ...

    def drop(self, seq: Any) -> None:
        self.dropped.append(seq.key)


def test_every_class_of_sizes_is_warmed() -> None:
    """Prompts and numbers of sequences up to where the largest steps take over, within what the
    settings allow; and the sampler keeps nothing of anybody."""
    large = replace(LIMITS, batch_tokens=2048, max_num_seqs=64, max_len=4096)
    small = replace(LIMITS, batch_tokens=40, max_num_seqs=2, max_len=4096)
    for limits, expected in (
        (large, {(16, 1), (64, 1), (128, 1), (256, 1), (1, 1), (16, 16), (32, 32)}),
        (small, {(16, 1), (40, 1), (1, 1), (2, 2)}),
    ):
        runner: Any = Noted()
        profile.warm(runner, limits)
        assert set(runner.steps) == expected
        assert len(runner.steps) == 2 * len(expected)
        assert runner.sampled == runner.dropped != []


@pytest.mark.parametrize("eager", [False, True])
def test_a_start_is_told_by_phase(
    folders: Callable[..., str], monkeypatch: pytest.MonkeyPatch, eager: bool
) -> None:
    """Each phase with its seconds, capture with its sizes and bytes or why it was skipped; and the
    engine serves what it serves without any of that."""
    folder = folders("gpt_oss", num_hidden_layers=2)
    spec = spec_of(
        folder, eager=eager, attention_backend="reference", memory_budget_bytes=200 << 20
    )
    monkeypatch.setattr(single.Single, "capturable", True)
    monkeypatch.setattr(single, "DecodeGraphs", Recorded)
    said: list[str] = []
    core = EngineCore(spec, said.append, equip(spec, said.append, lambda _: StorageMeter()))
    info = core.info()
    names = [phase.name for phase in info.startup]
    assert names == ["load", "rewrite", "profile", "pools", "capture", "warm"]
    assert [p.name for p in info.startup if p.seconds is None] == (["capture"] if eager else [])
    [line] = [line for line in said if line.startswith("start-up: ")]
    assert ("capture skipped (--eager)" in line) == eager
    assert info.graphs_bytes == (None if eager else 4 << 10)
    assert ("recorded steps took 0.0 MiB" in said) == (not eager)
    plain = EngineCore(spec_of(folder, attention_backend="reference"))
    jobs = {0: job([5, 6, 7]), 1: job(range(2, 60), temperature=1.0, seed=3, top_p=0.9)}
    found, expected = run(core, jobs), run(plain, jobs)
    assert [found[key].tokens for key in jobs] == [expected[key].tokens for key in jobs]
    assert len(core._runner.sampler._biases._bias) == 0


class Recorded:
    """Stands in for recordings, which need Triton; takes 4 KiB and no step."""

    def __init__(self, *parts: Any) -> None:
        self.sampled = torch.zeros(512, dtype=torch.int64)

    def takes(self, layout: Any) -> bool:
        return False


def test_room_for_recordings_is_set_aside(
    folders: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pools are smaller by what the recordings will take, and only where there will be any."""
    monkeypatch.setattr(single.Single, "capturable", True)
    folder = folders("llama", num_hidden_layers=2)

    def pools(*, eager: bool) -> int:
        spec = spec_of(folder, eager=eager, memory_budget_bytes=200 << 20)
        info = equip(spec, lambda _: None, lambda _: StorageMeter()).info
        return sum(group.num_blocks * group.block_bytes for group in info.kv_groups)

    less = pools(eager=True) - pools(eager=False)
    driver = LIBRARY_BYTES + len(ladder(4)) * DRIVER_BYTES
    assert driver < less < driver + (1 << 20)
