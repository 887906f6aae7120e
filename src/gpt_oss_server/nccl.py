"""Which NCCL settings a model over several GPUs gets, and which the user has set already.

Knows: the variables, their values, from how many GPUs on they are set. Does not know: torch, or
whether a communicator exists. They are read when the first communicator is made: apply before.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from types import MappingProxyType

from gpt_oss_server.facts import GpuMode

MIN_GPUS = 4
# torch reads the first name and, for older code, the second; one given by the user is both.
_ASYNC_ERRORS = ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "NCCL_ASYNC_ERROR_HANDLING")
WANTED: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(_ASYNC_ERRORS, "1"),
        "NCCL_MIN_NCHANNELS": "4",
        "NCCL_BUFFSIZE": str(8 << 20),
        "NCCL_P2P_DISABLE": "0",
    }
)


@dataclass(frozen=True)
class NcclSettings:
    """`applied` is what this server sets; `kept_from_user` what was set already and wins."""

    applied: Mapping[str, str]
    kept_from_user: Mapping[str, str]

    @property
    def overridden(self) -> Mapping[str, str]:
        """The user's values that differ from what this server would set."""
        kept = self.kept_from_user.items()
        return MappingProxyType({name: value for name, value in kept if value != WANTED[name]})

    def apply(self, environ: MutableMapping[str, str]) -> None:
        """Write `applied` into an environment; before any communicator exists."""
        environ.update(self.applied)


def nccl_environment(gpus: int, mode: GpuMode, environ: Mapping[str, str]) -> NcclSettings:
    """What to set for a model over `gpus` GPUs.

    Nothing is applied in single mode or below four GPUs. An empty value counts as not set, as
    it does for NCCL. Nothing is kept from the user where no communicator will exist.
    """
    if mode == "single" or gpus < 2:
        return NcclSettings(MappingProxyType({}), MappingProxyType({}))
    kept = {name: environ[name] for name in WANTED if environ.get(name)}
    applied: dict[str, str] = {}
    if gpus >= MIN_GPUS:
        settled = set(kept)
        if settled.intersection(_ASYNC_ERRORS):
            settled.update(_ASYNC_ERRORS)
        applied = {name: value for name, value in WANTED.items() if name not in settled}
    return NcclSettings(MappingProxyType(applied), MappingProxyType(kept))
