"""The largest steps that the settings allow, run before the KV pools are there, and what they take.

Knows: which steps are largest, how to run them without pools. Does not know: how memory is counted
(`meter`), how a step is computed (`runner`), what is made of the figures (`outfit`).

Three steps of `max_num_seqs` sequences that all get a token:

- *wide*: a prefill of all tokens of the budget, shared evenly;
- *mixed*: one sequence prefills, all others decode at the end of the longest context, where
  attention splits their keys and needs room for the parts;
- *decode*: all of them do.

Their block tables name one block only, of pools of one block: what is computed is nonsense, but as
much of it as ever. Sampling takes the parameters that need most memory. Measured apart is what the
bound of `memory.activations` leaves out: the table that penalties keep for each sequence and, where
the engine looks ahead, what it holds of a step that is sampled from while it computes the next.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch

from gpt_oss_server.engine.attention.interface import LayerKv
from gpt_oss_server.engine.layout import allocate_layers
from gpt_oss_server.engine.meter import Meter, Peak
from gpt_oss_server.engine.runner import Runner
from gpt_oss_server.engine.sequence import Sequence
from gpt_oss_server.engine.shortage import Shortage, give_back
from gpt_oss_server.engine.step import HostLayout, StepLayout
from gpt_oss_server.errors import StartupError
from gpt_oss_server.memory.architecture import ModelShape
from gpt_oss_server.memory.kv import PoolGroup, PoolPlan, cache_groups
from gpt_oss_server.types import Job, SamplingParams

# Every filter, and as many alternatives as an API lets one ask for.
COSTLY = SamplingParams(
    max_tokens=1,
    temperature=1.0,
    top_p=0.9,
    top_k=500,
    min_p=1e-6,
    logprobs=20,
    logit_bias={0: 1.0},
)
PENALISED = SamplingParams(
    max_tokens=1,
    temperature=1.0,
    top_p=0.9,
    logprobs=20,
    frequency_penalty=0.5,
    repetition_penalty=1.1,
)
GREEDY = SamplingParams(max_tokens=1, temperature=0.0)
# One of each class of sizes by which kernels are compiled, that the largest steps do not show.
WARM_TOKENS = (16, 64, 128, 256)
WARM_ROWS = (1, 16, 32)
_FIRST_KEY = 1 << 40


@dataclass(frozen=True)
class Limits:
    """What bounds a step: its tokens, its sequences, the longest of them; and the model's."""

    batch_tokens: int
    max_num_seqs: int
    max_len: int
    block_size: int
    vocab_size: int
    groups: int


@dataclass(frozen=True)
class Profile:
    """What steps took beside weights and pools. `step`: the largest, sampled from at the greatest
    expense. `penalised`: the same with a table of penalties for every sequence, and one step behind
    another as the engine has them. `decode`: the largest decode step, not sampled from."""

    step: Peak
    penalised: Peak
    decode: Peak

    @property
    def set_aside_bytes(self) -> int:
        """What the device must have left for any step."""
        return max(self.step.reserved_bytes, self.penalised.reserved_bytes)


def tiny_pools(
    shape: ModelShape, block_size: int, dtype: torch.dtype, device: torch.device
) -> list[LayerKv]:
    """Pools of one block each."""
    groups = tuple(
        PoolGroup(group.name, group.window, group.layer_indices, 1, group.row_bytes * block_size)
        for group in cache_groups(shape, dtype.itemsize)
    )
    return allocate_layers(PoolPlan(groups, block_size), shape, block_size, dtype, device)


def wide(limits: Limits) -> StepLayout:
    """A prefill of the whole budget, shared evenly by as many sequences as may be."""
    count = min(limits.max_num_seqs, limits.batch_tokens)
    share, rest = divmod(limits.batch_tokens, count)
    tokens = [min(share + (n < rest), limits.max_len) for n in range(count)]
    return _layout(limits, tokens, tokens)


def mixed(limits: Limits) -> StepLayout:
    """One sequence prefills what the decoding ones leave of the budget."""
    decoding = min(limits.max_num_seqs, limits.batch_tokens) - 1
    prefill = min(limits.batch_tokens - decoding, limits.max_len)
    return _layout(limits, [1] * decoding + [prefill], [limits.max_len] * decoding + [prefill])


def decode(limits: Limits) -> StepLayout:
    """Every sequence decodes its last possible token."""
    count = min(limits.max_num_seqs, limits.batch_tokens)
    return _layout(limits, [1] * count, [limits.max_len] * count)


def _layout(limits: Limits, tokens: Seq[int], lengths: Seq[int]) -> StepLayout:
    start = np.concatenate(([0], np.cumsum(tokens))).astype(np.int64)
    columns = -(-max(lengths) // limits.block_size)
    table = np.zeros((len(tokens), columns), dtype=np.int32)
    # All ids, so that tokens choose different experts.
    ids = np.arange(start[-1], dtype=np.int64) % limits.vocab_size
    host = HostLayout(start, np.asarray(lengths, dtype=np.int64), (table,) * limits.groups)
    return StepLayout(ids, start[1:] - 1, host)


def run(runner: Runner, layouts: Seq[StepLayout], sampling: SamplingParams | None) -> None:
    """Steps of sequences that all sample by these parameters, or none of them. With lookahead each
    is launched while the one before it, which is sampled from, is not collected yet."""
    before: list[Sequence | None] | None = None
    for layout in layouts:
        seqs: list[Sequence | None] = [None] * len(layout.sample_rows)
        if sampling is not None:
            seqs = [_somebody(_FIRST_KEY + n, sampling) for n in range(len(seqs))]
        runner.launch(layout)
        if before is not None:
            runner.collect(before)
        runner.sample(seqs)
        before = seqs
        if not runner.lookahead:
            runner.collect(seqs)
            before = None
    if before is not None:
        runner.collect(before)


def _somebody(key: int, sampling: SamplingParams) -> Sequence:
    job = Job(id="profile", prompt=[0], sampling=sampling)
    return Sequence.create(
        key, job, arrival=0, max_tokens=1, groups=0, block_size=1, stop_ids=frozenset()
    )


def profiled(
    make_runner: Callable[[], Runner], limits: Limits, meter: Meter, device: torch.device
) -> Profile:
    """`measure` a runner that is gone afterwards, with what it kept of the device. Raises
    StartupError where the largest steps have no room beside the weights."""
    try:
        profile = measure(make_runner(), limits, meter)
    except Shortage as shortage:
        raise StartupError(
            f"too little memory on {device}: a step of {limits.batch_tokens} tokens of "
            f"{limits.max_num_seqs} sequences does not fit beside the weights; lower "
            f"--max-batch-tokens or --max-num-seqs ({shortage})"
        ) from None
    give_back(device)
    return profile


def measure(runner: Runner, limits: Limits, meter: Meter) -> Profile:
    """Run the largest steps. The first time is not counted: kernels are compiled then, and
    libraries take workspaces that they keep. `runner` is not to be used for anything else.

    Raises:
        Shortage: the device has no room for such steps, whatever is left for KV.
    """
    steps, last = [wide(limits), mixed(limits)], decode(limits)

    def one_by_one() -> None:
        for step in steps:
            run(runner, [step], COSTLY)

    one_by_one()
    run(runner, [last], None)
    plain = meter.peak(one_by_one)
    decoding = meter.peak(lambda: run(runner, [last], None))
    # Each behind the other, so that what is kept of one is there while the other computes.
    penalised = meter.peak(lambda: run(runner, [*steps, steps[0]], PENALISED))
    return Profile(plain, penalised, decoding)


def warm(runner: Runner, limits: Limits) -> None:
    """Steps of few tokens and sequences, greedy and drawn, so that what is made at its first use is
    there: kernels are compiled by classes of both. They write into block 0 of each pool, which
    nobody holds yet."""
    most = min(limits.batch_tokens, limits.max_len)
    prompts = sorted({min(tokens, most) for tokens in WARM_TOKENS})
    decoding = min(limits.max_num_seqs, limits.batch_tokens)
    rows = sorted({min(count, decoding) for count in WARM_ROWS})
    steps = [_layout(limits, [tokens], [tokens]) for tokens in prompts]
    steps += [_layout(limits, [1] * count, [prompts[0]] * count) for count in rows]
    for step in steps:
        for sampling in (GREEDY, COSTLY):
            run(runner, [step], sampling)
            for n in range(len(step.sample_rows)):
                runner.sampler.drop(_somebody(_FIRST_KEY + n, sampling))
