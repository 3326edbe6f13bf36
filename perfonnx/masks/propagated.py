"""Propagated mask: one random map at input resolution decides for all layers, so that their masks are aligned.

Grimaldi et al., semi-structured activation sparsity: the map is average-pooled to each layer's size and the lowest
scores are dropped.
"""

import numpy as np
import numpy.typing as npt

from perfonnx.errors import PerfonnxError
from perfonnx.masks.request import Mask, MaskRequest, Shape, check_shape, exact_rate, named


@named("propagated", place=50)
def propagated_request(request: MaskRequest) -> Mask:
    """`propagated_mask` for a request; its generator is not used, the scores are all the chance there is.

    Raises:
        PerfonnxError: the request has no scores.
    """
    if request.scores is None:
        raise PerfonnxError("mask propagated: no scores; draw them once per model with propagated_scores")
    return propagated_mask(request.scores, request.shape, request.rate)


def propagated_scores(input_shape: Shape, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Draws the map that all layers of a model share.

    Args:
        input_shape: height and width of the model's input.
        rng: where the scores come from.

    Returns:
        float64 [H_in, W_in], uniform in [0, 1).
    """
    check_shape(input_shape)
    return rng.random(input_shape)


def propagated_mask(scores: npt.NDArray[np.floating], shape: Shape, rate: float) -> Mask:
    """Drops the round(rate * H * W) positions with the lowest scores, never all of them.

    Args:
        scores: float [H_in, W_in], see `propagated_scores`.
        shape: height and width of the layer's output map; it need not divide the input's, and may be larger.
        rate: share of positions to skip, in [0, 1).

    Returns:
        bool [H, W]. Equal scores, as on maps larger than the input, are dropped in row-major order.

    Raises:
        PerfonnxError: the scores are not a finite map, or shape or rate is out of range.
    """
    check_shape(shape)
    if scores.ndim != 2 or scores.size == 0 or scores.dtype.kind != "f" or not np.isfinite(scores).all():
        raise PerfonnxError(
            f"mask propagated: scores are {scores.dtype} {list(scores.shape)}; they need to be a finite float map"
        )
    pooled = _adaptive_average(_adaptive_average(scores.astype(np.float64), shape[0]).T, shape[1]).T
    dropped = min(round(exact_rate(rate) * pooled.size), pooled.size - 1)
    mask = np.ones(pooled.size, dtype=np.bool_)
    mask[np.argsort(pooled, axis=None, kind="stable")[:dropped]] = False
    return mask.reshape(shape)


def _adaptive_average(values: npt.NDArray[np.float64], length: int) -> npt.NDArray[np.float64]:
    """Averages axis 0 into `length` bins from floor(i*n/length) to ceil((i+1)*n/length), as adaptive pooling does."""
    size = values.shape[0]
    index = np.arange(length)
    start, stop = index * size // length, -(-(index + 1) * size // length)
    # reduceat wants every index inside the array, and the last stop is its length: hence one row of zeros.
    padded = np.concatenate([values, np.zeros_like(values[:1])])
    sums = np.add.reduceat(padded, np.stack([start, stop], axis=1).ravel(), axis=0)[::2]
    averages: npt.NDArray[np.float64] = sums / (stop - start)[:, np.newaxis]
    return averages
