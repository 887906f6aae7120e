"""What is asked of admission and what it answers.

Knows: the shapes. Does not know: how a verdict is reached, HTTP. A ticket is the number under
which one request waits and then runs; the core gives it out, so that two requests with the same
id from outside never meet.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from gpt_oss_server.admission.capacity import Blocks
from gpt_oss_server.admission.config import DEFAULT_PRIORITY, MAX_PRIORITY, MIN_PRIORITY
from gpt_oss_server.facts import Route

Action = Literal["accept", "shrink", "route4", "queue", "reject", "never_fits"]


class AdmissionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request at the door. Raises ValueError for impossible numbers.

    `max_tokens` bounds the output; with `explicit` False the client left it open (the caller
    passes what the context still allows) and it may be lowered. `sequences` is the client's `n`.
    `route` is what routing decided; `multi_gpu_elsewhere` says that a multi-GPU pool other than
    this one could take it. `deadline_s` is a moment on the caller's clock, None for the default.
    """

    id: str
    prompt_tokens: int
    max_tokens: int
    explicit: bool = True
    sequences: int = 1
    client_id: str = ""
    priority: int = DEFAULT_PRIORITY
    route: Route = "single_gpu"
    multi_gpu_elsewhere: bool = False
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        if self.prompt_tokens < 0 or self.max_tokens < 0 or self.sequences < 1:
            raise ValueError("prompt_tokens and max_tokens start at 0, sequences at 1")
        if not MIN_PRIORITY <= self.priority <= MAX_PRIORITY:
            raise ValueError(f"priority must be from {MIN_PRIORITY} to {MAX_PRIORITY}")


class Plan(msgspec.Struct, frozen=True):
    """What an admitted request gets.

    `max_tokens` is the bound to run with; `expected_tokens` the output reserved for. `shrunk`
    says that the bound is lower than the request's own.
    """

    blocks: Blocks
    max_tokens: int
    expected_tokens: int
    shrunk: bool


class Admission(msgspec.Struct, frozen=True):
    """A request that may start now. Its lease is held until `release` or `cancel`."""

    ticket: int
    request: AdmissionRequest
    plan: Plan
    waited_s: float


class Departure(msgspec.Struct, frozen=True):
    """A queued request that leaves without having run: answer it with 429; with 400 where the
    replica came back with pools that it can never fit (`message` has the numbers)."""

    ticket: int
    request: AdmissionRequest
    reason: Literal["deadline", "shed", "never_fits"]
    waited_s: float
    retry_after_s: int
    message: str = ""


class Changes(msgspec.Struct, frozen=True):
    """What one call meant for requests that were waiting."""

    admitted: tuple[Admission, ...] = ()
    departed: tuple[Departure, ...] = ()


NO_CHANGES = Changes()


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one offer.

    - `accept`, `shrink`: starts now as `admission` says.
    - `queue`: waits; a later `Changes` names the ticket.
    - `route4`: belongs to the multi-GPU pool elsewhere; nothing is held here.
    - `reject`: full (429 with `retry_after_s`).
    - `never_fits`: larger than the whole pool (400); `message` has the numbers.

    `changes` concerns other requests and is to be carried out whatever the action.
    """

    action: Action
    ticket: int
    admission: Admission | None = None
    retry_after_s: int | None = None
    message: str = ""
    changes: Changes = NO_CHANGES
