"""What `tests/kernel_compile.py` compiles of attention: launches as gpt-oss-20b makes them."""

from __future__ import annotations

from dataclasses import replace

import torch

from attention_cases import Case, lay_out

BF16 = torch.bfloat16
MULTIPROCESSORS = 132


def attention() -> None:
    """Decode and prefill of a full and of a sliding layer, split and whole, of few sequences and of
    many, as on a device with an H100's multiprocessors."""
    from gpt_oss_server.engine.attention import triton as backend

    backend.multiprocessors = lambda device: MULTIPROCESSORS
    case = Case(
        seqs=((150, 1), (0, 200)),  # too few tiles for the device: keys are split
        heads=64,
        kv_heads=8,
        k_dim=64,
        v_dim=64,
        sinks=True,
        block_size=16,
        dtype=BF16,
    )
    long = replace(case, seqs=((0, 1100),))
    many = replace(case, seqs=((9, 1),) * 130)
    for one in (case, long, many, replace(case, window=128)):
        problem = lay_out(one)
        backend.TritonBackend().plan(problem.step).attend(
            problem.layer,
            problem.query,
            scale=problem.scale,
            sinks=problem.sinks,
            softcap=None,
        )


def around() -> None:
    """Rotation, the KV write and the norms."""
    from gpt_oss_server.engine.kernels.kv_write import write_kv
    from gpt_oss_server.engine.kernels.norm import add_rms_norm, rms_norm
    from gpt_oss_server.engine.kernels.rotary import rotate_and_write

    keys, values = (torch.zeros(8, 16, 8, 64, dtype=BF16) for _ in range(2))
    fused = torch.zeros(4, 80 * 64, dtype=BF16)
    query, key, value = (
        part.unflatten(1, (-1, 64)) for part in fused.split([4096, 512, 512], dim=1)
    )
    cos = sin = torch.zeros(4, 32, dtype=BF16)
    slots, written = torch.zeros(4, dtype=torch.long), torch.zeros(4)
    write_kv(keys, values, slots, key, value, written)
    rotate_and_write(query, key, value, cos, sin, slots, keys, values, written)
    hidden, weight = torch.zeros(4, 2880, dtype=BF16), torch.zeros(2880, dtype=BF16)
    rms_norm(hidden, weight, 1e-5)
    add_rms_norm(hidden, hidden.clone(), weight, 1e-5)
