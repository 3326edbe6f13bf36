"""Random feeds: of every type, seeded, in whole batches."""

from __future__ import annotations

import numpy as np
import pytest

from perfonnx.data.feeds import random_feeds
from perfonnx.errors import PerfonnxError
from tests.data.cases import input_of


@pytest.mark.parametrize(
    "dtype",
    [np.float16, np.float32, np.float64, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.bool_],
)
def test_random_feeds_of_every_type(dtype: type) -> None:
    (feed,) = random_feeds([input_of([1, 3, 20, 20], dtype)], n=1, seed=3)
    array = feed["x"]
    assert array.dtype == dtype
    assert array.shape == (1, 3, 20, 20)
    assert len(np.unique(array)) > 1
    if np.dtype(dtype).kind == "f":
        assert abs(float(array.astype(np.float64).std()) - 1) < 0.1
    elif dtype is not np.uint8:
        assert set(np.unique(array)) <= {0, 1}


def test_random_feeds_are_seeded_and_rounded_up_to_batches() -> None:
    specs = [input_of([4, 2]), input_of(["N", 3], np.int64, "y")]
    feeds = random_feeds(specs, n=6, seed=1)
    assert (feeds.samples, feeds.batches) == (8, 2)
    first = list(feeds)
    again = list(random_feeds(specs, n=6, seed=1))
    other = list(random_feeds(specs, n=6, seed=2))
    assert len(first) == 2
    for left, right in zip(first, again, strict=True):
        assert all(np.array_equal(left[name], right[name]) for name in ("x", "y"))
    assert not np.array_equal(first[0]["x"], other[0]["x"])
    assert not np.array_equal(first[0]["x"], first[1]["x"])


def test_random_feeds_of_an_empty_batch() -> None:
    (feed,) = random_feeds([input_of([0, 3])], n=5)
    assert feed["x"].shape == (0, 3)


def test_no_samples_is_refused() -> None:
    with pytest.raises(PerfonnxError, match="number of samples 0"):
        random_feeds([input_of([1])], n=0)
