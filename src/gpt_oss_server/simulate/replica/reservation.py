"""The server's admission before one simulated engine: the server's own, fed with simulated moments.

Knows: what a live server tells `AdmissionCore` and when, in decode steps. Does not know: how
admission decides, how an engine computes. Live, a running request tells every `PROGRESS_TOKENS`
tokens how far it has come, and of a preemption with its next token. Both only ever raise what is
held, so it is enough to tell them before the next question, and only of those that outgrew what was
reserved for them: nothing is counted per token.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable

from gpt_oss_server.admission.core import AdmissionCore
from gpt_oss_server.admission.offers import (
    NO_CHANGES,
    Action,
    AdmissionRequest,
    Changes,
    Plan,
)
from gpt_oss_server.dispatch.estimate import capacity_of
from gpt_oss_server.simulate.cost.layout import Replica
from gpt_oss_server.simulate.replica.sequence import DECODING, Sequence
from gpt_oss_server.simulate.workload.requests import Request

PROGRESS_TOKENS = 64
"""As the server: a running request tells how far it has come every so many tokens."""
HIGHEST_PRIORITY = 9
_PREEMPTED = -1

_Report = tuple[int, int, int, int, Sequence]
"""(decode steps at which it is due, arrival, preemptions before, output tokens or `_PREEMPTED`,
sequence)."""


class Reservation:
    """Who may start gathers in `started`, who waited too long in `expired`, who gave way to others
    in `shed`, until the caller takes them; `changed` says that there is somebody. `next_s` is when
    the next one's time is up, `cut` counts answers that end at a bound that was lowered,
    `reserved_tokens` the tokens for which blocks that every token takes are held. Calls are in
    order of time; `steps` is the engine's count of decode steps then."""

    def __init__(self, replica: Replica) -> None:
        self.started: list[Sequence] = []
        self.expired: list[Sequence] = []
        self.shed: list[Sequence] = []
        self.next_s = math.inf
        self.retry_after_s = 0
        self.cut = 0
        self.changed = False
        self.reserved_tokens = 0
        self._core = AdmissionCore(capacity_of(replica.info), replica.settings.reservation())
        self._context_tokens = replica.info.max_model_len
        self._open_tokens = replica.settings.open_tokens or self._context_tokens
        self._block_size = replica.settings.block_size
        growing = (g.name for g in replica.info.kv_groups if g.window is None)
        self._growing = next(growing, "")
        # By ticket, which is by deadline too: all may wait equally long.
        self._waiting: dict[int, tuple[float, Sequence]] = {}
        self._max_wait_s = replica.settings.reservation().max_wait_s
        self._reports: list[_Report] = []

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def has_to_tell(self) -> bool:
        """Whether steps matter: somebody may outgrow what is held for them."""
        return bool(self._reports)

    def offer(self, seq: Sequence, request: Request, now_s: float, steps: int) -> Action:
        """Ask for a place. `accept` and `shrink`: it is in `started`; `queue`: it waits; `reject`:
        full, `retry_after_s` says when to come again; `never_fits`."""
        if self._reports:
            self._catch_up(now_s, steps)
        bound = request.max_output_tokens
        most = bound or min(self._open_tokens, self._context_tokens - seq.input_tokens)
        verdict = self._core.offer(
            AdmissionRequest(
                id="",
                prompt_tokens=seq.input_tokens,
                max_tokens=max(most, seq.output_tokens),
                explicit=bound > 0,
                client_id=request.client,
                priority=min(request.priority, HIGHEST_PRIORITY),
            ),
            now_s,
        )
        seq.ticket = verdict.ticket
        if verdict.admission is not None:
            self._start(seq, verdict.admission.plan)
        elif verdict.action == "queue":
            self._waiting[verdict.ticket] = (now_s + self._max_wait_s, seq)
        elif verdict.action == "reject":
            self.retry_after_s = verdict.retry_after_s or 0
        self._carry_out(verdict.changes)
        return verdict.action

    def release(self, finished: Iterable[Sequence], now_s: float, steps: int) -> None:
        """These have all their tokens: what they held is free, how long they were is learned."""
        if self._reports:
            self._catch_up(now_s, steps)
        for seq in finished:
            self._carry_out(self._core.release(seq.ticket, seq.output_tokens, now_s))

    def expire(self, now_s: float, steps: int) -> None:
        """To be called at `next_s`."""
        if self._reports:
            self._catch_up(now_s, steps)
        self._carry_out(self._core.expire(now_s))

    def watch(self, joined: Iterable[Sequence], now_s: float, steps: int) -> None:
        """The prompts of these are through and their answers go on: note when there will be
        something to tell of them."""
        for seq in joined:
            if seq.preemptions > seq.told_preemptions:
                # One that sampled in the step that just ended tells at once, others in the next.
                if seq.generated == 1:
                    self._tell_preempted(seq, now_s)
                else:
                    self._note(seq, steps + 1, _PREEMPTED)
            if seq.output_tokens > seq.expected_tokens:
                self._note_progress(seq)

    def abandon(self) -> list[Sequence]:
        """The replica is dead: those who waited, by arrival. This object is of no use then."""
        waiting = [seq for _, seq in self._waiting.values()]
        self._waiting.clear()
        return waiting

    def _start(self, seq: Sequence, plan: Plan) -> None:
        seq.expected_tokens = plan.expected_tokens
        seq.told_preemptions = seq.preemptions
        if plan.max_tokens < seq.output_tokens:  # a bound that was left open and lowered
            seq.output_tokens = plan.max_tokens
            self.cut += 1
        self.started.append(seq)
        self.changed = True

    def _carry_out(self, changes: Changes) -> None:
        if changes is not NO_CHANGES:
            for admission in changes.admitted:
                _, seq = self._waiting.pop(admission.ticket)
                self._start(seq, admission.plan)
            for departure in changes.departed:
                _, seq = self._waiting.pop(departure.ticket)
                (self.shed if departure.reason == "shed" else self.expired).append(seq)
                self.changed = True
        self.next_s = next(iter(self._waiting.values()))[0] if self._waiting else math.inf
        self.reserved_tokens = self._core.blocks_used.get(self._growing, 0) * self._block_size

    def _catch_up(self, now_s: float, steps: int) -> None:
        """Tell all that was due by now."""
        reports = self._reports
        while reports and reports[0][0] <= steps:
            _, _, preemptions, tokens, seq = heapq.heappop(reports)
            if seq.state != DECODING or seq.preemptions != preemptions:
                continue  # put back meanwhile: noted anew when it goes on
            if tokens == _PREEMPTED:
                self._tell_preempted(seq, now_s)
            else:
                self._core.progress(seq.ticket, tokens)
                seq.expected_tokens = max(seq.expected_tokens, tokens)
                self._note_progress(seq)

    def _tell_preempted(self, seq: Sequence, now_s: float) -> None:
        seq.told_preemptions = seq.preemptions
        self._carry_out(self._core.preempted(seq.ticket, now_s))
        # Its whole bound is held from here on: it cannot outgrow that.
        seq.expected_tokens = max(seq.expected_tokens, seq.output_tokens)

    def _note_progress(self, seq: Sequence) -> None:
        due_tokens = (seq.expected_tokens // PROGRESS_TOKENS + 1) * PROGRESS_TOKENS
        if due_tokens < seq.output_tokens:
            self._note(seq, seq.done_at - (seq.output_tokens - due_tokens), due_tokens)

    def _note(self, seq: Sequence, due_steps: int, tokens: int) -> None:
        entry = (due_steps, seq.arrival, seq.preemptions, tokens, seq)
        heapq.heappush(self._reports, entry)
