"""The uniform mask."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from perfonnx.masks import MaskRequest, count_sites, make_mask


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.floats(0, 1, exclude_max=True), st.integers(0, 99))
def test_has_exactly_the_asked_sites(height: int, width: int, rate: float, seed: int) -> None:
    mask = make_mask("uniform", MaskRequest((height, width), rate, np.random.default_rng(seed)))
    assert mask.sum() == count_sites((height, width), rate)


def test_every_position_is_equally_likely() -> None:
    rng = np.random.default_rng(0)
    share = np.mean([make_mask("uniform", MaskRequest((4, 5), 0.6, rng)) for _ in range(2000)], axis=0)
    np.testing.assert_allclose(share, 0.4, atol=0.05)
