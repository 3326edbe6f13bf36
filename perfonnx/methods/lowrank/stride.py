"""A longer stride, the first baseline of Figurnov et al. (arXiv 1504.08362, section 4)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from perfonnx.errors import PerfonnxError
from perfonnx.methods.base import Spot
from perfonnx.methods.lowrank.smaller import Smaller, nearest, same_conv


@dataclass(frozen=True)
class Stride(Smaller):
    """The stride is a whole number of times as long."""

    NAME = "stride"
    SUMMARY = "a longer stride; its map is repeated to the old size, or goes on smaller"
    READS_MEANS = False

    def check(self, where: str) -> None:
        """See `Method.check`."""
        super().check(where)
        if self.shrink != round(self.shrink):
            raise PerfonnxError(f"{where}: a stride grows a whole number of times, not {self.shrink:g}")

    def shrunk(self, spot: Spot) -> tuple[list[gs.Node], tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """See `Smaller.shrunk`."""
        a, factor = spot.attributes, round(self.shrink)
        longer = replace(a, strides=(a.strides[0] * factor, a.strides[1] * factor))
        assert spot.layer.output_shape is not None
        height, width = (nearest(size, range(0, size, factor)) for size in spot.layer.output_shape)
        return [same_conv(spot, "strided", spot.node.inputs[0], longer)], (height, width)
