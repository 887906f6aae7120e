"""How the worker has PyTorch allocate on a GPU."""

from __future__ import annotations

import pytest

from gpt_oss_server.engine.worker import settle_allocator


def test_segments_grow_unless_told_otherwise() -> None:
    """By default segments that grow; the environment is that of ranks started later too."""
    environment = {"PATH": "/bin"}
    settle_allocator(environment)
    assert environment == {"PATH": "/bin", "PYTORCH_ALLOC_CONF": "expandable_segments:True"}


@pytest.mark.parametrize(
    "name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"]
)
def test_a_users_own_setting_stands(name: str) -> None:
    """Under whichever of PyTorch's names, even an empty one."""
    for value in ("", "max_split_size_mb:64"):
        environment = {name: value}
        settle_allocator(environment)
        assert environment == {name: value}
