"""From logits to one token per sequence, vectorised over the batch.

Knows: penalties, temperature, filters, seeds, log-probabilities. Does not know: sequences'
lives, text, models, tables of counts (`penalties`). Every row is computed from its own logits,
parameters and random number only, so a sequence's tokens do not depend on what else is in the
batch.

Order of operations: bias, penalties, minimum length, guide; then temperature, min_p, top_k, top_p.
Log-probabilities are the model's own: of the logits before any of these.

`draw` only gives the device work: all parameters are sent as one copy, nothing is read back, and
results are on their way to the host when it returns. `finish` waits for them. (One exception, on a
device without Triton: top_p may look whether its candidates were enough.)
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gpt_oss_server.engine.guided import Guides, Restriction
from gpt_oss_server.engine.nucleus import Nucleus, SortedNucleus
from gpt_oss_server.engine.penalties import Biases, PenaltyCounts
from gpt_oss_server.engine.sequence import Sequence
from gpt_oss_server.engine.staging import Array, Fetched, fetch, send_named
from gpt_oss_server.types import SamplingParams

# Probability 0 beside any other logit, and finite when divided by the least temperature.
LEAST_LOGIT = -1e30
# More than any API lets a client ask for.
LOGPROB_CANDIDATES = 32
MASK_64 = (1 << 64) - 1


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
class Drawn:
    """What `Sampler.draw` found: `tokens` [S] on the device, and all that the host wants to know on
    its way there. `logs` [W, vocab] are the log-probabilities of the W rows that asked for some.
    `restricted`: guides have the last word on the tokens; then `other` are two [W, 1], room for
    tokens that a guide wants instead and for their log-probabilities: what the host makes of a step
    must not need memory that the device may not have."""

    tokens: torch.Tensor
    back: Fetched
    logs: torch.Tensor | None
    restricted: bool
    other: tuple[torch.Tensor, torch.Tensor] | None = None


@dataclass(frozen=True, slots=True)
class Sampled:
    """S rows' results on the host. `finite[i]` is False where the model gave no usable logits
    (the row's token is then meaningless). `logprobs[i]` is None where none were asked for, else
    (the token's log-probability, best alternatives). `settled` are the rows whose token is not the
    one that was drawn, because a guide wanted another."""

    tokens: list[int]
    finite: list[bool]
    logprobs: list[tuple[float, tuple[tuple[int, float], ...]] | None]
    settled: frozenset[int] = frozenset()


class Sampler:
    """Samples the next token of each row. Holds what belongs to live sequences: penalty counts
    and biases."""

    def __init__(
        self,
        vocab_size: int,
        device: torch.device,
        guides: Guides | None = None,
        nucleus: Nucleus | None = None,
    ) -> None:
        self.counts = PenaltyCounts(vocab_size, device)
        self._biases = Biases()
        self._vocab_size = vocab_size
        self._device = device
        self._guides = guides
        self._nucleus = nucleus or SortedNucleus()

    def drop(self, seq: Sequence) -> None:
        """Forget a sequence that has ended."""
        self.counts.drop(seq)
        self._biases.drop(seq)

    def sample(self, logits: torch.Tensor, seqs: Seq[Sequence]) -> Sampled:
        """logits [S, vocab] (any float dtype; not kept), `seqs` [S] before their new token."""
        return self.finish(self.draw(logits, seqs), seqs)

    def draw(
        self,
        logits: torch.Tensor,
        seqs: Seq[Sequence],
        rows: npt.NDArray[np.int64] | None = None,
    ) -> Drawn:
        """As `sample`, up to where the host must wait for the device. `rows` [S]: which rows of
        `logits` are these sequences', where not just all in order."""
        restriction = None if self._guides is None else self._guides.restriction(seqs)
        asked = self._asked(seqs, restriction)
        if rows is not None:
            asked["rows"] = rows
        sent = send_named(asked, self._device)
        if rows is not None:
            logits = logits.index_select(0, sent["rows"])
        raw = logits.float()
        adjusted = self._adjust(raw, sent)
        tokens = adjusted.argmax(dim=-1)
        if "draws" in sent:
            bound = int(asked["last"].max()) + 1 if "last" in asked else 0
            chosen = self._draw(adjusted, sent, bound)
            tokens = tokens.index_copy_(0, sent["random"], chosen) if "random" in sent else chosen
        back = [tokens, torch.isfinite(raw.amax(dim=-1))]
        logs = other = None
        if "wanted" in sent:
            logs = torch.log_softmax(raw[sent["wanted"]], dim=-1)
            back += _alternatives(logs, tokens[sent["wanted"]], [s.job.sampling for s in seqs])
            if restriction is not None:
                room = torch.empty((len(logs), 1), dtype=torch.int64, device=self._device)
                other = room, torch.empty_like(room, dtype=logs.dtype)
        return Drawn(tokens, fetch(back), logs, restriction is not None, other)

    def finish(self, drawn: Drawn, seqs: Seq[Sequence]) -> Sampled:
        """What was drawn, on the host; `seqs` as they were for `draw`."""
        tokens, finite, *alternatives = drawn.back.wait()
        ids: list[int] = tokens.tolist()
        settled = ids
        if self._guides is not None and drawn.restricted:
            settled = self._guides.settle(seqs, ids)
        changed = frozenset(n for n, (a, b) in enumerate(zip(ids, settled, strict=True)) if a != b)
        logprobs: list[tuple[float, tuple[tuple[int, float], ...]] | None] = [None] * len(ids)
        if drawn.logs is not None:
            own, values, best = alternatives
            wanted = [
                (n, p) for n, s in enumerate(seqs) if (p := s.job.sampling.logprobs) is not None
            ]
            if drawn.other is not None and any(n in changed for n, _ in wanted):
                at, own = drawn.other
                at.copy_(torch.tensor([[settled[n]] for n, _ in wanted]))
                torch.gather(drawn.logs, -1, at, out=own)
            for (n, count), *row in zip(
                wanted, own.view(-1).tolist(), values.tolist(), best.tolist(), strict=True
            ):
                logprobs[n] = _ranked(count, *row)
        return Sampled(settled, finite.tolist(), logprobs, changed)

    # What is asked for, as arrays by name: what `draw` sends.

    def _asked(self, seqs: Seq[Sequence], restriction: Restriction | None) -> dict[str, Array]:
        params = [seq.job.sampling for seq in seqs]
        asked: dict[str, Array] = {}
        self._ask_adjustments(asked, seqs, params, restriction)
        random = [i for i, p in enumerate(params) if p.temperature > 0.0]
        if random:
            if len(random) < len(seqs):
                asked["random"] = _ids(random)
            seeds = np.array([params[i].seed & MASK_64 for i in random], dtype=np.uint64)
            steps = np.array([seqs[i].output_len for i in random], dtype=np.uint64)
            asked["draws"] = uniforms(seeds, steps).numpy()
            _ask_filters(asked, [params[i] for i in random], self._vocab_size)
        wanted = [i for i, p in enumerate(params) if p.logprobs is not None]
        if wanted:
            asked["wanted"] = _ids(wanted)
        return asked

    def _ask_adjustments(
        self,
        asked: dict[str, Array],
        seqs: Seq[Sequence],
        params: list[SamplingParams],
        restriction: Restriction | None,
    ) -> None:
        """Bias, penalties, minimum length and guides."""
        biased = [i for i, p in enumerate(params) if p.logit_bias]
        if biased:
            entries = [self._biases.bias(seqs[i]) for i in biased]
            asked["bias_at"] = self._flat(biased, [ids for ids, _ in entries])
            asked["bias"] = np.concatenate([values for _, values in entries])
        penalised = [
            i
            for i, p in enumerate(params)
            if p.repetition_penalty != 1.0 or p.presence_penalty or p.frequency_penalty
        ]
        if penalised:
            asked["penalised"] = _ids(penalised)
            asked["penalties"] = np.array(
                [
                    [
                        [params[i].repetition_penalty],
                        [params[i].presence_penalty],
                        [params[i].frequency_penalty],
                    ]
                    for i in penalised
                ],
                dtype=np.float32,
            )
            asked.update(self.counts.owed([seqs[i] for i in penalised]))
        over: set[int] = set()
        if restriction is not None and restriction.rows:
            asked["guided"], asked["allowed"] = _ids(restriction.rows), restriction.allowed
            ends = zip(restriction.rows, restriction.must_end, strict=True)
            over = {row for row, must_end in ends if must_end}
        early = [
            i
            for i, (seq, p) in enumerate(zip(seqs, params, strict=True))
            if i not in over and seq.output_len < p.min_tokens
        ]
        if early:
            asked["stops_at"] = self._flat(early, [self._biases.stops(seqs[i]) for i in early])

    def _flat(self, rows: list[int], ids: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
        """Where the ids of each row are in flat logits."""
        return np.concatenate([i + r * self._vocab_size for r, i in zip(rows, ids, strict=True)])

    # What is done with it on the device.

    def _adjust(self, raw: torch.Tensor, sent: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Bias, penalties, minimum length and guides; `raw` itself is left alone."""
        if not any(name in sent for name in ("bias_at", "penalised", "stops_at", "guided")):
            return raw
        out = raw.clone(memory_format=torch.contiguous_format)
        if "bias_at" in sent:
            out.view(-1).index_add_(0, sent["bias_at"], sent["bias"])
        if "penalised" in sent:
            self._penalise(out, sent)
        if "stops_at" in sent:
            out.view(-1).index_fill_(0, sent["stops_at"], -torch.inf)
        if "guided" in sent:
            self._restrict(out, sent)
        return out

    def _restrict(self, out: torch.Tensor, sent: Mapping[str, torch.Tensor]) -> None:
        """Make impossible what the guided rows may not say."""
        shifts = torch.arange(32, dtype=torch.int32, device=self._device)
        allowed = ((sent["allowed"][:, :, None] >> shifts) & 1).flatten(1)
        allowed = allowed[:, : out.shape[-1]].bool()
        # Some allowed token must stay possible, even where the model gives them all nothing.
        logits = out[sent["guided"]].clamp(min=LEAST_LOGIT)
        out[sent["guided"]] = logits.masked_fill(~allowed, -torch.inf)

    def _penalise(self, out: torch.Tensor, sent: Mapping[str, torch.Tensor]) -> None:
        """repetition (Keskar et al. 2019, over prompt and output) as transformers applies it;
        presence and frequency (over the output) as OpenAI documents them."""
        prompt, output = self.counts.updated(sent)
        repetition, presence, frequency = sent["penalties"].unbind(1)
        logits = out[sent["penalised"]]
        seen = (prompt > 0) | (output > 0)
        repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
        logits = torch.where(seen, repeated, logits)
        logits = logits - presence * (output > 0) - frequency * output
        out[sent["penalised"]] = logits

    def _draw(
        self, logits: torch.Tensor, sent: Mapping[str, torch.Tensor], bound: int
    ) -> torch.Tensor:
        """One token id per random row by inverting the cumulative distribution at one uniform
        number each. `bound`: no top_k is larger."""
        scaled = (logits[sent["random"]] if "random" in sent else logits) / sent["temperature"]
        draws = sent["draws"]
        if "min_p" in sent:
            floor = torch.log(sent["min_p"])
            scaled = scaled.masked_fill(scaled < scaled.amax(-1, keepdim=True) + floor, -torch.inf)
        if "last" not in sent and "top_p" not in sent:
            return _invert(scaled, draws)
        if "filtered" not in sent:
            return self._draw_filtered(scaled, draws, sent, bound)
        tokens = _invert(scaled, draws)
        index = sent["filtered"]
        chosen = self._draw_filtered(scaled[index], draws[index], sent, bound)
        return tokens.index_copy_(0, index, chosen)

    def _draw_filtered(
        self,
        scaled: torch.Tensor,
        draws: torch.Tensor,
        sent: Mapping[str, torch.Tensor],
        bound: int,
    ) -> torch.Tensor:
        """top_k, then top_p among what is left, as thresholds on the logits. Tokens that tie with
        the last one kept are kept too: which of equals a sort puts first depends on the batch,
        and the same seed must not."""
        most = min(scaled.shape[-1], max(self._nucleus.candidates, bound))
        values = torch.topk(scaled, most, dim=-1).values
        if "last" in sent:
            kth = values.gather(-1, sent["last"])
            kth = kth.masked_fill(sent["unlimited"], -torch.inf)
            scaled = scaled.masked_fill(scaled < kth, -torch.inf)
            values = values.masked_fill(values < kth, -torch.inf)
        if "top_p" in sent:
            floor = self._nucleus.floor(scaled, values, sent["top_p"])
            # top_p 1.0 keeps all, whatever rounding says of the mass before the last.
            floor = floor.masked_fill(sent["top_p"] >= 1.0, -torch.inf)
            scaled = scaled.masked_fill(scaled < floor, -torch.inf)
        return _invert(scaled, draws)


def _ids(rows: list[int]) -> npt.NDArray[np.int64]:
    return np.array(rows, dtype=np.int64)


def _column(values: list[float]) -> npt.NDArray[np.float32]:
    return np.array(values, dtype=np.float32)[:, None]


def _ask_filters(asked: dict[str, Array], chosen: list[SamplingParams], vocab: int) -> None:
    """Temperature and filters of the rows that are drawn."""
    asked["temperature"] = _column([p.temperature for p in chosen])
    if any(p.min_p > 0.0 for p in chosen):
        asked["min_p"] = _column([p.min_p for p in chosen])
    filtered = [i for i, p in enumerate(chosen) if p.top_k > 0 or p.top_p < 1.0]
    if not filtered:
        return
    if len(filtered) < len(chosen):
        asked["filtered"] = _ids(filtered)
    part = [chosen[i] for i in filtered]
    limits = np.array([p.top_k if 0 < p.top_k < vocab else vocab for p in part])[:, None]
    if (limits < vocab).any():
        most = limits[limits < vocab].max()
        asked["last"] = np.minimum(limits, most) - 1
        asked["unlimited"] = limits == vocab
    if any(p.top_p < 1.0 for p in part):
        asked["top_p"] = np.array([p.top_p for p in part], dtype=np.float64)[:, None]


def _alternatives(
    logs: torch.Tensor, tokens: torch.Tensor, params: list[SamplingParams]
) -> list[torch.Tensor]:
    """Of log-probabilities [W, vocab]: the tokens' own [W, 1], the largest and their ids."""
    vocab = logs.shape[-1]
    # Always as many, and equals by id: what a row gets must not depend on its neighbours.
    asked = max(p.logprobs for p in params if p.logprobs is not None)
    most = max(min(LOGPROB_CANDIDATES, vocab), min(asked, vocab))
    return [logs.gather(-1, tokens[:, None]), *torch.topk(logs, most, dim=-1)]


def _ranked(
    count: int, own: float, values: list[float], ids: list[int]
) -> tuple[float, tuple[tuple[int, float], ...]]:
    pairs = sorted(zip(ids, values, strict=True), key=lambda pair: (-pair[1], pair[0]))
    return own, tuple(pairs[:count])


def _invert(logits: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """The index at which the cumulative softmax of each row passes `draws` (float64 [S]); never
    an index of probability 0."""
    cumulative = torch.softmax(logits, dim=-1, dtype=torch.float64).cumsum(dim=-1)
    target = draws[:, None] * cumulative[:, -1:]
    found = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    return found.clamp_(max=logits.shape[-1] - 1)
