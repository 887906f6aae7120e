"""What a check looks at and what it says.

Knows: the nouns that checks share. Does not know: any check.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from gpt_oss_server.config import Settings
from gpt_oss_server.doctor.machine import Machine
from gpt_oss_server.doctor.models import ModelFacts
from gpt_oss_server.doctor.plan import ModePlan, Plan

Level = Literal["problem", "note"]


@dataclass(frozen=True)
class Examined:
    """A machine, and what it is to serve. `plan` is for its GPUs, None without any that has a
    known memory; `other_plan` is the same with weights as bf16 where they are stored smaller."""

    settings: Settings
    machine: Machine
    model: ModelFacts | None
    model_error: str | None = None
    plan: Plan | None = None
    other_plan: Plan | None = None

    @property
    def has_gpu(self) -> bool:
        """Whether the machine has a GPU, usable or not."""
        machine = self.machine
        return bool(machine.gpus_present or machine.gpus or machine.torch.devices)

    @property
    def several(self) -> bool:
        """Whether the model is to be spread over several GPUs; processes on a CPU need none."""
        return self.settings.gpu_mode != "single" and self.settings.device != "cpu"

    @property
    def gpu_wanted(self) -> bool:
        return self.several or self.settings.device.startswith("cuda")

    @property
    def runs_on_gpu(self) -> bool:
        return self.settings.device != "cpu" and self.machine.torch.cuda_usable

    @property
    def mode_plan(self) -> ModePlan | None:
        """The plan of the mode that is set."""
        return None if self.plan is None else self.plan.of(self.settings.gpu_mode)


@dataclass(frozen=True)
class Finding:
    """Something to say: what is so, and what to do about it. A problem makes `doctor` exit 1."""

    level: Level
    message: str
    cure: str


@dataclass(frozen=True)
class Check:
    """One check: `id` is also its section in docs/operations.md."""

    id: str
    look: Callable[[Examined], Finding | None]
