"""From logits to one token per sequence, vectorised over the batch.

Knows: penalties, temperature, filters, seeds, log-probabilities. Does not know: sequences'
lives, text, models. Every row is computed from its own logits, parameters and random number
only, so a sequence's tokens do not depend on what else is in the batch.

Order of operations: bias, penalties, minimum length; then temperature, min_p, top_k, top_p.
Log-probabilities are the model's own: of the logits before any of these.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gpt_oss_server.engine.sequence import Sequence
from gpt_oss_server.types import SamplingParams


def uniforms(seeds: npt.NDArray[np.uint64], steps: npt.NDArray[np.uint64]) -> torch.Tensor:
    """One number in [0, 1) per row, a pure function of (seed, output index): float64 [S].

    SplitMix64 (Steele, Lea, Flood 2014) used as a counter-based generator, so that a preempted
    or re-batched sequence draws the same numbers again.
    """
    with np.errstate(over="ignore"):
        z = _mix(seeds + np.uint64(0x9E3779B97F4A7C15)) ^ (steps * np.uint64(0xD1342543DE82EF95))
        z = _mix(z + np.uint64(0x9E3779B97F4A7C15))
    return torch.from_numpy((z >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@dataclass(frozen=True, slots=True)
class Sampled:
    """S rows' results on the host. `finite[i]` is False where the model gave no usable logits
    (the row's token is then meaningless). `logprobs[i]` is None where none were asked for, else
    (the token's log-probability, best alternatives)."""

    tokens: list[int]
    finite: list[bool]
    logprobs: list[tuple[float, tuple[tuple[int, float], ...]] | None]


class PenaltyCounts:
    """How often each token occurred, for the sequences whose parameters penalise: rows of
    [vocab] int32 on the device, kept by sequence key and dropped with it."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._prompt: dict[int, torch.Tensor] = {}
        self._output: dict[int, torch.Tensor] = {}
        self._counted: dict[int, int] = {}

    def rows(self, seqs: Seq[Sequence]) -> tuple[torch.Tensor, torch.Tensor]:
        """(seen in prompt, count in output), both [len(seqs), vocab], brought up to date."""
        for seq in seqs:
            key = seq.key
            if key not in self._prompt:
                self._prompt[key] = self._count(seq.tokens[: seq.prompt_len])
                self._output[key] = torch.zeros_like(self._prompt[key])
                self._counted[key] = seq.prompt_len
            fresh = seq.tokens[self._counted[key] :]
            if len(fresh):
                self._output[key] += self._count(fresh)
                self._counted[key] = seq.length
        prompt = torch.stack([self._prompt[s.key] for s in seqs])
        return prompt, torch.stack([self._output[s.key] for s in seqs])

    def drop(self, seq: Sequence) -> None:
        for table in (self._prompt, self._output, self._counted):
            table.pop(seq.key, None)

    def __len__(self) -> int:
        return len(self._prompt)

    def _count(self, tokens: npt.NDArray[np.int32]) -> torch.Tensor:
        ids = torch.from_numpy(tokens.astype(np.int64)).to(self._device)
        return torch.bincount(ids, minlength=self._vocab_size).to(torch.int32)


class Sampler:
    """Samples the next token of each row. Holds only the penalty counts."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.counts = PenaltyCounts(vocab_size, device)
        self._device = device

    def sample(self, logits: torch.Tensor, seqs: Seq[Sequence]) -> Sampled:
        """logits [S, vocab] (any float dtype; not kept), `seqs` [S] before their new token."""
        params = [seq.job.sampling for seq in seqs]
        raw = logits.float()
        adjusted = self._adjust(raw, seqs, params)
        tokens = adjusted.argmax(dim=-1)
        random_rows = [i for i, p in enumerate(params) if p.temperature > 0.0]
        if random_rows:
            chosen = self._draw(adjusted, random_rows, seqs, params)
            if len(random_rows) == len(seqs):
                tokens = chosen
            else:
                tokens[torch.tensor(random_rows, device=self._device)] = chosen
        finite = torch.isfinite(raw.amax(dim=-1))
        logprobs = self._logprobs(raw, tokens, params)
        return Sampled(tokens.tolist(), finite.tolist(), logprobs)

    def _adjust(
        self, raw: torch.Tensor, seqs: Seq[Sequence], params: list[SamplingParams]
    ) -> torch.Tensor:
        """Bias, penalties and minimum length; `raw` itself is left alone."""
        out = raw
        penalised = [
            i
            for i, p in enumerate(params)
            if p.repetition_penalty != 1.0 or p.presence_penalty or p.frequency_penalty
        ]
        sparse = [
            (i, token, value) for i, p in enumerate(params) for token, value in p.logit_bias.items()
        ]
        early = [
            (i, token, float("-inf"))
            for i, seq in enumerate(seqs)
            if seq.output_len < params[i].min_tokens
            for token in seq.stop_ids
        ]
        if not (penalised or sparse or early):
            return out
        out = raw.clone()
        if sparse:
            self._add(out, sparse)
        if penalised:
            self._penalise(out, penalised, seqs, params)
        if early:
            self._add(out, early)
        return out

    def _add(self, out: torch.Tensor, entries: list[tuple[int, int, float]]) -> None:
        rows, tokens, values = zip(*entries, strict=True)
        index = torch.tensor([rows, tokens], device=self._device)
        out.index_put_((index[0], index[1]), self._column(values), accumulate=True)

    def _penalise(
        self,
        out: torch.Tensor,
        rows: list[int],
        seqs: Seq[Sequence],
        params: list[SamplingParams],
    ) -> None:
        """repetition (Keskar et al. 2019, over prompt and output) as transformers applies it;
        presence and frequency (over the output) as OpenAI documents them."""
        index = torch.tensor(rows, device=self._device)
        prompt, output = self.counts.rows([seqs[i] for i in rows])
        repetition = self._column([params[i].repetition_penalty for i in rows])[:, None]
        presence = self._column([params[i].presence_penalty for i in rows])[:, None]
        frequency = self._column([params[i].frequency_penalty for i in rows])[:, None]
        logits = out[index]
        seen = (prompt > 0) | (output > 0)
        repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
        logits = torch.where(seen, repeated, logits)
        logits = logits - presence * (output > 0) - frequency * output
        out[index] = logits

    def _draw(
        self,
        logits: torch.Tensor,
        rows: list[int],
        seqs: Seq[Sequence],
        params: list[SamplingParams],
    ) -> torch.Tensor:
        """One token id per row of `rows` by inverting the cumulative distribution at one
        uniform number each."""
        chosen = [params[i] for i in rows]
        seeds = np.array([p.seed & 0xFFFFFFFFFFFFFFFF for p in chosen], dtype=np.uint64)
        steps = np.array([seqs[i].output_len for i in rows], dtype=np.uint64)
        draws = uniforms(seeds, steps).to(self._device)
        scaled = logits if len(rows) == len(seqs) else logits[torch.tensor(rows)]
        scaled = scaled / self._column([p.temperature for p in chosen])[:, None]
        if any(p.min_p > 0.0 for p in chosen):
            floor = torch.log(self._column([p.min_p for p in chosen])[:, None])
            scaled = scaled.masked_fill(scaled < scaled.amax(-1, keepdim=True) + floor, -torch.inf)
        filtered = [i for i, p in enumerate(chosen) if p.top_k > 0 or p.top_p < 1.0]
        if not filtered:
            return _invert(scaled, draws)
        if len(filtered) == len(chosen):
            return self._draw_filtered(scaled, draws, chosen)
        tokens = _invert(scaled, draws)
        index = torch.tensor(filtered, device=self._device)
        part = [chosen[i] for i in filtered]
        tokens[index] = self._draw_filtered(scaled[index], draws[index], part)
        return tokens

    def _draw_filtered(
        self, scaled: torch.Tensor, draws: torch.Tensor, params: list[SamplingParams]
    ) -> torch.Tensor:
        """top_k, then top_p among what is left, over the sorted distribution."""
        vocab = scaled.shape[-1]
        limits = [p.top_k if 0 < p.top_k < vocab else vocab for p in params]
        values, ids = torch.topk(scaled, max(limits), dim=-1)
        rank = torch.arange(values.shape[-1], device=self._device)
        beyond = rank >= torch.tensor(limits, device=self._device)[:, None]
        values = values.masked_fill(beyond, -torch.inf)
        probs = torch.softmax(values, dim=-1, dtype=torch.float64)
        # Keep a token while the mass before it is below top_p: the first is always kept.
        before = probs.cumsum(dim=-1) - probs
        top_p = torch.tensor([p.top_p for p in params], dtype=torch.float64, device=self._device)
        values = values.masked_fill((before >= top_p[:, None]) & (rank > 0), -torch.inf)
        position = _invert(values, draws)
        return ids.gather(-1, position[:, None]).squeeze(-1)

    def _logprobs(
        self, raw: torch.Tensor, tokens: torch.Tensor, params: list[SamplingParams]
    ) -> list[tuple[float, tuple[tuple[int, float], ...]] | None]:
        wanted = [(i, p.logprobs) for i, p in enumerate(params) if p.logprobs is not None]
        result: list[tuple[float, tuple[tuple[int, float], ...]] | None] = [None] * len(params)
        if not wanted:
            return result
        index = torch.tensor([i for i, _ in wanted], device=self._device)
        logs = torch.log_softmax(raw[index], dim=-1)
        own = logs.gather(-1, tokens[index][:, None]).squeeze(-1).tolist()
        most = min(max(count for _, count in wanted), raw.shape[-1])
        values, ids = torch.topk(logs, most, dim=-1)
        for n, ((i, count), best, best_ids) in enumerate(
            zip(wanted, values.tolist(), ids.tolist(), strict=True)
        ):
            pairs = tuple(zip(best_ids[:count], best[:count], strict=True))
            result[i] = (own[n], pairs)
        return result

    def _column(self, values: Seq[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device)


def _invert(logits: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """The index at which the cumulative softmax of each row passes `draws` (float64 [S]); never
    an index of probability 0."""
    cumulative = torch.softmax(logits, dim=-1, dtype=torch.float64).cumsum(dim=-1)
    target = draws[:, None] * cumulative[:, -1:]
    found = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    return found.clamp_(max=logits.shape[-1] - 1)
