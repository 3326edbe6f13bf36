"""Fractional strides: a grid of sites, whose values are a smaller map (Figurnov et al., arXiv 1504.08362, 4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from perfonnx.masks.grid import grid_size, spread
from perfonnx.methods.base import Spot
from perfonnx.methods.lowrank.smaller import Smaller, nearest, same_conv, taken
from perfonnx.ops.common import ConvAttributes


@dataclass(frozen=True)
class FractionalStride(Smaller):
    """The layer is computed at the crossings of some rows and columns.

    What the sites read is put together tap by tap, so that a convolution whose stride is its kernel computes them.
    """

    NAME = "fractional-stride"
    SUMMARY = "computed at a grid of sites, which make a smaller map, repeated to the old size or not"

    def shrunk(self, spot: Spot) -> tuple[list[gs.Node], tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """See `Smaller.shrunk`."""
        a, shape = spot.attributes, spot.layer.output_shape
        assert shape is not None
        rng = np.random.default_rng([spot.context.seed, *shape])
        sites = [spread(size, count, rng) for size, count in zip(shape, grid_size(shape, self.saving), strict=True)]
        nodes = [_padded(spot)] if any(a.pads) else []
        x = nodes[-1].outputs[0] if nodes else spot.node.inputs[0]
        for axis, part in enumerate(("rows", "columns")):
            taps = np.arange(a.kernel_shape[axis]) * a.dilations[axis]
            positions = (np.array(sites[axis])[:, None] * a.strides[axis] + taps).reshape(-1)
            nodes.append(taken(spot, f"read_{part}", x, positions, axis + 2))
            x = nodes[-1].outputs[0]
        nodes.append(same_conv(spot, "sites", x, ConvAttributes(a.kernel_shape, a.kernel_shape)))
        return nodes, (nearest(shape[0], sites[0]), nearest(shape[1], sites[1]))


def _padded(spot: Spot) -> gs.Node:
    """The input with the layer's pads around it, by a `Pad`."""
    workspace, name, (top, left, bottom, right) = spot.workspace, f"{spot.name}.padded", spot.attributes.pads
    pads = [0, 0, top, left, 0, 0, bottom, right]
    output = gs.Variable(workspace.free_name(f"{spot.node.outputs[0].name}.padded"))
    if workspace.opset < 11:
        return gs.Node("Pad", name, {"pads": pads, "mode": "constant"}, [spot.node.inputs[0]], [output])
    given = workspace.add_constant(f"{name}.pads", np.array(pads, np.int64))
    return gs.Node("Pad", name, {"mode": "constant"}, [spot.node.inputs[0], given], [output])
