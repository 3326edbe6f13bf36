"""The propagated mask: one map for all layers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfonnx.errors import PerfonnxError
from perfonnx.masks import MaskRequest, make_mask, propagated_mask, propagated_scores

SIDES = st.integers(1, 20)


@settings(max_examples=100, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.floats(0, 1, exclude_max=True), st.integers(0, 99))
def test_drops_the_lowest_averages(
    in_height: int, in_width: int, height: int, width: int, rate: float, seed: int
) -> None:
    scores = propagated_scores((in_height, in_width), np.random.default_rng(seed))
    mask = propagated_mask(scores, (height, width), rate)
    assert abs((~mask).sum() - min(rate * mask.size, mask.size - 1)) <= 0.5 + 1e-6
    pooled = np.empty((height, width))
    for y in range(height):
        for x in range(width):
            rows = slice(y * in_height // height, math.ceil((y + 1) * in_height / height))
            columns = slice(x * in_width // width, math.ceil((x + 1) * in_width / width))
            pooled[y, x] = scores[rows, columns].mean()
    assert pooled[mask].min() >= pooled[~mask].max(initial=0) - 1e-12


def test_halving_is_plain_average_pooling() -> None:
    scores = propagated_scores((8, 12), np.random.default_rng(3))
    pooled = scores.reshape(4, 2, 6, 2).mean(axis=(1, 3))
    expected = pooled > np.sort(pooled.ravel())[11]
    np.testing.assert_array_equal(propagated_mask(scores, (4, 6), 0.5), expected)


def test_a_larger_layer_repeats_the_scores() -> None:
    scores = propagated_scores((4, 5), np.random.default_rng(3))
    small = propagated_mask(scores, (4, 5), 0.5)
    np.testing.assert_array_equal(propagated_mask(scores, (8, 15), 0.5), small.repeat(2, axis=0).repeat(3, axis=1))


def test_layers_of_one_size_share_their_mask_and_rates_nest() -> None:
    rng = np.random.default_rng(5)
    scores = propagated_scores((16, 16), rng)
    first, second = (make_mask("propagated", MaskRequest((8, 8), 0.5, rng, scores=scores)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not (make_mask("propagated", MaskRequest((8, 8), 0.7, rng, scores=scores)) & ~first).any()


@pytest.mark.parametrize("scores", [np.zeros(4), np.zeros((0, 4)), np.full((2, 2), np.nan), np.zeros((2, 2), int)])
def test_bad_scores(scores: np.ndarray) -> None:
    with pytest.raises(PerfonnxError, match=r"^mask propagated: scores are"):
        propagated_mask(scores, (2, 2), 0.5)


def test_needs_scores() -> None:
    with pytest.raises(PerfonnxError, match="draw them once per model with propagated_scores"):
        make_mask("propagated", MaskRequest((2, 2), 0.5, np.random.default_rng(0)))
