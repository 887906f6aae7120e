"""Arrays side by side in one stretch of bytes: what goes in comes out, wherever it stands."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt_oss_server.engine.staging import ALIGNMENT_BYTES, Parcel, fetch, send

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = [np.int64, np.int32, np.float32, np.float64, np.bool_, np.uint8]
arrays = st.tuples(
    st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3), st.integers(0, 99)
).map(lambda a: np.random.default_rng(a[2]).integers(0, 2, size=a[1]).astype(a[0]))


@given(st.lists(arrays, max_size=6))
def test_what_is_packed_is_what_is_seen(some: list[np.ndarray]) -> None:
    """Any dtypes and shapes, empty ones too, in a larger stretch than is needed."""
    parcel = Parcel.of(some)
    data = torch.cat((parcel.pack(some, pinned=False), torch.ones(32, dtype=torch.uint8)))
    views = parcel.views(data)
    assert [view.shape for view in views] == [array.shape for array in some]
    for view, array in zip(views, some, strict=True):
        assert view.dtype == torch.from_numpy(array).dtype
        assert np.array_equal(view.numpy(), array)
        assert (view.data_ptr() - data.data_ptr()) % ALIGNMENT_BYTES == 0 or not view.numel()


def test_what_is_not_contiguous_is_packed_in_order() -> None:
    """Columns of a table are packed row by row."""
    table = np.arange(12).reshape(3, 4)[:, 1:3]
    parcel = Parcel.of([table])
    assert parcel.nbytes == 48
    assert parcel.views(parcel.pack([table], pinned=False))[0].tolist() == table.tolist()


def test_nothing_is_copied_on_a_cpu() -> None:
    """There a sent array is a tensor over the same memory, and a fetched tensor is itself."""
    array = np.arange(3)
    [tensor] = send([array], torch.device("cpu"))
    array[1] = 7
    assert tensor.tolist() == [0, 7, 2]
    assert fetch([tensor]).wait()[0] is tensor
