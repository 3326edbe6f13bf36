"""Masks: which output positions of a layer are computed.

One file per strategy. A new one is its file, its import and its line in `MASKS`. Masks that a user brings in a file
are read by `load_masks` and picked by `mask_from_file`.
"""

import numpy as np

from perfonnx.errors import PerfonnxError
from perfonnx.masks.file import ANY_LAYER, as_mask, load_masks, mask_from_file, save_arrays
from perfonnx.masks.grid import grid_mask, grid_size, grid_square_mask
from perfonnx.masks.impact import ImpactMaps, impact_mask, load_impact_maps
from perfonnx.masks.lattice import column_stripes_mask, lattice_mask, row_stripes_mask
from perfonnx.masks.pooling_structure import pooling_structure_mask, pooling_weights
from perfonnx.masks.propagated import propagated_mask, propagated_request, propagated_scores
from perfonnx.masks.request import Mask, MaskFunction, MaskRequest, PoolWindow, count_sites
from perfonnx.masks.uniform import uniform_mask

__all__ = [
    "ANY_LAYER",
    "MASKS",
    "ImpactMaps",
    "Mask",
    "MaskFunction",
    "MaskRequest",
    "PoolWindow",
    "as_mask",
    "count_sites",
    "grid_size",
    "load_impact_maps",
    "load_masks",
    "make_mask",
    "mask_from_file",
    "pooling_weights",
    "propagated_mask",
    "propagated_scores",
    "save_arrays",
]

MASKS: dict[str, MaskFunction] = {
    "uniform": uniform_mask,
    "grid": grid_mask,
    "grid-square": grid_square_mask,
    "pooling-structure": pooling_structure_mask,
    "propagated": propagated_request,
    "lattice": lattice_mask,
    "stripes-rows": row_stripes_mask,
    "stripes-columns": column_stripes_mask,
    "impact": impact_mask,
}
"""Mask functions by the name a user types."""


def make_mask(name: str, request: MaskRequest) -> Mask:
    """Makes the mask of a layer.

    Args:
        name: a key of `MASKS`.
        request: shape, rate and what else the mask needs. The same request, with a generator in the same state, gives
            the same mask.

    Returns:
        bool [H, W] with at least one site; all true at rate 0.

    Raises:
        PerfonnxError: the name is unknown, or the request lacks what this mask needs.
    """
    function = MASKS.get(name)
    if function is None:
        raise PerfonnxError(f"unknown mask {name!r}; choose from {', '.join(MASKS)}, or give a .npy or .npz file")
    return np.ascontiguousarray(function(request))
