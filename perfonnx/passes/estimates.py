"""What a layer costs on maps, on rows and dense: estimates by which a rewrite decides what pays.

The figures were measured with one thread of an AMD EPYC (Zen 4, AVX-512) and onnxruntime 1.32 (`tools/measure_costs.py`
prints them for yours). Only their ratios matter, and those differ little between machines: a convolution is bound by
multiplies or by the memory that it reads and writes, turning a map to rows or back by memory. Where memory binds, rows
are priced a quarter above what was measured, so that a layer is not moved for a gain that is uncertain. `perfonnx
bench` measures what came of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from onnx import TensorProto

from perfonnx.model.layers import Layer
from perfonnx.ops.common import LARGEST_TILE

KINDS = ("full", "pointwise", "depthwise")

CACHED = 1_000_000
"""So many values, 4 MB of them, are read and written in the caches; the rest goes to memory and back."""


NARROW = 32
"""Output channels up to which a layer waits for its taps to be found."""

SHORT_LINE = 2
"""Outputs of a line up to which onnxruntime's Conv may be bound by reading weights."""
FILTERS_TOGETHER = 64
"""Filters of which onnxruntime's Conv computes a line of outputs before it turns to others."""
NEAR_WEIGHTS = 50_000
"""So many weights of these are read from further away than the first caches for each line."""


def kind_of(layer: Layer) -> str:
    """One of `KINDS`."""
    assert layer.attributes is not None
    if layer.w_shape[1] == 1 and layer.attributes.group > 1:
        return "depthwise"
    return "pointwise" if layer.attributes.kernel_shape == (1, 1) else "full"


@dataclass(frozen=True)
class Price:
    """What a kind of layer costs in one form.

    Attributes:
        multiply: Nanoseconds per thousand multiplies.
        value: Nanoseconds per thousand values that are read and written in the caches.
        tap: What finding a tap costs beside its multiplies, as if it had so many input channels more.
        scattered: What finding a tap costs besides where sites do not lie in a line, in multiplies; layers of more
            than `NARROW` output channels hide it.
        block: Output channels are computed in blocks of so many.
    """

    multiply: float
    value: float = 0.0
    tap: float = 0.0
    block: int = 1
    scattered: float = 0.0


@dataclass(frozen=True)
class Tiles:
    """What layers cost by tiles of Winograd's algorithm, in multiplies of its innermost loop.

    As the engine estimates it (`winograd.cpp`), which takes the cheapest of these and the direct way.

    Attributes:
        kernel: Of the layers; where that is more than 2 either way, it may have one line or column less, or both where
            no smaller tiles' kernel has.
        tile: Outputs of a tile, down and across.
        points: Multiplies of a tile for each pair of channels.
        read: To transform a tile, for each input channel.
        write: For each output channel.
        each: For the tile itself.
        fewest: Layers of fewer input or output channels are taken to gain nothing.
    """

    kernel: tuple[int, int]
    tile: tuple[int, int]
    points: int
    read: float
    write: float
    each: float
    fewest: int = 16

    def serves(self, kernel: tuple[int, int]) -> bool:
        """Whether they compute layers of this kernel."""
        if min(self.kernel) == 1 or max(kernel) <= 2:
            return kernel == self.kernel
        (edge, _), least = self.kernel, self.kernel[0] - 1
        return all(least <= k <= edge for k in kernel)

    @property
    def largest(self) -> int:
        """Outputs along an edge of the largest tile that has to be allowed; those of 2x2 kernels count as no larger."""
        return min(max(self.tile), LARGEST_TILE)

    def multiplies(self, layer: Layer) -> float:
        """Of all tiles of a layer, with what its weights cost that come from memory or the last cache."""
        assert layer.attributes is not None
        assert layer.output_shape is not None
        outputs, inputs = layer.w_shape[:2]
        padded = math.ceil(outputs / PANEL) * PANEL
        channels = inputs * layer.attributes.group
        count = 1
        for size, edge, step in zip(layer.output_shape, self.tile, layer.attributes.dilations, strict=True):
            count *= math.ceil(math.ceil(size / step) / edge) * step
        tiles = count * (self.points * inputs * padded + self.read * channels + self.write * outputs + self.each)
        weights = self.points * inputs * outputs
        reading = weights * (FAR_WEIGHT if weights > MANY_WEIGHTS else NEAR_WEIGHT)
        return max(tiles, reading) + OVERLAP * min(tiles, reading)


TILES = (
    Tiles((2, 2), (5, 5), 36, 230.0, 400.0, 600.0),
    Tiles((2, 2), (3, 3), 16, 80.0, 150.0, 350.0),
    Tiles((3, 3), (4, 4), 36, 230.0, 300.0, 500.0),
    Tiles((3, 3), (2, 2), 16, 80.0, 100.0, 300.0),
    Tiles((5, 5), (2, 2), 36, 230.0, 250.0, 500.0, fewest=12),
    Tiles((3, 1), (4, 1), 6, 45.0, 55.0, 1000.0),
    Tiles((1, 3), (1, 4), 6, 45.0, 55.0, 1000.0),
    Tiles((5, 1), (4, 1), 8, 60.0, 70.0, 1200.0),
    Tiles((1, 5), (1, 4), 8, 60.0, 70.0, 1200.0),
    Tiles((7, 1), (4, 1), 10, 80.0, 85.0, 1400.0),
    Tiles((1, 7), (1, 4), 10, 80.0, 85.0, 1400.0),
)
PANEL = 16
"""Output channels that are computed together."""
GROUP_PIECE = 16
"""The channels of groups must be multiples of this."""
NEAR_WEIGHT, FAR_WEIGHT = 3.0, 12.0
"""Multiplies that reading a weight costs: from the last cache, from memory."""
MANY_WEIGHTS = 3 << 19
"""So many weights of a layer are read from memory: they are more than a last cache keeps from run to run."""
OVERLAP = 0.35
"""The part of multiplies and reading that do not hide each other."""


def tiles_of(layer: Layer) -> list[Tiles]:
    """Those by which Winograd's algorithm can compute a layer."""
    a = layer.attributes
    if a is None or layer.elem_type != TensorProto.FLOAT or {*a.strides} != {1}:
        return []
    outputs, inputs = layer.w_shape[0] // a.group, layer.w_shape[1]
    if a.group > 1 and (outputs % GROUP_PIECE or inputs % GROUP_PIECE):
        return []
    return [tiles for tiles in TILES if tiles.serves(a.kernel_shape) and min(outputs, inputs) >= tiles.fewest]


def work_of(layer: Layer) -> float:
    """Multiplies per image; of a matrix product of large weights, those that take as long as reading these."""
    multiplies, weights = layer.multiplies or 0, math.prod(layer.w_shape)
    if layer.is_conv or weights <= MANY_WEIGHTS:
        return multiplies
    return max(multiplies, FAR_WEIGHT * weights)


@dataclass(frozen=True)
class Costs:
    """Nanoseconds on one thread.

    Attributes:
        dense: onnxruntime's Conv, by kind.
        rows: A layer on rows, by kind.
        tiles: A layer on rows by tiles, a multiply of `Tiles` being one.
        compact: Per thousand values of a map that is turned to rows, in the caches.
        expand: Per thousand values of a map that is written from rows, in the caches.
        canonical: Per thousand values that a layer on maps reads and writes, beside what it costs on rows.
        normalize_maps: Per thousand values that onnxruntime's InstanceNormalization normalizes.
        normalize_rows: The same on rows, by several operators.
        memory: How many times as much a value costs that does not fit into the caches, on rows and dense.
        memory_of_turns: The same where a map is turned.
        largest_tile: Tiles have at most so many outputs along an edge.
        narrow: Nanoseconds per thousand weights that onnxruntime's Conv reads anew for each line of outputs, where they
            do not fit into the nearer caches; lines of more than two outputs hide that.
    """

    dense: Mapping[str, Price] = field(
        default_factory=lambda: {
            "full": Price(18.2, 17.0, 0.0, 16),
            "pointwise": Price(17.1, 13.0, 0.0, 16),
            "depthwise": Price(11.2, 68.0, 0.0, 16),
        }
    )
    rows: Mapping[str, Price] = field(
        default_factory=lambda: {
            "full": Price(20.0, 60.0, 0.7, 16, 45.0),
            "pointwise": Price(20.6, 35.0, 0.0, 16),
            "depthwise": Price(16.4, 125.0, 0.0, 16),
        }
    )
    tiles: Price = field(default_factory=lambda: Price(18.2, 17.0))
    compact: float = 330.0
    expand: float = 370.0
    canonical: float = 400.0
    normalize_maps: float = 330.0
    normalize_rows: float = 1900.0
    memory: float = 3.5
    memory_of_turns: float = 2.0
    largest_tile: int = LARGEST_TILE
    narrow: float = 37.0

    def of_dense(self, layer: Layer) -> float:
        """The convolution as onnxruntime runs it."""
        price = self.dense[kind_of(layer)]
        if _reads_weights_again(layer):
            read, written = _values(layer)
            return self.narrow * _weights_read(layer) / 1000 + price.value * self.moved(read + written)
        return self._of_layer(price, layer, 1.0)

    def of_rows(self, layer: Layer, share: float, taps: float = 1.0, *, own_grid: bool = False) -> float:
        """The same on rows, computed at this share of the positions, or at more where that takes less time.

        `taps`: this share of them is left where those that read the same row are merged. `own_grid`: the sites, and
        what they read, are a grid of their own, so that tiles hold sites alone.
        """
        kind = kind_of(layer)
        merges = kind != "depthwise" and self.largest_tile > 0
        direct = self._of_layer(self.rows[kind], layer, share, taps if merges else 1.0)
        tiles = [tiles.multiplies(layer) for tiles in tiles_of(layer) if tiles.largest <= self.largest_tile]
        filled = share if own_grid else 1.0
        return min([direct, *(self._of_tiles(layer, share, multiplies * filled) for multiplies in tiles)])

    def of_canonical(self, layer: Layer, share: float) -> float:
        """The same as one operator from map to map, which computes a map in bands: its rows stay in the caches."""
        banded = replace(self, memory=1.0)
        return banded.of_rows(layer, share) + self.canonical * sum(_values(layer)) / 1000

    def of_compact(self, values: float) -> float:
        """A map of so many values that is turned to rows."""
        return self.compact * _moved(values, self.memory_of_turns)

    def of_expand(self, values: float) -> float:
        """A map of so many values that is written from rows."""
        return self.expand * _moved(values, self.memory_of_turns)

    def moved(self, values: float) -> float:
        """Thousands of values in the caches that take as long to read or write as so many values anywhere."""
        return _moved(values, self.memory)

    def _of_tiles(self, layer: Layer, share: float, multiplies: float) -> float:
        read, written = _values(layer)
        return (self.tiles.multiply * multiplies) / 1000 + self.tiles.value * self.moved(read + written * share)

    def _of_layer(self, price: Price, layer: Layer, share: float, left: float = 1.0) -> float:
        assert layer.attributes is not None
        assert layer.output_shape is not None
        outputs, channels = layer.w_shape[:2]
        groups = 1 if kind_of(layer) == "depthwise" else layer.attributes.group
        blocks = groups * math.ceil(outputs / groups / price.block)
        taps = math.prod(layer.output_shape) * math.prod(layer.attributes.kernel_shape) * share * left
        read, written = _values(layer)
        scattered = price.scattered if share < 1 and outputs <= NARROW else 0.0
        multiplies = taps * ((channels + price.tap) * blocks * price.block + scattered) / 1000
        return price.multiply * multiplies + price.value * self.moved(read + written * share)


def _reads_weights_again(layer: Layer) -> bool:
    """Whether onnxruntime's Conv is bound by the weights of its filters that it reads for each short line."""
    assert layer.attributes is not None
    assert layer.output_shape is not None
    outputs, *others = layer.w_shape
    together = min(outputs // layer.attributes.group, FILTERS_TOGETHER) * math.prod(others)
    return layer.output_shape[-1] <= SHORT_LINE and together >= NEAR_WEIGHTS


def _weights_read(layer: Layer) -> float:
    """Over all lines of outputs: those of taps that do not lie above or below the map."""
    assert layer.attributes is not None
    assert layer.output_shape is not None
    assert layer.input_shape is not None
    a, (lines, _), height = layer.attributes, layer.output_shape, layer.input_shape[2]
    assert isinstance(height, int)
    first = np.arange(lines)[:, None] * a.strides[0] - a.pads[0]
    taps = first + np.arange(a.kernel_shape[0]) * a.dilations[0]
    inside = np.count_nonzero((taps >= 0) & (taps < height))
    return inside * math.prod(layer.w_shape) / a.kernel_shape[0]


def _moved(values: float, memory: float) -> float:
    inside = min(values, CACHED)
    return (inside + memory * (values - inside)) / 1000


def _values(layer: Layer) -> tuple[int, int]:
    """Values of an image that a layer reads, and those that it writes."""
    assert layer.input_shape is not None
    assert layer.output_shape is not None
    read = math.prod(d for d in layer.input_shape[1:] if isinstance(d, int))
    return read, layer.w_shape[0] * math.prod(layer.output_shape)


DEFAULT_COSTS = Costs()
