"""Refit: a layer gets other weights, by least squares on calibration data, for each class of its sites.

Front to back and without labels: the input comes from the network rewritten and refitted up to the layer, the target
from the original one, so a layer makes up for what went wrong in front of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from perfonnx.corrections import Correction, digest
from perfonnx.errors import PerfonnxError
from perfonnx.fitting import Goal, Refit
from perfonnx.masks import Mask
from perfonnx.methods.base import Fitted, Spot
from perfonnx.methods.masked import sampling_operands
from perfonnx.model.layers import unique_name
from perfonnx.ops.common import ConvAttributes
from perfonnx.sampling import Sampling, interpolate

Ints = NDArray[np.int64]

RIDGE = 2e-3
"""Strength of the pull towards the original weights, relative to the mean variance of what is read."""
TURNS = 2
"""Fits of a layer; all but the first count what its activation lets through. On ResNet-20 with all layers on the
quincunx and 400 images the second gains 0.4 points, a third 0.1."""
PER_UNKNOWN = 10
"""Rows that a fit should have for each unknown of an output."""
PLENTY = 1 << 16
"""Rows of a fit that are taken where there are so many, however few the unknowns."""
NEGLIGIBLE = 1e-4
"""Error of a layer, see `perfonnx.fitting.Refit.error`, that is not worth a fit; sums in another order have 1e-12."""


@dataclass(frozen=True)
class SiteClass:
    """Positions of a layer for which the same taps exist.

    Attributes:
        mask: bool [OH, OW].
        taps: int64 [T, 2], (dy, dx) from a position times the stride, in positions of the input.
    """

    mask: Mask
    taps: Ints


def own_taps(attributes: ConvAttributes) -> Ints:
    """The taps [T, 2] of a kernel, in the order of its weights: (dy, dx) from a position times the stride."""
    a = attributes
    inside = np.argwhere(np.ones(a.kernel_shape, bool))
    return np.asarray(inside * np.array(a.dilations) - np.array(a.pads[:2]))


def classes_of(correction: Correction) -> list[SiteClass]:
    """Those that a layer was fitted with."""
    numbers = correction.arrays["classes"]
    return [
        SiteClass(numbers == i, correction.arrays[f"taps{i}"].astype(np.int64)) for i in range(int(numbers.max()) + 1)
    ]


def check(correction: Correction, weight: NDArray[Any], mask: Mask, own: Ints) -> None:
    """Refuse a correction that was found for something else than a layer of this weight, mask and `own_taps`."""
    again = "fit again with --data"
    if correction.weights != digest(weight):
        raise PerfonnxError(f"its weights were fitted for others; {again}")
    if correction.bias.size:
        raise PerfonnxError(f"it was repaired, not refitted; {again}")
    if not correction.arrays:
        return
    numbers = correction.arrays.get("classes", np.zeros((0, 0)))
    whole_classes = np.array_equal(numbers, np.round(numbers))  # else a site would be of no class
    if numbers.shape != mask.shape or not whole_classes or not np.array_equal(numbers >= 0, mask):
        raise PerfonnxError(f"its weights were fitted for other sites; {again}")
    m, c = weight.shape[:2]
    low, high = own.min(axis=0), own.max(axis=0)
    reach = high - low + 1  # a kernel that is turned or stretched by two reaches less far beyond its own
    for i in range(int(numbers.max()) + 1):
        taps, values, bias = (correction.arrays.get(f"{kind}{i}", np.zeros(0)) for kind in ("taps", "weight", "bias"))
        whole = taps.ndim == 2 and taps.shape[1] == 2 and len(taps) and (taps == np.round(taps)).all()
        near = whole and (taps >= low - reach).all() and (taps <= high + reach).all()
        if not near or values.shape != (m, c, len(taps)) or bias.shape != (m,):
            raise PerfonnxError(f"its weights are of another form; {again}")


def refitted(
    spot: Spot,
    classes: Callable[[], Sequence[SiteClass]],
    filled: Sampling | None = None,
    *,
    ridge: float = RIDGE,
) -> Fitted:
    """Give a layer other weights, by fitting where there are targets, else as before.

    Args:
        spot: The layer, which is a `PerforatedConv`.
        classes: Gives the classes of its sites, which are as they are when it is fitted.
        filled: How skipped positions are filled where training has to be told.
        ridge: Strength of the pull towards the original weights.

    Raises:
        PerfonnxError: Naming the layer: there is nothing to fit it by, or what was found before is not for it.
    """
    try:
        return _Replacing(spot, classes, filled, ridge).done()
    except PerfonnxError as error:
        raise PerfonnxError(f"layer {spot.name!r}: {error}") from error


class _Replacing:
    """One layer's weights."""

    def __init__(
        self, spot: Spot, classes: Callable[[], Sequence[SiteClass]], filled: Sampling | None, ridge: float
    ) -> None:
        assert spot.mask is not None
        self.spot = spot
        self.classes = classes
        self.filled = filled
        self.ridge = ridge
        self.mask = spot.mask

    def done(self) -> Fitted:
        """As before, where that is known; else by fitting."""
        spot = self.spot
        if spot.targets is None:
            correction, note = spot.context.corrections[spot.name], "refitted as before"
            check(correction, spot.weight, self.mask, own_taps(spot.attributes))
        else:
            correction, note = self._fitted()
        if correction.arrays:
            self._apply(correction)
        return Fitted(correction, note)

    def _fitted(self) -> tuple[Correction, str]:
        spot, classes = self.spot, self.classes()
        assert spot.targets is not None
        images = max(spot.targets.images, 1)
        fits = [self._refit(each, images, spot.targets.goal(spot.name)) for each in classes]
        shares = [float(each.mask.sum()) / self.mask.sum() for each in classes]
        errors, found = [], []
        for turn in range(TURNS + 1):
            if turn:
                found.append([fit.solve(self.ridge) for fit in fits])
                for fit, solution in zip(fits, found[-1], strict=True):
                    fit.again(*solution)
            for number, (x, _, target, other) in enumerate(spot.targets.values(spot.name, settled=turn == TURNS)):
                for fit in fits:
                    fit.add(x, target, other, only_error=turn == TURNS)
                if not turn and not number and max(fit.error for fit in fits) < NEGLIGIBLE:
                    next(spot.targets.values(spot.name, settled=True), None)  # nobody asks again
                    note = "as it was: what has changed hardly reaches it"
                    return Correction.of(spot.weight, {}, 0.0, 0.0, self.filled), note
            errors.append(sum(share * fit.error for share, fit in zip(shares, fits, strict=True)))
        best = int(np.argmin(errors[1:]))
        before, after, solutions = errors[0], errors[1 + best], found[best]
        numbers = np.full(self.mask.shape, -1, np.float32)
        arrays: dict[str, NDArray[np.float32]] = {"classes": numbers}
        for i, (each, solution) in enumerate(zip(classes, solutions, strict=True)):
            numbers[each.mask] = i
            arrays[f"taps{i}"] = each.taps.astype(np.float32)
            arrays[f"weight{i}"], arrays[f"bias{i}"] = (array.astype(np.float32) for array in solution)
        taps = " and ".join(str(len(each.taps)) for each in classes)
        note = f"refitted, {taps} taps: error {before:.2%} -> {after:.2%}"
        few = min(fit.rows / fit.unknowns for fit in fits)
        if few < PER_UNKNOWN:
            note += f" (only {few:.1f} rows for each unknown: more data would help)"
        return Correction.of(spot.weight, arrays, before, after, self.filled), note

    def _refit(self, each: SiteClass, images: int, goal: Goal) -> Refit:
        spot, a = self.spot, self.spot.attributes
        unknowns = len(each.taps) * spot.weight.shape[1]
        count = int(each.mask.sum())
        wanted = -(-max(2 * PER_UNKNOWN * unknowns, PLENTY) // images)
        weight, few = self._merged(each.taps), min(count, wanted)
        return Refit(each.mask, each.taps, a.strides, weight, spot.bias, goal, few, a.group)

    def _merged(self, taps: Ints) -> NDArray[np.float64]:
        """The weight [M, C/group, T] where each of the layer's taps that does not exist is given to the nearest."""
        spot = self.spot
        result = np.zeros((*spot.weight.shape[:2], len(taps)))
        weight = spot.weight.reshape(*result.shape[:2], -1).astype(np.float64)
        for number, own in enumerate(own_taps(spot.attributes)):
            nearest = np.square(taps - own).sum(axis=1)
            closest = nearest == nearest.min()  # shared out, lest the map be shifted
            result[:, :, closest] += weight[:, :, number, None] / closest.sum()
        return result

    # --- nodes -------------------------------------------------------------------------------------------------------

    def _apply(self, correction: Correction) -> None:
        """Change the node's constants; with several classes, put a node for each in its place."""
        spot = self.spot
        classes = classes_of(correction)
        nodes = [spot.node]
        if len(classes) > 1:
            nodes = self._several(classes)
        for i, (each, node) in enumerate(zip(classes, nodes, strict=True)):
            arrays = (correction.arrays[f"weight{i}"], correction.arrays[f"bias{i}"])
            self._change(node, each, *arrays, f".class{i}" if len(classes) > 1 else ".refitted")

    def _change(
        self, node: gs.Node, each: SiteClass, weight: NDArray[np.float32], bias: NDArray[np.float32], suffix: str
    ) -> None:
        spot, dtype = self.spot, self.spot.weight.dtype
        attributes, kernel = wide_kernel(each.taps, weight, spot.attributes, self._input_size(), self.mask.shape)
        with np.errstate(over="ignore"):
            values = kernel.astype(dtype), bias.astype(dtype)
        if not all(np.isfinite(array).all() for array in values):
            raise PerfonnxError("its weights are too large for their type; leave it out with --skip")
        name = f"{spot.name}{suffix}"
        for i, (array, kind) in enumerate(zip(values, ("weight", "bias"), strict=True), 1):
            node.inputs[i] = spot.workspace.add_constant(f"{name}.{kind}", array)
        node.attrs.update(attributes.attributes())

    def _several(self, classes: Sequence[SiteClass]) -> list[gs.Node]:
        """A node for each class, zero elsewhere, and their sum."""
        workspace, first = self.spot.workspace, self.spot.node
        total = first.outputs[0]
        known = workspace.types[total.name]

        def variable(part: str) -> gs.Variable:
            made = gs.Variable(workspace.free_name(f"{total.name}.{part}"))
            workspace.types[made.name] = known
            return made

        nodes, added = [first], []
        first.outputs = [variable("class0")]
        for i, each in enumerate(classes):
            node = first
            if i:
                attrs, name = dict(first.attrs), unique_name(workspace, f"{first.name}.class{i}")
                node = gs.Node(first.op, name, attrs, list(first.inputs[:3]), [variable(f"class{i}")])
                node.domain = first.domain
                nodes.append(node)
                workspace.inherit(node, first)
            tables, named = sampling_operands(workspace, interpolate(each.mask, "zero"))
            node.inputs = [*node.inputs[:3], *tables]
            node.attrs.update(named)
        partial = nodes[0].outputs[0]
        for i, node in enumerate(nodes[1:], 1):
            output = total if i == len(nodes) - 1 else variable(f"sum{i}")
            name = unique_name(workspace, f"{first.name}.sum{i}")
            added.append(gs.Node("Add", name, {}, [partial, node.outputs[0]], [output]))
            partial = output
        index = next(i for i, other in enumerate(workspace.graph.nodes) if other is first)
        workspace.graph.nodes[index + 1 : index + 1] = [*nodes[1:], *added]
        return nodes

    def _input_size(self) -> tuple[int, int]:
        shape = self.spot.workspace.types[self.spot.node.inputs[0].name].shape
        assert shape is not None
        height, width = (d for d in shape[2:] if isinstance(d, int))
        return height, width


def wide_kernel(
    taps: Ints,
    weight: NDArray[np.float32],
    attributes: ConvAttributes,
    size: tuple[int, int],
    output: tuple[int, ...],
) -> tuple[ConvAttributes, NDArray[np.float32]]:
    """Geometry and weights [M, C/group, kh, kw] of a convolution with these taps.

    Args:
        taps: [T, 2], (dy, dx) from a position times the stride.
        weight: [M, C/group, T].
        attributes: The layer's, for strides and groups.
        size: Height and width of the input.
        output: Those of the output, which stay.
    """
    low = np.minimum(taps.min(axis=0), 0)
    steps = np.maximum(np.gcd.reduce(taps - low, axis=0), 1)  # of a dilated layer, say
    wide, kernel = _spread_kernel(taps, weight, attributes, size, output, (int(steps[0]), int(steps[1])))
    if wide.output_shape(*size) != tuple(output):
        wide, kernel = _spread_kernel(taps, weight, attributes, size, output, (1, 1))
    return wide, kernel


def _spread_kernel(
    taps: Ints,
    weight: NDArray[np.float32],
    attributes: ConvAttributes,
    size: tuple[int, int],
    output: tuple[int, ...],
    dilations: tuple[int, int],
) -> tuple[ConvAttributes, NDArray[np.float32]]:
    """See `wide_kernel`; with these dilations it may have too few outputs, with 1 it has as many as are wanted."""
    low, high = np.minimum(taps.min(axis=0), 0), taps.max(axis=0)
    places = (taps - low) // dilations
    shape = places.max(axis=0) + 1
    behind = []
    for axis in range(2):
        last = (output[axis] - 1) * attributes.strides[axis] + int(high[axis])  # position that the last site reads
        behind.append(max(last - (size[axis] - 1), 0))
    pads = (int(-low[0]), int(-low[1]), behind[0], behind[1])
    wide = ConvAttributes((int(shape[0]), int(shape[1])), attributes.strides, pads, dilations, attributes.group)
    # Where the last site reads far before the input's end, more sites would fit: zero taps behind the others.
    for axis in range(2):
        while wide.output_shape(*size)[axis] > output[axis]:
            grown = list(wide.kernel_shape)
            grown[axis] += 1
            wide = replace(wide, kernel_shape=(grown[0], grown[1]))
    kernel = np.zeros((*weight.shape[:2], *wide.kernel_shape), np.float32)
    kernel[:, :, places[:, 0], places[:, 1]] = weight
    return wide, kernel
