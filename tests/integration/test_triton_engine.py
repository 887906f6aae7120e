"""A whole engine on the triton backend, interpreted: token for token what tiled says."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from engine_runs import cpu_core, job, run
from kernel_device import DEVICE
from tiny_models import VOCAB, build, saved

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(DEVICE == "cuda", reason="tests/gpu runs the compiled kernels"),
]


@pytest.mark.parametrize("name", ["gpt_oss", "gemma2"])
def test_greedy_tokens_are_those_of_tiled(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sinks and windows, softcaps; chunks mixed with decode, and a prefix that is found again."""
    from gpt_oss_server.engine.attention import triton
    from gpt_oss_server.engine.kernels.paged_tuning import DecodeTuning, PrefillTuning

    # Few programs: an interpreted one takes a millisecond.
    small = DecodeTuning(16, 16, 2, 4, 2), PrefillTuning(16, 16, 64, 1, 4, 2)
    monkeypatch.setattr(triton, "decode_tuning", lambda keys, values: small[0])
    monkeypatch.setattr(triton, "prefill_tuning", lambda keys, values: small[1])
    folder = saved(build(name), tmp_path)
    rng = random.Random(0)
    system = [rng.randrange(2, VOCAB - 5) for _ in range(12)]
    jobs = {
        key: job(system[:shared] + [rng.randrange(2, VOCAB - 5) for _ in range(own)], max_tokens=4)
        for key, (shared, own) in enumerate(((0, 1), (12, 13), (12, 3), (0, 21)))
    }
    said = {}
    for backend in ("tiled", "triton"):
        core = cpu_core(
            folder,
            attention_backend=backend,
            block_size=4,
            max_batch_tokens=24,
            max_num_seqs=2,
            kv_cache_bytes=1 << 20,
        )
        assert core.info().attention_backend == backend
        said[backend] = {key: result.tokens for key, result in run(core, jobs).items()}
        assert core.stats().prefix_hit_tokens > 0
    assert said["triton"] == said["tiled"]
    assert all(len(tokens) in range(1, 5) for tokens in said["triton"].values())
