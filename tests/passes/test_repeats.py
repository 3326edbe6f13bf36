"""How many taps are left behind maps in which positions share rows, and what follows from that."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from perfonnx.masks import MaskRequest, make_mask
from perfonnx.model import files
from perfonnx.model.layers import conv_layers
from perfonnx.model.shapes import infer_types
from perfonnx.model.workspace import Workspace
from perfonnx.passes.estimates import Price
from perfonnx.passes.repeats import taps_left
from perfonnx.sampling import interpolate
from tests.passes import nets
from tests.passes.nets import node
from tests.passes.test_weigh import EVEN, FAIR, chain, rewrite_by

MASKS = {
    "grid": make_mask("grid", MaskRequest((40, 40), 0.75, np.random.default_rng(0))),
    "checkerboard": np.indices((40, 40)).sum(axis=0) % 2 == 0,
    "uniform": make_mask("uniform", MaskRequest((40, 40), 0.75, np.random.default_rng(0))),
}
SLOW_ROWS = replace(FAIR, rows={**EVEN, "full": Price(12.0)}, tiles=Price(1e6))
"""A dense layer of many channels had better stay on maps, unless it has fewer taps on rows."""


@pytest.mark.parametrize(
    ("mask", "interpolation", "sites", "least", "most"),
    [
        ("grid", "nearest", "the same", 0.42, 4 / 9),
        ("grid", "nearest", "all", 4 / 9, 0.49),
        ("grid", "zero", "the same", 1 / 9, 0.12),
        ("checkerboard", "zero", "the same", 0.53, 5 / 9),
        ("checkerboard", "zero", "all", 0.47, 0.51),
        ("uniform", "nearest", "the same", 0.9, 1),
    ],
)
def test_taps_left(mask: str, interpolation: str, sites: str, least: float, most: float) -> None:
    """At borders fewer are left, or plain weights; of a scattered mask only a few sites are alike."""
    workspace = Workspace.open(files.load(chain(16, (3,), size=40)))
    infer_types(workspace)
    (layer,) = conv_layers(workspace)
    sampling = interpolate(MASKS[mask], interpolation)
    found = taps_left(layer, MASKS[mask] if sites == "the same" else None, sampling.source[:, 0])
    assert least <= found + 1e-9
    assert found <= most + 1e-9
    assert taps_left(layer, None, np.arange(1600, dtype=np.int32)) > 0.96


@pytest.mark.parametrize(
    ("options", "joins"),
    [
        ({"mask": "grid"}, True),
        ({"mask": "uniform"}, False),
        ({"mask": "grid", "interpolation": "barycentric"}, False),
        ({"mask": "grid", "largest_tile": 0}, False),
    ],
)
def test_a_dense_layer_joins_rows_where_its_taps_are_merged(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, object], joins: bool
) -> None:
    found = rewrite_by(monkeypatch, SLOW_ROWS, chain(128), rate=0.5, skip="c1", **options)
    assert found["Conv"] == (0 if joins else 1)


def _decoder(factor: int, mode: str = "nearest") -> onnx.ModelProto:
    """A layer c0, Resize, and a layer c1."""
    nodes = [
        nets.conv("x", "a", "v", name="c0"),
        node("Relu", ["a"], ["r"]),
        node("Resize", ["r", "", "by"], ["b"], mode=mode),
        nets.conv("b", "y", "w", name="c1"),
    ]
    weights = {f"{name}": nets.values(128, 128, 3, 3, seed=i) for i, name in enumerate("vw")}
    weights["by"] = np.array([1, 1, factor, factor], np.float32)
    size = 16 * factor
    return nets.model(nodes, weights, inputs={"x": (1, 128, 16, 16)}, outputs={"y": (1, 128, size, size)})


@pytest.mark.parametrize(
    ("factor", "mode", "joins"), [(2, "nearest", True), (1, "nearest", False), (2, "linear", False)]
)
def test_a_dense_layer_joins_rows_behind_a_resize(
    monkeypatch: pytest.MonkeyPatch, factor: int, mode: str, joins: bool
) -> None:
    found = rewrite_by(monkeypatch, SLOW_ROWS, _decoder(factor, mode), only="c0", rate=0.5, mask="uniform")
    assert found["Conv"] == (0 if joins else 1)
