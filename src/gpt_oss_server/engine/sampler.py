"""From logits to one token per sequence, vectorised over the batch.

Knows: penalties, temperature, filters, seeds, log-probabilities. Does not know: sequences'
lives, text, models. Every row is computed from its own logits, parameters and random number
only, so a sequence's tokens do not depend on what else is in the batch.

Order of operations: bias, penalties, minimum length, guide; then temperature, min_p, top_k, top_p.
Log-probabilities are the model's own: of the logits before any of these.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gpt_oss_server.engine.guided import Guides, Restriction
from gpt_oss_server.engine.sequence import Sequence
from gpt_oss_server.types import SamplingParams

# Candidates looked at before the whole vocabulary is sorted for top_p.
TOP_P_CANDIDATES = 1024
# Probability 0 beside any other logit, and finite when divided by the least temperature.
LEAST_LOGIT = -1e30
# More than any API lets a client ask for.
LOGPROB_CANDIDATES = 32


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


_UNRESTRICTED = Restriction([], np.zeros((0, 0), dtype=np.int32), [])


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
            if len(fresh) == 1:  # the usual step: no pass over the vocabulary
                self._output[key][int(fresh[0])] += 1
            elif len(fresh):
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


class _Biases:
    """Each sequence's additive entries, on the device once and not once per step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._bias: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._stops: dict[int, torch.Tensor] = {}

    def add_to(self, row: torch.Tensor, seq: Sequence) -> None:
        """Add the sequence's `logit_bias` to its row of logits."""
        entry = self._bias.get(seq.key)
        if entry is None:
            bias = seq.job.sampling.logit_bias
            ids = torch.tensor(list(bias), dtype=torch.long, device=self._device)
            values = torch.tensor(list(bias.values()), dtype=torch.float32, device=self._device)
            entry = self._bias[seq.key] = ids, values
        row.index_add_(0, *entry)

    def forbid_stops(self, row: torch.Tensor, seq: Sequence) -> None:
        """Make the ids that would end the sequence impossible."""
        ids = self._stops.get(seq.key)
        if ids is None:
            stops = sorted(seq.stop_ids)
            ids = self._stops[seq.key] = torch.tensor(stops, dtype=torch.long, device=self._device)
        row.index_fill_(0, ids, -torch.inf)

    def drop(self, seq: Sequence) -> None:
        self._bias.pop(seq.key, None)
        self._stops.pop(seq.key, None)


class Sampler:
    """Samples the next token of each row. Holds what belongs to live sequences: penalty counts
    and biases."""

    def __init__(self, vocab_size: int, device: torch.device, guides: Guides | None = None) -> None:
        self.counts = PenaltyCounts(vocab_size, device)
        self._biases = _Biases(device)
        self._device = device
        self._guides = guides

    def drop(self, seq: Sequence) -> None:
        """Forget a sequence that has ended."""
        self.counts.drop(seq)
        self._biases.drop(seq)

    def sample(self, logits: torch.Tensor, seqs: Seq[Sequence]) -> Sampled:
        """logits [S, vocab] (any float dtype; not kept), `seqs` [S] before their new token."""
        params = [seq.job.sampling for seq in seqs]
        raw = logits.float()
        guides = self._guides
        restriction = None if guides is None else guides.restriction(seqs)
        adjusted = self._adjust(raw, seqs, params, restriction)
        tokens = adjusted.argmax(dim=-1)
        random_rows = [i for i, p in enumerate(params) if p.temperature > 0.0]
        if random_rows:
            chosen = self._draw(adjusted, random_rows, seqs, params)
            if len(random_rows) == len(seqs):
                tokens = chosen
            else:
                tokens[torch.tensor(random_rows, device=self._device)] = chosen
        finite = torch.isfinite(raw.amax(dim=-1)).tolist()
        ids: list[int] = tokens.tolist()
        if guides is not None and restriction is not None:
            settled = guides.settle(seqs, ids)
            if settled != ids:
                ids, tokens = settled, torch.tensor(settled, device=self._device)
        logprobs = self._logprobs(raw, tokens, params)
        return Sampled(ids, finite, logprobs)

    def _adjust(
        self,
        raw: torch.Tensor,
        seqs: Seq[Sequence],
        params: list[SamplingParams],
        restriction: Restriction | None,
    ) -> torch.Tensor:
        """Bias, penalties, minimum length and guides; `raw` itself is left alone."""
        out = raw
        guided = restriction or _UNRESTRICTED
        over = {row for row, ends in zip(guided.rows, guided.must_end, strict=True) if ends}
        penalised = [
            i
            for i, p in enumerate(params)
            if p.repetition_penalty != 1.0 or p.presence_penalty or p.frequency_penalty
        ]
        biased = [i for i, p in enumerate(params) if p.logit_bias]
        early = [
            i
            for i, seq in enumerate(seqs)
            if i not in over and seq.output_len < params[i].min_tokens
        ]
        if not (penalised or biased or early or guided.rows):
            return out
        out = raw.clone()
        for i in biased:
            self._biases.add_to(out[i], seqs[i])
        if penalised:
            self._penalise(out, penalised, seqs, params)
        for i in early:
            self._biases.forbid_stops(out[i], seqs[i])
        if guided.rows:
            self._restrict(out, guided)
        return out

    def _restrict(self, out: torch.Tensor, guided: Restriction) -> None:
        """Make impossible what the guided rows may not say."""
        bits = torch.from_numpy(guided.allowed).to(self._device)
        shifts = torch.arange(32, dtype=torch.int32, device=self._device)
        allowed = ((bits[:, :, None] >> shifts) & 1).flatten(1)[:, : out.shape[-1]].bool()
        index = torch.tensor(guided.rows, device=self._device)
        # Some allowed token must stay possible, even where the model gives them all nothing.
        logits = out[index].clamp(min=LEAST_LOGIT)
        out[index] = logits.masked_fill(~allowed, -torch.inf)

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
        """top_k, then top_p among what is left, as thresholds on the logits. Tokens that tie with
        the last one kept are kept too: which of equals a sort puts first depends on the batch,
        and the same seed must not."""
        vocab = scaled.shape[-1]
        limits = [p.top_k if 0 < p.top_k < vocab else vocab for p in params]
        bounded = [k for k in limits if k < vocab]
        most = min(vocab, max([TOP_P_CANDIDATES, *bounded]))
        values = torch.topk(scaled, most, dim=-1).values
        if bounded:
            last = torch.tensor([min(k, most) - 1 for k in limits], device=self._device)
            kth = values.gather(-1, last[:, None])
            unlimited = torch.tensor([k == vocab for k in limits], device=self._device)
            kth = kth.masked_fill(unlimited[:, None], -torch.inf)
            scaled = scaled.masked_fill(scaled < kth, -torch.inf)
            values = values.masked_fill(values < kth, -torch.inf)
        if any(p.top_p < 1.0 for p in params):
            top_p = torch.tensor(
                [p.top_p for p in params], dtype=torch.float64, device=self._device
            )[:, None]
            mass = torch.logsumexp(scaled.double(), dim=-1, keepdim=True)
            if most < vocab and bool((_covered(values, mass) < top_p).any()):
                values = torch.sort(scaled, dim=-1, descending=True).values
            probs = torch.exp(values.double() - mass)
            # Keep a token while the mass before it is below top_p: the first is always kept.
            kept = (probs.cumsum(dim=-1) - probs < top_p).sum(dim=-1, keepdim=True).clamp_(min=1)
            # top_p 1.0 keeps all, whatever rounding says of the mass before the last.
            floor = values.gather(-1, kept - 1).masked_fill(top_p >= 1.0, -torch.inf)
            scaled = scaled.masked_fill(scaled < floor, -torch.inf)
        return _invert(scaled, draws)

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
        # Always as many, and equals by id: what a row gets must not depend on its neighbours.
        most = min(LOGPROB_CANDIDATES, raw.shape[-1])
        most = max(most, min(max(count for _, count in wanted), raw.shape[-1]))
        values, ids = torch.topk(logs, most, dim=-1)
        for n, ((i, count), best, best_ids) in enumerate(
            zip(wanted, values.tolist(), ids.tolist(), strict=True)
        ):
            pairs = sorted(zip(best_ids, best, strict=True), key=lambda pair: (-pair[1], pair[0]))
            result[i] = (own[n], tuple(pairs[:count]))
        return result

    def _column(self, values: Seq[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device)


def _covered(values: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """The share of the whole distribution that the candidates have, [S, 1]."""
    return torch.exp(values.double() - mass).sum(dim=-1, keepdim=True)


def _invert(logits: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """The index at which the cumulative softmax of each row passes `draws` (float64 [S]); never
    an index of probability 0."""
    cumulative = torch.softmax(logits, dim=-1, dtype=torch.float64).cumsum(dim=-1)
    target = draws[:, None] * cumulative[:, -1:]
    found = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    return found.clamp_(max=logits.shape[-1] - 1)
