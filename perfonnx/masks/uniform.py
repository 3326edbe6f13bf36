"""Uniform mask: sites drawn at random (Figurnov et al., arXiv 1504.08362, section 3)."""

import numpy as np

from perfonnx.masks.request import Mask, MaskRequest, count_sites, named, top_sites


@named("uniform", place=10)
def uniform_mask(request: MaskRequest) -> Mask:
    """Random weights, the top sites win.

    Returns:
        bool [H, W] with exactly `count_sites` sites.
    """
    return top_sites(np.zeros(request.shape, dtype=np.int8), count_sites(request.shape, request.rate), request.rng)
