"""RMSNorm, alone and behind a residual addition."""

from __future__ import annotations

import pytest
import torch
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm

from kernel_device import DEVICE

pytest.importorskip("triton")

from gpt_oss_server.engine.kernels.norm import add_rms_norm, rms_norm

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)]


def problem(dtype: torch.dtype, width: int) -> tuple[torch.Tensor, torch.Tensor, GptOssRMSNorm]:
    random = torch.Generator().manual_seed(width)
    x, residual = (torch.randn(3, width, generator=random).to(DEVICE, dtype) for _ in range(2))
    norm = GptOssRMSNorm(width, eps=1e-5).to(DEVICE, dtype)
    norm.weight.data.copy_(torch.randn(width, generator=random))
    return x, residual, norm


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("width", [64, 90])
def test_equals_transformers(dtype: torch.dtype, tolerance: float, width: int) -> None:
    """Rows of any width, from a view with another stride."""
    x, _, norm = problem(dtype, width)
    strided = torch.zeros(3, width + 5, dtype=dtype, device=DEVICE)[:, :width].copy_(x)
    with torch.no_grad():
        got = rms_norm(strided, norm.weight, norm.variance_epsilon)
        assert got.dtype == dtype
        torch.testing.assert_close(got, norm(x), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_the_sum_is_kept_and_normalised(dtype: torch.dtype, tolerance: float) -> None:
    """The residual becomes the sum, rounded as transformers rounds it, and that is normalised."""
    x, residual, norm = problem(dtype, 90)
    total = x + residual
    with torch.no_grad():
        normed, summed = add_rms_norm(x, residual, norm.weight, norm.variance_epsilon)
        # The interpreter cuts bfloat16 off where a GPU rounds: one unit in the last place.
        exact = dtype != torch.bfloat16 or DEVICE == "cuda"
        torch.testing.assert_close(summed, total, atol=0.0, rtol=0.0 if exact else 2**-7)
        assert summed.data_ptr() == residual.data_ptr()
        torch.testing.assert_close(normed, norm(summed), atol=tolerance, rtol=tolerance)


def test_a_row_of_nan_spoils_no_other() -> None:
    """Rows are independent."""
    x, residual, norm = problem(torch.float32, 64)
    x[1] = float("nan")
    with torch.no_grad():
        normed, _ = add_rms_norm(x, residual, norm.weight, norm.variance_epsilon)
    assert torch.isfinite(normed).all(dim=1).tolist() == [True, False, True]
