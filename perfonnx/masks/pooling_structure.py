"""Pooling-structure mask: positions that many pooling windows read come first.

Figurnov et al., arXiv 1504.08362, section 3. Extended to padding, dilation and `ceil_mode`.
"""

import numpy as np
import numpy.typing as npt

from perfonnx.errors import PerfonnxError
from perfonnx.masks.request import Mask, MaskRequest, PoolWindow, Shape, count_sites, named, top_sites


@named("pooling-structure", place=40)
def pooling_structure_mask(request: MaskRequest) -> Mask:
    """The positions that the most windows of the next pooling layer contain, ties at random.

    Returns:
        bool [H, W] with exactly `count_sites` sites.

    Raises:
        PerfonnxError: no pooling layer follows, or its window does not fit the map.
    """
    if request.pool is None:
        raise PerfonnxError("mask pooling-structure: no pooling layer reads this layer; use mask grid")
    weights = pooling_weights(request.shape, request.pool)
    return top_sites(weights, count_sites(request.shape, request.rate), request.rng)


def pooling_weights(shape: Shape, pool: PoolWindow) -> npt.NDArray[np.int64]:
    """Number of pooling windows that contain each position.

    Args:
        shape: height and width of the map that is pooled.
        pool: the window; what lies outside the map is clipped.

    Returns:
        int64 [H, W]; 0 where no window reads.

    Raises:
        PerfonnxError: the window is larger than the padded map.
    """
    rows, columns = (_axis_weights(shape, pool, axis) for axis in (0, 1))
    return np.multiply.outer(rows, columns)


def _axis_weights(shape: Shape, pool: PoolWindow, axis: int) -> npt.NDArray[np.int64]:
    starts = np.arange(pool.output_shape(shape)[axis]) * pool.strides[axis] - pool.pads[axis]
    taps = np.add.outer(starts, np.arange(pool.kernel[axis]) * pool.dilations[axis])
    inside = taps[(taps >= 0) & (taps < shape[axis])]
    return np.bincount(inside, minlength=shape[axis]).astype(np.int64)
