"""Plain numpy forms of what the engine computes, in float64, written from the definitions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
NO_ACTIVATION = (1.0, -float(np.finfo(np.float32).max), float(np.finfo(np.float32).max))


@dataclass(frozen=True)
class Geometry:
    """Spatial attributes of a Conv."""

    kernel: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (1, 1, 1, 1)
    dilations: tuple[int, int] = (1, 1)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Size of the output map for an input of that size."""
        sizes = []
        for axis, size in enumerate((height, width)):
            room = size + self.pads[axis] + self.pads[axis + 2] - self.dilations[axis] * (self.kernel[axis] - 1) - 1
            sizes.append(0 if room < 0 else room // self.strides[axis] + 1)
        return sizes[0], sizes[1]

    def keywords(self) -> dict[str, Any]:
        """As keyword arguments of the engine's classes."""
        return {"strides": self.strides, "pads": self.pads, "dilations": self.dilations}


def picked(rows: npt.NDArray[Any], numbers: npt.NDArray[np.int32]) -> npt.NDArray[Any]:
    """Rows [N, R, C] by their numbers, -1 zeros: [N, *numbers.shape, C]."""
    return np.concatenate([rows, np.zeros_like(rows[:, :1])], axis=1)[:, numbers]


def map_of(s: npt.NDArray[Any], in_source: npt.NDArray[np.int32], size: tuple[int, int]) -> npt.NDArray[Any]:
    """The map that rows stand for: rows [N, R, C] to [N, C, H, W], -1 zeros."""
    return picked(s, in_source).transpose(0, 2, 1).reshape(len(s), s.shape[2], *size)


def rows_of(x: npt.NDArray[Any], sites: npt.NDArray[Any] | slice = slice(None)) -> npt.NDArray[Any]:
    """Rows of maps at some sites, or at every position: [N, C, H, W] to [N, P, C]."""
    return x.reshape(*x.shape[:2], x.shape[2] * x.shape[3])[:, :, sites].transpose(0, 2, 1)


def taps(x: npt.NDArray[np.generic], geometry: Geometry) -> F64:
    """Inputs under each tap, zero in the padding: X [N, C, H, W] to [N, C, OH, OW, kh, kw]."""
    n, c, h, w = x.shape
    oh, ow = geometry.output_size(h, w)
    result = np.zeros((n, c, oh, ow, *geometry.kernel))
    for oy, ox, i, j in np.ndindex(oh, ow, *geometry.kernel):
        y = oy * geometry.strides[0] - geometry.pads[0] + i * geometry.dilations[0]
        xx = ox * geometry.strides[1] - geometry.pads[1] + j * geometry.dilations[1]
        if 0 <= y < h and 0 <= xx < w:
            result[:, :, oy, ox, i, j] = x[:, :, y, xx]
    return result


def conv(x: npt.NDArray[np.generic], w: npt.NDArray[np.generic], geometry: Geometry, group: int = 1) -> F64:
    """Convolution without bias, [N, M, OH, OW]."""
    columns = taps(x, geometry)
    n, _, oh, ow = columns.shape[:4]
    columns = columns.reshape(n, group, w.shape[1], oh, ow, *geometry.kernel)
    weights = w.astype(np.float64).reshape(group, w.shape[0] // group, *w.shape[1:])
    result: F64 = np.einsum("ngcyxij,gmcij->ngmyx", columns, weights).reshape(n, w.shape[0], oh, ow)
    return result


def activate(v: F64, activation: tuple[float, float, float], slopes: npt.NDArray[np.float32] | None = None) -> F64:
    """min(max(v < 0 ? slope * v : v, low), high); `slopes`, that multiply slope, broadcast to V."""
    slope: float | F64
    slope, low, high = activation
    if slopes is not None:
        slope = slope * slopes.astype(np.float64)
    result: F64 = np.minimum(np.maximum(np.where(v < 0, slope * v, v), low), high)
    return result


def interpolate(v: F64, source: npt.NDArray[np.int32], weight: npt.NDArray[np.float32] | None = None) -> F64:
    """Z[q] = sum over k of weight[q, k] * (source[q, k] < 0 ? 0 : V[source[q, k]]) on [N, M, OH, OW]."""
    n, m, oh, ow = v.shape
    flat = np.concatenate([v.reshape(n, m, oh * ow), np.zeros((n, m, 1))], axis=2)
    picked = flat[:, :, source]
    if weight is not None:
        picked = picked * weight
    result: F64 = picked.sum(axis=3).reshape(n, m, oh, ow)
    return result


def radius_adaptive(
    x: npt.NDArray[np.generic],
    w: npt.NDArray[np.generic],
    b: npt.NDArray[np.generic],
    w_alpha: npt.NDArray[np.generic],
    b_alpha: float,
    b_ring: npt.NDArray[np.generic],
    geometry: Geometry,
    *,
    group: int = 1,
    center_gain: float = 0.0,
) -> F64:
    """(1 + center_gain * alpha) * centre + B + alpha * (ring + B_ring), [N, M, OH, OW]."""
    middle = taps(x, geometry)[..., 1, 1]
    alpha = np.clip(np.einsum("ncyx,c->nyx", middle, w_alpha.astype(np.float64).ravel()) + b_alpha, 0, 1)[:, None]
    inner = np.zeros_like(w)
    inner[:, :, 1, 1] = w[:, :, 1, 1]
    centre = conv(x, inner, geometry, group)
    ring = conv(x, w - inner, geometry, group)
    bias, ring_bias = (v.astype(np.float64)[None, :, None, None] for v in (b, b_ring))
    result: F64 = (1 + center_gain * alpha) * centre + bias + alpha * (ring + ring_bias)
    return result


def nearest_source(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Nearest site of each position, the first in raster order among equals; -1 without any site. [Q, 1]."""
    width = mask.shape[1]
    ys, xs = np.nonzero(mask)
    if len(ys) == 0:
        return np.full((mask.size, 1), -1, np.int32)
    qy, qx = np.divmod(np.arange(mask.size), max(width, 1))
    best = np.argmin((qy[:, None] - ys) ** 2 + (qx[:, None] - xs) ** 2, axis=1)
    sites: npt.NDArray[np.int32] = (ys * width + xs).astype(np.int32)
    chosen: npt.NDArray[np.int32] = sites[best][:, None]
    return chosen
