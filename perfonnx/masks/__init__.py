"""Masks: which output positions of a layer are computed.

One file per strategy, which says the name of its mask and is found by being here. Masks that a user brings in a file
are read by `load_masks` and picked by `mask_from_file`.
"""

from importlib import import_module
from pkgutil import iter_modules

import numpy as np

from perfonnx.errors import PerfonnxError
from perfonnx.masks.file import ANY_LAYER, as_mask, load_masks, mask_from_file, save_arrays
from perfonnx.masks.grid import grid_size
from perfonnx.masks.impact import ImpactMaps, load_impact_maps
from perfonnx.masks.pooling_structure import pooling_weights
from perfonnx.masks.propagated import propagated_mask, propagated_scores
from perfonnx.masks.request import NAMED, Mask, MaskFunction, MaskRequest, PoolWindow, count_sites

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

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

MASKS: dict[str, MaskFunction] = {
    mask.name: mask.function for mask in sorted(NAMED, key=lambda mask: (mask.place, mask.name))
}
"""Mask functions by the name a user types, in the order in which they are listed."""


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
