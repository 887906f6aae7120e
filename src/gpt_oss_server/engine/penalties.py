"""What sequences' parameters add to their logits: how often tokens occurred, biases, stop ids.

Knows: tables on the device by sequence, and what must be sent to bring them up to date. Does not
know: the formulas (`sampler`), steps. Arrays to be sent are named, so that one copy takes all that
a draw needs; nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq

import numpy as np
import numpy.typing as npt
import torch

from gpt_oss_server.engine.sequence import Sequence
from gpt_oss_server.engine.staging import Array, send_named

_PROMPT, _OUTPUT = 0, 1


class PenaltyCounts:
    """How often each token occurred, for the sequences whose parameters penalise: rows of
    [vocab] int32 on the device, kept by sequence key and dropped with it."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._tables = torch.zeros(2, 0, vocab_size, dtype=torch.int32, device=device)
        self._rows: dict[int, int] = {}
        self._free: list[int] = []
        self._counted: dict[int, int] = {}

    def rows(self, seqs: Seq[Sequence]) -> tuple[torch.Tensor, torch.Tensor]:
        """(seen in prompt, count in output), both [len(seqs), vocab], brought up to date."""
        return self.updated(send_named(self.owed(seqs), self._device))

    def owed(self, seqs: Seq[Sequence]) -> dict[str, Array]:
        """What to send for `updated`, once: these are then taken for counted."""
        fresh: list[int] = []
        said: dict[str, list[npt.NDArray[np.int64]]] = {"prompt_at": [], "output_at": []}
        for seq in seqs:
            row = self._rows.get(seq.key)
            if row is None:
                row = self._rows[seq.key] = self._take_row()
                fresh.append(row)
                said["prompt_at"].append(self._places(row, seq.tokens[: seq.prompt_len]))
                self._counted[seq.key] = seq.prompt_len
            said["output_at"].append(self._places(row, seq.tokens[self._counted[seq.key] :]))
            self._counted[seq.key] = seq.length
        arrays: dict[str, Array] = {
            "count_rows": np.array([self._rows[seq.key] for seq in seqs], dtype=np.int64)
        }
        if fresh:
            arrays["fresh_rows"] = np.array(fresh, dtype=np.int64)
        for name, parts in said.items():
            places = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
            if len(places):
                arrays[name] = places
        return arrays

    def updated(self, sent: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """As `rows`, from what `owed` gave, on the device."""
        if "fresh_rows" in sent:
            self._tables.index_fill_(1, sent["fresh_rows"], 0)
        for table, name in ((_PROMPT, "prompt_at"), (_OUTPUT, "output_at")):
            if name in sent:
                ones = torch.ones_like(sent[name], dtype=torch.int32)
                self._tables[table].view(-1).index_add_(0, sent[name], ones)
        picked = self._tables.index_select(1, sent["count_rows"])
        return picked[_PROMPT], picked[_OUTPUT]

    def drop(self, seq: Sequence) -> None:
        row = self._rows.pop(seq.key, None)
        if row is not None:
            self._free.append(row)
            del self._counted[seq.key]

    def __len__(self) -> int:
        return len(self._rows)

    def _take_row(self) -> int:
        if not self._free:
            held = self._tables.shape[1]
            more = (2, held + 1, self._vocab_size)
            blank = torch.zeros(more, dtype=torch.int32, device=self._device)
            self._tables = torch.cat((self._tables, blank), dim=1)
            # Not before: there may have been no memory for them.
            self._free += range(2 * held, held - 1, -1)
        return self._free.pop()

    def _places(self, row: int, tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """Where tokens are in a flat table."""
        return tokens.astype(np.int64) + row * self._vocab_size


class Biases:
    """Each sequence's additive entries and stop ids, as arrays, made once and not once per step."""

    def __init__(self) -> None:
        self._bias: dict[int, tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]] = {}
        self._stops: dict[int, npt.NDArray[np.int64]] = {}

    def bias(self, seq: Sequence) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """The sequence's `logit_bias`: token ids and what is added to their logits."""
        entry = self._bias.get(seq.key)
        if entry is None:
            bias = seq.job.sampling.logit_bias
            ids = np.fromiter(bias, dtype=np.int64, count=len(bias))
            values = np.fromiter(bias.values(), dtype=np.float32, count=len(bias))
            entry = self._bias[seq.key] = ids, values
        return entry

    def stops(self, seq: Sequence) -> npt.NDArray[np.int64]:
        """The ids that would end the sequence."""
        ids = self._stops.get(seq.key)
        if ids is None:
            ids = self._stops[seq.key] = np.array(sorted(seq.stop_ids), dtype=np.int64)
        return ids

    def drop(self, seq: Sequence) -> None:
        self._bias.pop(seq.key, None)
        self._stops.pop(seq.key, None)
