"""Smaller maps, the baselines that Figurnov et al. (arXiv 1504.08362, section 4) compare perforation with.

A layer gives a smaller map. It goes on as it is, where the rest of the network takes maps of every size, or each of its
positions is repeated until the map has its old size.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from perfonnx.corrections import Correction
from perfonnx.errors import PerfonnxError
from perfonnx.masks import Mask
from perfonnx.methods.base import Context, Fitted, Spot, StandardMethod, setting, standard_conv
from perfonnx.model.layers import POSITION_WISE, Layer
from perfonnx.model.proto import is_standard
from perfonnx.model.workspace import Workspace
from perfonnx.ops.common import ConvAttributes

if TYPE_CHECKING:
    from torch import nn

    from perfonnx.torch.modules import SampledConv2d

NEAREST, NONE = "nearest", "none"

SHRINK = 2.0

_WINDOWS = frozenset({"Conv", "MaxPool", "AveragePool"})
_ONE_MAP = _WINDOWS | {"BatchNormalization", "Clip", "Dropout"}
"""Operators whose other inputs are no maps."""
_TAKES_ANY = _WINDOWS | POSITION_WISE | {"Concat"}
_ENDS = frozenset({"GlobalAveragePool", "GlobalMaxPool"})
"""Operators after which the size of a map is gone."""


@dataclass(frozen=True)
class Smaller(StandardMethod):
    """A layer whose map is smaller, or made of fewer positions.

    Attributes:
        shrink: By how much along each axis.
        restore: How the map gets its old size: `nearest`, or `none` where it keeps the smaller one.
    """

    ADJECTIVE = "shrunk"
    PLACE = 40
    READS_MEANS: ClassVar[bool | None] = None
    """Whether the shrinking is done to the input; None: there is no counterpart to train."""

    shrink: float = setting(SHRINK, "times that stride, fractional-stride and resize shrink each axis (default 2)", "F")
    restore: str = setting(NEAREST, "size of a shrunk layer's map: nearest (default, the old one) or none", "KIND")

    def check(self, where: str) -> None:
        """See `Method.check`."""
        if isinstance(self.shrink, bool) or not isinstance(self.shrink, (int, float)) or not 1 < self.shrink < np.inf:
            raise PerfonnxError(f"{where}: shrink {self.shrink!r} is not a number above 1")
        if self.restore not in (NEAREST, NONE):
            raise PerfonnxError(f"{where}: unknown restore {self.restore!r}; choose from {NEAREST}, {NONE}")

    @property
    def keeps_size(self) -> bool:
        """See `StandardMethod.keeps_size`."""
        return self.restore != NONE

    @property
    def asked(self) -> str:
        """See `Method.asked`."""
        return f"shrink {self.shrink:g}"

    @property
    def saving(self) -> float:
        """See `Method.saving`."""
        return 1 - 1 / self.shrink**2

    def obstacle(self, layer: Layer, context: Context) -> str | None:
        """See `Method.obstacle`."""
        assert layer.output_shape is not None
        if min(layer.output_shape) < self.shrink:
            return f"its map of {layer.output_shape[0]}x{layer.output_shape[1]} is too small to be shrunk"
        return size_obstacle(context.workspace, layer.output, self.shrink) if self.restore == NONE else None

    def trainable(
        self, module: nn.Conv2d, mask: Mask | None, correction: Correction | None = None
    ) -> SampledConv2d | None:
        """See `Method.trainable`."""
        from perfonnx.torch.modules import plain
        from perfonnx.torch.smaller import SmallerConv2d

        if self.READS_MEANS is None:
            return None
        return SmallerConv2d(plain(module), round(self.shrink), averaged=self.READS_MEANS, restored=self.keeps_size)

    @abstractmethod
    def shrunk(self, spot: Spot) -> tuple[list[gs.Node], tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Nodes that give the smaller map, and along each axis its position for every position of the old one."""

    def replaced(self, spot: Spot) -> Fitted:
        """See `StandardMethod.replaced`."""
        nodes, sources = self.shrunk(spot)
        note = f"a map of {max(sources[0]) + 1}x{max(sources[1]) + 1}"
        if self.restore == NONE:
            return Fitted(None, note, nodes)
        for axis, part, source in ((2, "rows", sources[0]), (3, "columns", sources[1])):
            nodes.append(taken(spot, f"restored_{part}", nodes[-1].outputs[0], source, axis))
        return Fitted(None, f"{note}, restored", nodes)


def size_obstacle(workspace: Workspace, output: gs.Tensor, shrink: float) -> str | None:
    """Why the rest of the network does not take a map that is so many times smaller; None where it does."""
    changed, todo, met = {output.name}, [output], list[gs.Node]()
    outputs = {tensor.name for tensor in workspace.graph.outputs}
    while todo:
        tensor = todo.pop()
        if tensor.name in outputs or tensor.name in workspace.captured:
            return f"{tensor.name!r} behind it is an output, and would be smaller"
        for node in tensor.outputs:
            if is_standard(node) and node.op in _ENDS:
                continue
            if not is_standard(node) or node.op not in _TAKES_ANY or not _fits(workspace, node, shrink):
                return f"{node.op} {str(node.name)!r} behind it may want maps of its size"
            met.append(node)
            for result in node.outputs:
                if result.name and result.name not in changed:
                    changed.add(result.name)
                    todo.append(result)
    for node in met:
        for tensor in node.inputs[:1] if node.op in _ONE_MAP else node.inputs:
            if tensor.name and tensor.name not in changed and not _is_spread(workspace, tensor):
                return f"{node.op} {str(node.name)!r} behind it takes another map too, which keeps its size"
    return None


def _fits(workspace: Workspace, node: gs.Node, shrink: float) -> bool:
    """Whether a window still fits into its map."""
    if node.op not in _WINDOWS:
        return True
    known = workspace.types.get(node.inputs[0].name)
    kernel = node.attrs.get("kernel_shape")
    if kernel is None or known is None or known.shape is None or node.attrs.get("auto_pad", "NOTSET") != "NOTSET":
        return False
    pads, far = node.attrs.get("pads", [0] * 4), node.attrs.get("dilations", [1, 1])
    sizes = [d for d in known.shape[2:] if isinstance(d, int)]
    return len(sizes) == 2 and all(
        math.ceil(sizes[i] / shrink) + pads[i] + pads[i + 2] > far[i] * (kernel[i] - 1) for i in (0, 1)
    )


def _is_spread(workspace: Workspace, tensor: gs.Tensor) -> bool:
    """Whether a tensor is constant and the same at every position."""
    values = workspace.constant_proto(tensor)
    return values is not None and all(d == 1 for d in values.dims[-2:])


def taken(spot: Spot, part: str, x: gs.Tensor, positions: NDArray[np.int64], axis: int) -> gs.Node:
    """A `Gather` of positions along an axis."""
    workspace, name = spot.workspace, f"{spot.name}.{part}"
    indices = workspace.add_constant(f"{name}.positions", positions.astype(np.int64))
    output = workspace.free_name(f"{spot.node.outputs[0].name}.{part}")
    return gs.Node("Gather", name, {"axis": axis}, [x, indices], [gs.Variable(output)])


def same_conv(spot: Spot, part: str, x: gs.Tensor, attributes: ConvAttributes) -> gs.Node:
    """The layer's convolution with its own weight and bias, of another geometry."""
    has_bias = len(spot.node.inputs) > 2 and bool(spot.node.inputs[2].name)
    attributes = replace(attributes, group=spot.attributes.group)
    return standard_conv(spot, part, x, spot.weight, attributes, spot.bias if has_bias else None)


def nearest(length: int, sites: Sequence[float]) -> NDArray[np.int64]:
    """For each of so many positions the number of the nearest site; of two at one distance the first."""
    distances = np.abs(np.arange(length)[:, None] - np.asarray(sites, float)[None])
    return distances.argmin(axis=1)
