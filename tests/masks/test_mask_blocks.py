"""The mask of blocks."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from perfonnx.masks import MaskRequest, make_mask
from perfonnx.ops.common import LARGEST_TILE

SIDES = st.integers(1, 30)


@settings(max_examples=100, deadline=None)
@given(SIDES, SIDES, st.floats(0, 1, exclude_max=True), st.integers(0, 99))
def test_blocks_are_whole_and_the_rate_is_close(height: int, width: int, rate: float, seed: int) -> None:
    mask = make_mask("blocks", MaskRequest((height, width), rate, np.random.default_rng(seed)))
    blocks = [
        mask[y : y + LARGEST_TILE, x : x + LARGEST_TILE]
        for y in range(0, height, LARGEST_TILE)
        for x in range(0, width, LARGEST_TILE)
    ]
    assert all(block.all() or not block.any() for block in blocks)
    assert mask.any()
    largest = max(block.size for block in blocks)
    if int(mask.sum()) > largest:  # one more could have been left out
        assert abs(float((~mask).sum()) - rate * mask.size) <= largest / 2 + 1e-6


def test_rate_zero_keeps_all_and_seeds_differ() -> None:
    def mask(rate: float, seed: int) -> np.ndarray:
        return make_mask("blocks", MaskRequest((28, 28), rate, np.random.default_rng(seed)))

    assert mask(0, 1).all()
    assert (mask(0.5, 1) == mask(0.5, 1)).all()
    assert (mask(0.5, 1) != mask(0.5, 2)).any()
    assert mask(0.5, 1).mean() == 25 / 49
