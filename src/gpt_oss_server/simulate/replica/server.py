"""One replica as a dispatcher meets it: admission in front, the engine behind.

Knows: what passes between the two, and when something happens in either. Does not know: other
replicas, policies. With `admission` `reserve` a request is enqueued in the engine when its KV is
reserved, as this server does; with `engine` it is enqueued as it comes.
"""

from __future__ import annotations

import math
from typing import Literal

from gpt_oss_server.simulate.cost.layout import Replica
from gpt_oss_server.simulate.replica.engine import Engine
from gpt_oss_server.simulate.replica.reservation import Reservation
from gpt_oss_server.simulate.replica.sequence import GONE, Sequence
from gpt_oss_server.simulate.workload.requests import Request

Answer = Literal["taken", "full", "too_large"]


class Server:
    """`next_s` is when something happens here next (infinite while idle); `step` makes it happen.

    Whose answer is complete gathers in `finished`, who waited too long in `expired`, who was turned
    away for others in `shed`, until the caller takes them. `retry_after_s` is when to come again,
    as the last answer `full` said. With `tells_starts`, whose prompt is through gathers in `begun`.
    Moments never go back.
    """

    def __init__(
        self,
        replica: Replica,
        *,
        unit_tokens: int = 0,
        holders: dict[int, int] | None = None,
        index: int = 0,
        tells_starts: bool = False,
    ) -> None:
        settings = replica.settings
        self._reserves = settings.admission == "reserve"
        self._replica = replica
        self.engine = Engine(
            replica,
            unit_tokens=unit_tokens,
            holders=holders,
            index=index,
            max_waiting=None if self._reserves else settings.max_waiting,
            max_wait_s=None if self._reserves else settings.max_wait_s,
        )
        self.gate = Reservation(replica) if self._reserves else None
        self.index = index
        self.next_s = math.inf
        self.finished: list[Sequence] = []
        self.expired: list[Sequence] = []
        self.shed: list[Sequence] = []
        self.begun: list[Sequence] = []
        self._tells_starts = tells_starts
        self.retry_after_s = 0
        self._cut_before = 0

    @property
    def waiting(self) -> int:
        """Requests that wait: for a place, or for their first prefill."""
        return self.before_engine + len(self.engine.scheduler.waiting)

    @property
    def reserved_tokens(self) -> int:
        """KV tokens that admission holds; 0 where the engine queues."""
        return self.gate.reserved_tokens if self.gate is not None else 0

    @property
    def cut(self) -> int:
        """Answers that end at a bound that was lowered."""
        return self._cut_before + (self.gate.cut if self.gate is not None else 0)

    def enqueue(self, seq: Sequence, request: Request, now_s: float) -> Answer:
        """Take a request in, to start or to wait."""
        engine, gate = self.engine, self.gate
        if gate is None:
            taken = engine.enqueue(seq, now_s)
            self.next_s = engine.next_s
            return "taken" if taken else "full"
        action = gate.offer(seq, request, now_s, self._steps(now_s))
        if action == "queue":
            engine.foresee(seq)
        elif action == "accept" and len(gate.started) == 1 and not gate.expired:
            gate.started.clear()  # as nearly always: it starts, and nobody else is concerned
            gate.changed = False
            engine.enqueue(seq, now_s)
            self.next_s = min(engine.next_s, gate.next_s)
            return "taken"
        self._carry_out(now_s)
        if action in ("reject", "route4"):
            self.retry_after_s = gate.retry_after_s
            return "full"
        return "too_large" if action == "never_fits" else "taken"

    def step(self) -> None:
        """What happens at `next_s`: a step ends and the next begins, or somebody's time is up."""
        now_s, engine, gate = self.next_s, self.engine, self.gate
        if gate is None:
            engine.step()
            self._forget_joined()
            self._take_over()
            self.next_s = engine.next_s
            return
        if engine.next_s <= now_s:
            engine.step()
            if engine.joined:
                gate.watch(engine.joined, now_s, engine.scheduler.decoders.steps)
                self._forget_joined()
            if engine.finished:
                gate.release(engine.finished, now_s, engine.scheduler.decoders.steps)
                self._take_over()
        else:
            gate.expire(now_s, self._steps(now_s))
        if gate.changed:
            self._carry_out(now_s)
        else:
            self.next_s = engine.next_s if engine.next_s < gate.next_s else gate.next_s

    def fail(self) -> list[Sequence]:
        """The replica dies: all that was here is lost. Returns whom it hit, by arrival."""
        lost = self.engine.fail()
        if self.gate is not None:
            waiting = self.gate.abandon()
            self._cut_before += self.gate.cut
            self.gate = Reservation(self._replica)
            for seq in waiting:
                seq.state, seq.waits_tokens, seq.waits_work_s = GONE, 0, 0.0
            lost += waiting
        self.next_s = math.inf
        return lost

    @property
    def before_engine(self) -> int:
        """Requests that wait for a place; `Engine.look` counts the others."""
        return self.gate.waiting if self.gate is not None else 0

    def _steps(self, now_s: float) -> int:
        """Decode steps of the engine that ended by now; any number where nothing hangs on it."""
        engine, gate = self.engine, self.gate
        if gate is None or not gate.has_to_tell:
            return 0
        return engine.scheduler.decoders.steps + engine.elapsed_steps(now_s)

    def _forget_joined(self) -> None:
        if self._tells_starts:
            self.begun += self.engine.joined
        self.engine.joined.clear()

    def _take_over(self) -> None:
        engine = self.engine
        if engine.finished:
            self.finished += engine.finished
            engine.finished.clear()
        if engine.expired:
            self.expired += engine.expired
            engine.expired.clear()

    def _carry_out(self, now_s: float) -> None:
        """Who may start does; who may not any more is told."""
        engine, gate = self.engine, self.gate
        if gate is None:
            return
        for seq in gate.started:
            engine.enqueue(seq, now_s)
        gate.started.clear()
        for gone, kept in ((gate.expired, self.expired), (gate.shed, self.shed)):
            for seq in gone:
                engine.forgo(seq)
                seq.state = GONE
            kept += gone
            gone.clear()
        gate.changed = False
        self.next_s = min(engine.next_s, gate.next_s)
