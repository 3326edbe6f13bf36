"""A smaller input, a baseline of Figurnov et al. (arXiv 1504.08362, section 4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from perfonnx.errors import PerfonnxError
from perfonnx.methods.base import Context, Spot
from perfonnx.methods.lowrank.smaller import Smaller, nearest, same_conv
from perfonnx.model.layers import Layer


@dataclass(frozen=True)
class Resize(Smaller):
    """What the layer reads is averaged over squares of `shrink` x `shrink`; it sees more of the image, coarser."""

    NAME = "resize"
    SUMMARY = "a smaller input, of means of squares; its map is repeated to the old size, or goes on smaller"
    READS_MEANS = True

    def check(self, where: str) -> None:
        """See `Method.check`."""
        super().check(where)
        if self.shrink != round(self.shrink):
            raise PerfonnxError(f"{where}: squares have whole sides, not {self.shrink:g}")

    def obstacle(self, layer: Layer, context: Context) -> str | None:
        """See `Method.obstacle`."""
        assert layer.attributes is not None
        if min(self._output(layer)) < 1:
            return "its kernel does not fit into the smaller input"
        return super().obstacle(layer, context)

    def _output(self, layer: Layer) -> tuple[int, int]:
        assert layer.attributes is not None
        assert layer.input_shape is not None
        height, width = (-(-d // round(self.shrink)) for d in layer.input_shape[2:] if isinstance(d, int))
        return layer.attributes.output_shape(height, width)

    def shrunk(self, spot: Spot) -> tuple[list[gs.Node], tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """See `Smaller.shrunk`: the squares at the far edges are what is there of them."""
        side, layer = round(self.shrink), spot.layer
        assert layer.input_shape is not None
        assert layer.output_shape is not None
        missing = [-d % side for d in layer.input_shape[2:] if isinstance(d, int)]
        attributes = {
            "kernel_shape": [side, side],
            "strides": [side, side],
            "pads": [0, 0, *missing],
            "count_include_pad": 0,
        }
        output = gs.Variable(spot.workspace.free_name(f"{spot.node.outputs[0].name}.averaged"))
        means = gs.Node("AveragePool", f"{spot.name}.averaged", attributes, [spot.node.inputs[0]], [output])
        small = self._output(layer)
        centres = (
            [(number + 0.5) * old / new - 0.5 for number in range(new)]
            for new, old in zip(small, layer.output_shape, strict=True)
        )
        rows, columns = (nearest(old, sites) for old, sites in zip(layer.output_shape, centres, strict=True))
        return [means, same_conv(spot, "smaller", output, spot.attributes)], (rows, columns)
