"""Blocks: whole tiles of Winograd's algorithm are skipped or kept, so that time is saved in proportion.

Sites that are scattered touch every tile: then most positions must be skipped before a layer is faster than one that
tiles compute whole.
"""

import numpy as np

from perfonnx.masks.request import Mask, MaskRequest, exact_rate, named

EDGE = 4
"""Positions along an edge of a block: outputs of the largest tile."""


@named("blocks", place=85)
def blocks_mask(request: MaskRequest) -> Mask:
    """Random blocks of 4 x 4 positions, counted from the map's first position; those at the far borders may be smaller.

    Blocks are left out in random order, as long as that comes closer to the asked rate.

    Returns:
        bool [H, W] with at least one site.
    """
    rows, columns = (-(-size // EDGE) for size in request.shape)
    order = request.rng.permutation(rows * columns)
    block = np.add.outer(np.arange(request.shape[0]) // EDGE * columns, np.arange(request.shape[1]) // EDGE)
    sizes = np.bincount(block.ravel())[order]
    wanted = float(exact_rate(request.rate)) * block.size
    left_out = np.concatenate([[0], np.cumsum(sizes)[:-1]])  # by the first blocks, but never by all
    count = int(np.argmin(np.abs(left_out - wanted)))
    kept = np.ones(rows * columns, np.bool_)
    kept[order[:count]] = False
    return np.asarray(kept[block], np.bool_)
