"""What torch sees, asked in a process of its own: `python -m gpt_oss_server.doctor.torch_probe`.

Prints one JSON object on the last line of its output. Importing torch and touching CUDA may
crash or hang on a broken installation; then only this process does. Knows nothing of the rest.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

_SMALL = 1024


def look() -> dict[str, Any]:
    """Versions, devices and errors, as the fields of `machine.TorchFacts`."""
    import torch

    cuda: Any = torch.cuda
    found: dict[str, Any] = {
        "version": torch.__version__,
        "cuda_build": torch.version.cuda,
        "cuda_usable": False,
    }
    if torch.version.cuda is None:
        return found
    try:
        cuda.init()
        count = cuda.device_count()
        found["devices"] = [cuda.get_device_name(i) for i in range(count)]
        found["memory_bytes"] = [cuda.get_device_properties(i).total_memory for i in range(count)]
        found["capabilities"] = [cuda.get_device_capability(i) for i in range(count)]
        for i in range(count):
            torch.ones(_SMALL, device=f"cuda:{i}").sum().item()
        found["cuda_usable"] = count > 0
        found["peer_access"] = all(
            cuda.can_device_access_peer(a, b) for a in range(count) for b in range(count) if a != b
        )
    except Exception as error:  # noqa: BLE001 - whatever is wrong with CUDA is the finding
        found["cuda_error"] = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    with contextlib.suppress(Exception):
        found["nccl"] = ".".join(str(part) for part in cuda.nccl.version())
    return found


if __name__ == "__main__":
    print(json.dumps(look()))
