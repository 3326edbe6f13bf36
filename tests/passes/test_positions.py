"""What Slice, Pad and Resize do to positions is what onnxruntime makes them do."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper

from perfonnx.model import files
from perfonnx.model.shapes import infer_types
from perfonnx.model.workspace import Workspace
from perfonnx.passes.positions import may_move_positions, moved_positions
from tests.passes import nets

LONG = np.int64
NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_ceil"}

MOVES: dict[str, tuple[str, dict[str, Any], dict[str, np.ndarray], int]] = {
    "crop": (
        "Slice",
        {},
        {"s": np.array([1, 2], LONG), "e": np.array([-1, 99], LONG), "a": np.array([2, 3], LONG)},
        13,
    ),
    "reversed and every second": (
        "Slice",
        {},
        {
            "s": np.array([-1, 0], LONG),
            "e": np.array([-99, 99], LONG),
            "a": np.array([2, 3], LONG),
            "t": np.array([-1, 2], LONG),
        },
        13,
    ),
    "crop of opset 9": ("Slice", {"starts": [1, 1], "ends": [5, 8], "axes": [2, 3]}, {}, 9),
    "zeros around": ("Pad", {}, {"p": np.array([0, 0, 1, 2, 0, 0, 3, 0], LONG)}, 13),
    "reflected": ("Pad", {"mode": "reflect"}, {"p": np.array([0, 0, 2, 1, 0, 0, 0, 3], LONG)}, 13),
    "edge of opset 9": ("Pad", {"mode": "edge", "pads": [0, 0, 2, 1, 0, 0, 0, 3]}, {}, 9),
    "cut off": ("Pad", {}, {"p": np.array([0, 0, -1, 2, 0, 0, 1, -2], LONG)}, 13),
    "twice": ("Resize", NEAREST, {"r": np.array([], np.float32), "f": np.array([1, 1, 2, 2], np.float32)}, 13),
    "by halves": ("Resize", NEAREST, {"r": np.array([], np.float32), "f": np.array([1, 1, 1.5, 0.5], np.float32)}, 13),
    "one position wide": ("Reshape", {}, {"s": np.array([0, 0, -1, 1], LONG)}, 13),
    "of other sides": ("Reshape", {}, {"s": np.array([2, 3, 9, 6], LONG)}, 13),
    "picked": ("Gather", {"axis": 2}, {"i": np.array([4, 0, -1, 4], LONG)}, 13),
    "upsample of opset 9": ("Upsample", {"mode": "nearest"}, {"f": np.array([1, 1, 3, 2], np.float32)}, 9),
}
OTHERS: dict[str, tuple[str, dict[str, Any], dict[str, np.ndarray], int]] = {
    "channels in reverse": (
        "Slice",
        {},
        {"s": np.array([-1], LONG), "e": np.array([-99], LONG), "a": np.array([1], LONG), "t": np.array([-1], LONG)},
        13,
    ),
    "images in reverse": (
        "Slice",
        {},
        {"s": np.array([-1], LONG), "e": np.array([-99], LONG), "a": np.array([0], LONG), "t": np.array([-1], LONG)},
        13,
    ),
    "padded with a half": (
        "Pad",
        {},
        {"p": np.array([0, 0, 1, 2, 0, 0, 3, 0], LONG), "v": np.array(0.5, np.float32)},
        13,
    ),
    "padded with two": ("Pad", {}, {"p": np.array([0, 0, 1, 2, 0, 0, 3, 0], LONG), "v": np.array(2, np.float32)}, 13),
    "channels picked": ("Gather", {"axis": 1}, {"i": np.array([1, 0, 2], LONG)}, 13),
    "channels among positions": ("Reshape", {}, {"s": np.array([2, 6, 3, 9], LONG)}, 13),
    "more channels": ("Pad", {}, {"p": np.array([0, 0, 0, 0, 0, 1, 0, 0], LONG)}, 13),
    "linear": (
        "Resize",
        {"mode": "linear"},
        {"r": np.array([], np.float32), "f": np.array([1, 1, 2, 2], np.float32)},
        13,
    ),
}


def workspace_of(
    case: tuple[str, dict[str, Any], dict[str, np.ndarray], int], shape: tuple[int, ...] = (2, 3, 6, 9)
) -> Workspace:
    op, attributes, constants, opset = case
    node = helper.make_node(op, ["x", *constants], ["y"], **attributes)
    model = nets.model([node], constants, inputs={"x": shape}, opset=opset)
    workspace = Workspace.open(files.load(model))
    infer_types(workspace)
    return workspace


@pytest.mark.parametrize("case", MOVES.values(), ids=MOVES)
def test_the_table_does_what_the_node_does(case: tuple[str, dict[str, Any], dict[str, np.ndarray], int]) -> None:
    workspace = workspace_of(case)
    positions = moved_positions(workspace, workspace.graph.nodes[0])
    assert positions is not None
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 9)).astype(np.float32)
    session = ort.InferenceSession(workspace.proto.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": x})[0]
    with_zero = np.append(x.reshape(2, 3, -1), np.zeros((2, 3, 1), np.float32), axis=2)
    np.testing.assert_array_equal(with_zero[:, :, positions].reshape(expected.shape), expected)


@pytest.mark.parametrize("case", OTHERS.values(), ids=OTHERS)
def test_what_does_more_than_moving_is_not_taken_for_it(
    case: tuple[str, dict[str, Any], dict[str, np.ndarray], int],
) -> None:
    workspace = workspace_of(case)
    assert moved_positions(workspace, workspace.graph.nodes[0]) is None


def test_a_node_that_does_not_run_is_left() -> None:
    workspace = workspace_of(MOVES["crop"])
    workspace.graph.nodes[0].op = "NoSuchOperator"
    assert moved_positions(workspace, workspace.graph.nodes[0]) is None


@pytest.mark.parametrize("fill", [1.0, 2.0, 54.0, -1.0, np.nan])
@pytest.mark.parametrize("op", ["Pad", "Resize"])
def test_a_fill_is_not_taken_for_a_position(op: str, fill: float) -> None:
    """Not for that of number `fill` either, where one image of one channel has nothing else to tell them apart."""
    around: dict[str, tuple[str, dict[str, Any], dict[str, np.ndarray], int]] = {
        "Pad": ("Pad", {}, {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1], LONG), "v": np.array(fill, np.float32)}, 13),
        "Resize": (
            "Resize",
            {"mode": "nearest", "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": fill},
            {
                "r": np.array([0, 0, -0.5, -0.5, 1, 1, 1.5, 1.5], np.float32),
                "f": np.array([], np.float32),
                "s": np.array([1, 1, 12, 18], LONG),
            },
            13,
        ),
    }
    workspace = workspace_of(around[op], (1, 1, 6, 9))
    assert moved_positions(workspace, workspace.graph.nodes[0]) is None


@pytest.mark.parametrize("batch", [2, "N"])
@pytest.mark.parametrize(
    ("op", "attributes", "constants", "opset"),
    [
        ("Resize", NEAREST, {"r": np.array([], np.float32), "s": np.array([2, 3, 12, 9], LONG)}, 12),
        ("Slice", {}, {"s": np.zeros(4, LONG), "e": np.array([2, 3, 5, 5], LONG)}, 12),
        ("Slice", {"starts": [0, 1], "ends": [2, 5], "axes": [0, 2]}, {}, 9),
    ],
)
def test_a_number_of_images_that_is_written_down_is_not_any(
    op: str, attributes: dict[str, Any], constants: dict[str, np.ndarray], opset: int, batch: int | str
) -> None:
    names = list(constants)
    if op == "Resize":
        names = ["r", "r", "s"]
    model = nets.model(
        [helper.make_node(op, ["x", *names], ["y"], **attributes)],
        constants,
        inputs={"x": (batch, 3, 6, 9)},
        opset=opset,
    )
    workspace = Workspace.open(files.load(model))
    infer_types(workspace)
    (node,) = workspace.graph.nodes
    assert (may_move_positions(workspace, node) and moved_positions(workspace, node) is not None) == (batch == 2)
