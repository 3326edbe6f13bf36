"""What the gates of radius-adaptive layers do on a data set: how much of each map is closed, half open and open.

As in figures 8 and 9 of Rakhshanfar's thesis: shares of alpha = 0, 0 < alpha < 1 and alpha = 1, and maps of alpha.
"""

from __future__ import annotations

import io as streams
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from perfonnx.data.inputs import Feed
from perfonnx.errors import PerfonnxError
from perfonnx.model import files
from perfonnx.model.atomic import write_atomically
from perfonnx.model.files import ModelSource, take_in_data
from perfonnx.model.layers import constant_input, input_of, own_nodes
from perfonnx.model.workspace import Workspace
from perfonnx.names import shortened
from perfonnx.ops.common import ConvAttributes, conv_attributes
from perfonnx.ops.radius_adaptive_conv import CENTRE, RADIUS_ADAPTIVE_CONV, under_centre
from perfonnx.ops.rows import virtual_map
from perfonnx.ops.sampled_radius_adaptive_conv import SAMPLED_RADIUS_ADAPTIVE_CONV
from perfonnx.running.opened import open_model

_CELL = 224
"""Largest height and width of a map in a picture, in pixels."""
_GAP = 2


@dataclass(frozen=True)
class LayerAlphas:
    """The shares of one layer's positions, over all samples.

    Attributes:
        layer: Its name.
        output_shape: (OH, OW).
        zero: Share with alpha = 0: the ring is left out.
        between: Share with 0 < alpha < 1.
        one: Share with alpha = 1.
    """

    layer: str
    output_shape: tuple[int, int]
    zero: float
    between: float
    one: float


@dataclass(frozen=True)
class Alphas:
    """What the gates of a model do.

    Attributes:
        model: Its name.
        samples: How many there were.
        layers: In the graph's order.
        maps: alpha of the first samples by layer, float32 [n, OH, OW].
    """

    model: str
    samples: int
    layers: list[LayerAlphas]
    maps: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain data, without the maps."""
        return {"model": self.model, "samples": self.samples, "layers": [asdict(layer) for layer in self.layers]}


def alphas(
    model: ModelSource,
    batches: Iterable[Feed],
    *,
    keep: int = 0,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Alphas:
    """Measure alpha of all radius-adaptive layers, on maps or on rows.

    Args:
        model: A model with such layers.
        batches: Inputs by name.
        keep: Of so many samples the maps of alpha are kept.
        threads: Intra-op threads; None leaves onnxruntime's choice.
        progress: Called with the number of samples done, after each batch.

    Raises:
        PerfonnxError: There is no such layer, its gate is not constant, there are no samples, or the model cannot run.
    """
    loaded = files.load(model)
    take_in_data(loaded)
    workspace = Workspace.open(loaded)
    gates = [_Gate.of(workspace, node) for node in own_nodes(workspace) if node.op in _OPERATORS]
    if not gates:
        raise PerfonnxError(
            f"{loaded.name}: has no radius-adaptive layer; perfonnx rewrite --method radius-adaptive makes some"
        )
    present = {value.name for value in (*loaded.proto.graph.input, *loaded.proto.graph.output)}
    for name in dict.fromkeys(gate.x for gate in gates):
        if name not in present:
            loaded.proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    opened = open_model(loaded, threads=threads)
    samples = 0
    for batch in batches:
        feed = opened.adapt(batch)
        values = {**feed, **opened.run(feed)}
        found = [gate.add(values[gate.x], max(keep - samples, 0)) for gate in gates]
        samples += found[0]
        if progress is not None:
            progress(samples)
    if not samples:
        raise PerfonnxError(f"{loaded.name}: there are no samples to measure alpha on")
    maps = {gate.layer: np.concatenate(gate.kept) for gate in gates if gate.kept}
    return Alphas(loaded.name, samples, [gate.shares() for gate in gates], maps)


_OPERATORS = (RADIUS_ADAPTIVE_CONV.name, SAMPLED_RADIUS_ADAPTIVE_CONV.name)


@dataclass
class _Gate:
    """One layer: its input, what makes alpha of it, and the counts so far.

    `rows` are in_source, in_shape and sites of a layer on rows.
    """

    layer: str
    x: str
    weight: NDArray[np.float32]
    bias: float
    attributes: ConvAttributes
    rows: tuple[NDArray[Any], NDArray[Any], NDArray[Any]] | None = None
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, np.int64))
    output_shape: tuple[int, int] = (0, 0)
    kept: list[NDArray[np.float32]] = field(default_factory=list)

    @classmethod
    def of(cls, workspace: Workspace, node: gs.Node) -> _Gate:
        def constant(name: str) -> NDArray[Any]:
            values = constant_input(workspace, node, name)
            if values is None:
                raise PerfonnxError(f"layer {node.name!r}: its {name} is not constant")
            return values

        on_rows = node.op == SAMPLED_RADIUS_ADAPTIVE_CONV.name
        return cls(
            node.name or node.outputs[0].name,
            node.inputs[0].name,
            constant("W_alpha").reshape(-1).astype(np.float32),
            float(constant("B_alpha").reshape(())) if input_of(node, "B_alpha") is not None else 0.0,
            conv_attributes(CENTRE, node.attrs),
            (constant("in_source"), constant("in_shape"), constant("sites")) if on_rows else None,
        )

    def add(self, x: NDArray[Any], keep: int) -> int:
        """Count a batch, keep the maps of its first `keep` samples, and give the number of samples."""
        if self.rows is not None:
            x = virtual_map(x, *self.rows[:2])
        pixels = under_centre(x.astype(np.float32), self.attributes)
        alpha = np.clip(np.tensordot(pixels, self.weight, (1, 0)) + np.float32(self.bias), 0, 1)
        self.output_shape = (int(alpha.shape[1]), int(alpha.shape[2]))
        flat = alpha.reshape(len(alpha), -1)
        if self.rows is not None:
            flat = flat[:, self.rows[2]]
        zero, one = np.count_nonzero(flat == 0), np.count_nonzero(flat == 1)
        self.counts += (zero, flat.size - zero - one, one)
        if keep:
            self.kept.append(alpha[:keep])
        return len(alpha)

    def shares(self) -> LayerAlphas:
        """The shares of what was counted."""
        zero, between, one = (float(share) for share in self.counts / max(self.counts.sum(), 1))
        return LayerAlphas(self.layer, self.output_shape, zero, between, one)


def render_alphas(result: Alphas) -> RenderableType:
    """The table of shares."""
    table = Table(title=Text(f"{result.model}: alpha on {result.samples} samples"), title_justify="left")
    table.add_column("layer", overflow="fold")
    for name in ("output", "alpha = 0", "0 < alpha < 1", "alpha = 1"):
        table.add_column(name, justify="right")
    for layer in result.layers:
        shares = (f"{share:.1%}" for share in (layer.zero, layer.between, layer.one))
        table.add_row(Text(shortened(layer.layer)), f"{layer.output_shape[0]}x{layer.output_shape[1]}", *shares)
    return table


def save_picture(result: Alphas, path: str | os.PathLike[str]) -> None:
    """Write the maps that were kept as one PNG: a line per sample, a column per layer, white where alpha is 1.

    Raises:
        PerfonnxError: No maps were kept, Pillow is missing, or the file cannot be written.
    """
    if not result.maps:
        raise PerfonnxError(f"{os.fspath(path)}: no maps of alpha were kept")
    try:
        from PIL import Image
    except ImportError as error:
        raise PerfonnxError("a picture of alpha needs Pillow: pip install pillow") from error
    largest = [max(maps.shape[axis] for maps in result.maps.values()) for axis in (1, 2)]
    scale = min(1.0, _CELL / max(largest))
    height, width = (max(1, round(size * scale)) for size in largest)
    lines = len(next(iter(result.maps.values())))
    size = (len(result.maps) * (width + _GAP) - _GAP, lines * (height + _GAP) - _GAP)
    picture = Image.new("L", size, 128)
    for column, maps in enumerate(result.maps.values()):
        for line, alpha in enumerate(maps):
            cell = Image.fromarray(np.rint(alpha * 255).astype(np.uint8)).resize(
                (width, height), Image.Resampling.NEAREST
            )
            picture.paste(cell, (column * (width + _GAP), line * (height + _GAP)))
    content = streams.BytesIO()
    picture.save(content, "PNG")
    write_atomically(path, content.getvalue())
