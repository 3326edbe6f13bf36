"""Impact mask: the positions that matter most to the loss come first.

Figurnov et al., arXiv 1504.08362, section 3. The maps of impacts are computed by `perfonnx.impact` from images.
"""

import os
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from perfonnx.errors import PerfonnxError
from perfonnx.masks.file import ANY_LAYER, load_arrays
from perfonnx.masks.request import Mask, MaskRequest, count_sites, named, top_sites

ImpactMaps: TypeAlias = Mapping[str, npt.NDArray[np.floating]]
"""The impact of each output position, float [H, W], by layer name."""


@named("impact", place=90)
def impact_mask(request: MaskRequest) -> Mask:
    """The positions of the highest impact, ties at random.

    Returns:
        bool [H, W] with exactly `count_sites` sites.

    Raises:
        PerfonnxError: the request has no map of impacts, or it is not one of this layer.
    """
    impact = request.impact
    if impact is None:
        raise PerfonnxError("mask impact: no map of impacts; compute them with perfonnx.impact.impact_maps")
    check_impact(impact, "mask impact")
    if impact.shape != tuple(request.shape):
        raise PerfonnxError(
            f"mask impact: the map of impacts is {_size(impact.shape)}, the layer's output {_size(request.shape)}; "
            "compute it on this model, at this size"
        )
    return top_sites(impact, count_sites(request.shape, request.rate), request.rng)


def check_impact(array: object, where: str) -> npt.NDArray[np.floating]:
    """Refuses what is no map of impacts.

    Raises:
        PerfonnxError: it is no array of finite numbers from 0 up, [H, W]; the message begins with `where`.
    """
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.size == 0 or array.dtype.kind != "f":
        found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise PerfonnxError(f"{where}: is {found}; a map of impacts is a float array [H, W]")
    if not (np.isfinite(array) & (array >= 0)).all():
        raise PerfonnxError(f"{where}: has values that are negative or not finite; a map of impacts has none")
    return array


def load_impact_maps(path: str | os.PathLike[str]) -> dict[str, npt.NDArray[np.floating]]:
    """Reads maps of impacts from a .npz file, one per layer, under its name.

    Raises:
        PerfonnxError: the file is missing, broken or something else.
    """
    where = f"impact maps {os.fspath(path)}"
    arrays = load_arrays(path, where)
    if ANY_LAYER in arrays:
        raise PerfonnxError(f"{where}: holds a single array; give an .npz file with one per layer name")
    return {name: check_impact(array, f"{where}, {name!r}") for name, array in arrays.items()}


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
