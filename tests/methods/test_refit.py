"""Layers that get other weights by classes of their sites: the kernels that hold them."""

from __future__ import annotations

import numpy as np
import pytest

from perfonnx.methods.refit import wide_kernel
from perfonnx.ops.common import ConvAttributes, convolve
from tests.passes import nets


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(
    "taps", [[(0, 0), (1, 1), (-2, 0)], [(3, 2)], [(-1, -4), (-2, -1)], [(0, 0)], [(-3, 2), (0, -2), (3, 0)]]
)
@pytest.mark.parametrize("size", [(5, 6), (8, 7), (1, 1)])
def test_a_wide_kernel_reads_its_taps_alone(stride: int, taps: list[tuple[int, int]], size: tuple[int, int]) -> None:
    strides = ConvAttributes((1, 1), (stride, stride))
    output = strides.output_shape(*size)
    weight, x = nets.values(3, 2, len(taps)), nets.values(1, 2, *size, seed=4)
    attributes, kernel = wide_kernel(np.array(taps), weight, strides, size, output)
    result = convolve(x, kernel, None, attributes)
    assert result.shape[2:] == output
    expected = np.zeros_like(result)
    for y, column in np.ndindex(*output):
        for t, (down, across) in enumerate(taps):
            at = (y * stride + down, column * stride + across)
            if 0 <= at[0] < size[0] and 0 <= at[1] < size[1]:
                expected[0, :, y, column] += weight[:, :, t].astype(np.float64) @ x[0, :, at[0], at[1]]
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_a_dilated_kernel_stays_dilated() -> None:
    """Nine taps six apart are no kernel of 13 x 13."""
    taps = np.argwhere(np.ones((3, 3), bool)) * 6 - 6
    dilated = ConvAttributes((3, 3), pads=(6, 6, 6, 6), dilations=(6, 6))
    attributes, kernel = wide_kernel(taps, nets.values(3, 2, 9), dilated, (16, 20), (16, 20))
    assert attributes == dilated
    assert kernel.shape == (3, 2, 3, 3)
