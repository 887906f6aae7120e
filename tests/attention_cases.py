"""Paged attention problems laid out as an engine does, with the answer computed densely.

Knows: how blocks, tables and steps look, and attention's formula in float64. Does not know: any
backend. Whatever a backend must not read is poisoned: table entries that a sequence does not
hold point outside the pool, and unused parts of held blocks hold large numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from gpt_oss_server.engine.attention.interface import LayerKv
from gpt_oss_server.engine.step import HostLayout, StepInput

NOT_HELD = 1 << 20
LARGE = 1e4


@dataclass(frozen=True)
class Case:
    """One problem. `seqs` are (tokens already computed, tokens of this step)."""

    seqs: tuple[tuple[int, int], ...] = ((0, 5), (9, 1), (3, 4))
    heads: int = 4
    kv_heads: int = 2
    k_dim: int = 8
    v_dim: int = 8
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    block_size: int = 4
    dtype: torch.dtype = torch.float32
    seed: int = 0


@dataclass
class Problem:
    """The tensors of a case: what a backend takes, and each sequence's own keys and values."""

    case: Case
    layer: LayerKv
    step: StepInput
    query: torch.Tensor
    sinks: torch.Tensor | None
    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)

    @property
    def scale(self) -> float:
        return float(self.case.k_dim**-0.5)

    def rows(self, seq: int) -> slice:
        """The token rows of one sequence."""
        start = self.step.host.query_start
        return slice(int(start[seq]), int(start[seq + 1]))


def lay_out(case: Case, device: str = "cpu") -> Problem:
    """Random sequences in a shuffled pool."""
    random = torch.Generator().manual_seed(case.seed)
    size = case.block_size
    lens = np.array([computed + new for computed, new in case.seqs], dtype=np.int64)
    counts = np.array([new for _, new in case.seqs], dtype=np.int64)
    columns = -(-int(lens.max()) // size)
    num_blocks = int((-(-lens // size)).sum()) + 3
    spare = torch.randperm(num_blocks, generator=random).tolist()
    table = np.full((len(lens), columns), NOT_HELD, dtype=np.int32)

    def pool(dim: int) -> torch.Tensor:
        return torch.full((num_blocks, size, case.kv_heads, dim), LARGE)

    pool_keys, pool_values = pool(case.k_dim), pool(case.v_dim)
    keys, values, slots = [], [], []
    for row, (computed, new) in enumerate(case.seqs):
        length = computed + new
        k = torch.randn(length, case.kv_heads, case.k_dim, generator=random).to(case.dtype)
        v = torch.randn(length, case.kv_heads, case.v_dim, generator=random).to(case.dtype)
        seen_from = 0 if case.window is None else max(0, computed - case.window + 1)
        for block in range(seen_from // size, -(-length // size)):
            table[row, block] = spare.pop()
        for at in range(seen_from, length):
            block = table[row, at // size]
            pool_keys[block, at % size] = k[at].float()
            pool_values[block, at % size] = v[at].float()
        slots += [int(table[row, at // size]) * size + at % size for at in range(computed, length)]
        keys.append(k)
        values.append(v)
    start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    query = torch.randn(int(counts.sum()), case.heads, case.k_dim, generator=random)
    sinks = torch.randn(case.heads, generator=random) if case.sinks else None
    step = StepInput(
        token_ids=torch.zeros(int(counts.sum()), dtype=torch.long, device=device),
        positions=torch.zeros(int(counts.sum()), dtype=torch.long, device=device),
        slots=(torch.tensor(slots, device=device),),
        sample_rows=torch.from_numpy(start[1:] - 1).to(device),
        query_start=torch.from_numpy(start.astype(np.int32)).to(device),
        seq_lens=torch.from_numpy(lens.astype(np.int32)).to(device),
        tables=(torch.from_numpy(table).to(device),),
        host=HostLayout(start, lens, (table,)),
    )
    layer = LayerKv(
        0,
        case.window,
        pool_keys.to(device, case.dtype),
        pool_values.to(device, case.dtype),
    )
    return Problem(
        case,
        layer,
        step,
        query.to(device, case.dtype),
        None if sinks is None else sinks.to(device, case.dtype),
        keys,
        values,
    )


def dense_answer(problem: Problem) -> torch.Tensor:
    """Attention [T, heads, v_dim] in float64, one query and head at a time, by its formula."""
    case = problem.case
    group = case.heads // case.kv_heads
    query = problem.query.double().cpu()
    out = torch.empty(len(query), case.heads, case.v_dim, dtype=torch.float64)
    for row, (computed, new) in enumerate(case.seqs):
        keys, values = problem.keys[row].double(), problem.values[row].double()
        for nth in range(new):
            at, token = computed + nth, problem.rows(row).start + nth
            lowest = 0 if case.window is None else max(0, at - case.window + 1)
            for head in range(case.heads):
                k, v = keys[lowest : at + 1, head // group], values[lowest : at + 1, head // group]
                scores = k @ query[token, head] * problem.scale
                if case.softcap is not None:
                    scores = case.softcap * torch.tanh(scores / case.softcap)
                top = scores.max()
                weights = torch.exp(scores - top)
                total = weights.sum()
                if problem.sinks is not None:
                    total += torch.exp(problem.sinks[head].double().cpu() - top)
                out[token, head] = weights @ v / total
    return out
