"""What `tests/kernel_compile.py` compiles of a step: launches as gpt-oss-20b makes them."""

from __future__ import annotations

from typing import Any

import torch

from fused_steps import Course, Part, Pass, pools


def _model() -> Any:
    """A full and a sliding layer of gpt-oss-20b's widths, with few experts; numbers are whatever
    the memory held."""
    from transformers import AutoModelForCausalLM, GptOssConfig

    config = GptOssConfig(
        vocab_size=512,
        num_hidden_layers=2,
        num_local_experts=4,
        layer_types=["sliding_attention", "full_attention"],
    )
    with torch.device("meta"):
        blank = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return blank.to_empty(device="cpu").eval().requires_grad_(False)


def step() -> None:
    """A prefill beside a decode, then a decode step with padding."""
    from gpt_oss_server.engine.attention.triton import TritonBackend
    from gpt_oss_server.engine.experts.replace import use_kernels
    from gpt_oss_server.engine.fused.gpt_oss import FusedGptOss
    from gpt_oss_server.engine.graphs import DecodeGraphs, RerunRecorder, Room

    model = _model()
    use_kernels(model)
    ours = Pass(FusedGptOss(model, 64), TritonBackend(), pools(model))
    course = Course(512, groups=2)
    ours.run(course.step([Part(0, 9), Part(1, 1), Part(2, 1, sampled=False)]))
    room = Room(4, 10, 2, 4)
    graphs = DecodeGraphs(
        ours.forward, ours.layers, ours.backend, room, RerunRecorder(), lambda _: None
    )
    with torch.inference_mode():
        graphs.run(course.step([Part(0, 1), Part(1, 1), Part(2, 1)]))


def nucleus() -> None:
    """top_p of any number of rows."""
    from gpt_oss_server.engine.kernels.nucleus import SearchedNucleus

    for rows in (1, 3, 16, 40, 64, 256):
        logits = torch.zeros(rows, 201_088)
        top_p = torch.full((rows, 1), 0.9, dtype=torch.float64)
        SearchedNucleus().floor(logits, logits[:, :0], top_p)
