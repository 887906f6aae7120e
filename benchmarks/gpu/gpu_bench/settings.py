"""What one run was asked for, and where it keeps things.

Knows: the fields, the folders. Does not know: what any section does. Imports neither torch nor the
engine: the command that starts the sections needs neither.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpu_bench.shapes import SEED, config_of, work_of


@dataclass(frozen=True)
class Settings:
    """`layers` of None: the shape's own. `attention`, `experts` and `max_batch_tokens` are the
    engine's settings. `deadline_s` is a moment by `time.time`: no section begins that is not
    expected to end before it."""

    folder: str
    shape: str = "20b"
    layers: int | None = None
    device: str = "cuda"
    attention: str = "auto"
    experts: str = "auto"
    max_batch_tokens: int | None = None
    eager: bool = False
    peer_limit_s: float = 60.0
    deadline_s: float = float("inf")

    @property
    def dtype(self) -> str:
        return "bfloat16" if self.device.startswith("cuda") else "float32"

    @property
    def key(self) -> str:
        """Results of different keys do not belong into one table."""
        return f"{self.shape}-{self.layers or 'all'}-{self.device.partition(':')[0]}"

    @property
    def records(self) -> Path:
        """One file for each section."""
        return Path(self.folder) / self.key / "records"

    def model(self, form: str) -> Path:
        return Path(self.folder) / self.key / form

    def scratch(self, name: str) -> Path:
        """A file for sections to hand on what is no figure."""
        return Path(self.folder) / self.key / name

    def config(self, form: str) -> dict[str, Any]:
        return config_of(self.shape, self.layers, form, self.dtype)

    def engine(self, form: str) -> dict[str, Any]:
        """The fields of the `EngineSpec`."""
        work = work_of(self.shape)
        experts = self.experts
        if form == "mxfp4" and experts == "auto" and not self.device.startswith("cuda"):
            experts = "torch"  # four bits kept, where kernels would be interpreted
        return {
            "folder": str(self.model(form)),
            "device": self.device,
            "dtype": self.dtype,
            "load_format": "random" if form == "bf16" else "auto",
            "weights_seed": SEED,
            "max_model_len": work.max_model_len,
            "max_num_seqs": work.max_num_seqs,
            "max_batch_tokens": self.max_batch_tokens,
            "kv_cache_bytes": work.kv_cache_bytes,
            "attention_backend": self.attention,
            "experts": experts,
            "eager": self.eager,
        }

    def write(self) -> Path:
        file = self.scratch("settings.json")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(self)))
        return file

    @classmethod
    def read(cls, file: Path) -> Settings:
        return cls(**json.loads(file.read_text()))
