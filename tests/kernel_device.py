"""Where kernels are tested: on a GPU if there is one, else in Triton's interpreter on the CPU.

Import this before any kernel: whether a kernel is interpreted is settled when it is defined.
"""

from __future__ import annotations

import importlib.util
import os

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
HAVE_TRITON = importlib.util.find_spec("triton") is not None
