"""What a model says wrongly is refused in one line that names the node and the input."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from perfonnx.errors import PerfonnxError
from perfonnx.runtime import session
from tests.engine.reference import nearest_source
from tests.runtime.nodes import model

MASK = np.zeros((6, 5), bool)
MASK[::2, ::2] = True
W = np.ones((4, 2, 3, 3), np.float32)
ATTRIBUTES: dict[str, Any] = {
    "kernel_shape": [3, 3],
    "strides": [1, 1],
    "pads": [1, 1, 1, 1],
    "dilations": [1, 1],
    "group": 1,
}


def _perforated(**changes: np.ndarray | None) -> dict[str, np.ndarray | None]:
    base: dict[str, np.ndarray | None] = {
        "W": W,
        "B": np.zeros(4, np.float32),
        "mask": MASK,
        "source": nearest_source(MASK),
        "weight": np.ones((30, 1), np.float32),
        "slope": np.ones(4, np.float32),
    }
    return {**base, **changes}


def _sparse(**changes: np.ndarray | None) -> dict[str, np.ndarray | None]:
    base: dict[str, np.ndarray | None] = {"W": W, "B": None, "mask": MASK, "fill": np.zeros(4, np.float32)}
    base["slope"] = np.ones(4, np.float32)
    return {**base, **changes}


def _radius(**changes: np.ndarray | None) -> dict[str, np.ndarray | None]:
    base: dict[str, np.ndarray | None] = {
        "W": W,
        "B": None,
        "W_alpha": np.ones((1, 2, 1, 1), np.float32),
        "B_alpha": np.ones(1, np.float32),
        "B_ring": np.ones(4, np.float32),
        "slope": np.ones(4, np.float32),
    }
    return {**base, **changes}


def _source(value: int) -> np.ndarray:
    source = nearest_source(MASK)
    source[7, 0] = value
    return source


def _weight(value: float) -> np.ndarray:
    weight = np.ones((30, 1), np.float32)
    weight[3, 0] = value
    return weight


REFUSED: dict[str, tuple[str, dict[str, np.ndarray | None], dict[str, Any], str]] = {
    "source too large": ("PerforatedConv", _perforated(source=_source(30)), {}, "source"),
    "source far too large": ("PerforatedConv", _perforated(source=_source(2**31 - 1)), {}, "source"),
    "source below -1": ("PerforatedConv", _perforated(source=_source(-2)), {}, "source"),
    "source is no site": ("PerforatedConv", _perforated(source=_source(1)), {}, "no site"),
    "source too short": ("PerforatedConv", _perforated(source=nearest_source(MASK)[:-1]), {}, "source"),
    "source of rank 1": ("PerforatedConv", _perforated(source=nearest_source(MASK)[:, 0]), {}, "source"),
    "weight is NaN": ("PerforatedConv", _perforated(weight=_weight(np.nan)), {}, "weight"),
    "weight is infinite": ("PerforatedConv", _perforated(weight=_weight(np.inf)), {}, "weight"),
    "weight of another shape": ("PerforatedConv", _perforated(weight=np.ones((30, 2), np.float32)), {}, "weight"),
    "mask of rank 3": ("PerforatedConv", _perforated(mask=MASK[None]), {}, "mask"),
    "mask of another size": ("PerforatedConv", _perforated(mask=MASK[1:]), {}, "source"),
    "W of rank 3": ("PerforatedConv", _perforated(W=W[0]), {}, "'W'"),
    "W empty": ("PerforatedConv", _perforated(W=W[:, :0]), {}, "'W'"),
    "W without outputs": ("PerforatedConv", _perforated(W=W[:0], B=None), {}, "'W'"),
    "B too short": ("PerforatedConv", _perforated(B=np.zeros(3, np.float32)), {}, "'B'"),
    "kernel_shape disagrees": ("PerforatedConv", _perforated(), {"kernel_shape": [3, 2]}, "kernel_shape"),
    "kernel_shape of one": ("PerforatedConv", _perforated(), {"kernel_shape": [3]}, "kernel_shape"),
    "group does not divide": ("PerforatedConv", _perforated(), {"group": 3}, "group"),
    "group is zero": ("PerforatedConv", _perforated(), {"group": 0}, "group"),
    "group is a list": ("PerforatedConv", _perforated(), {"group": [1]}, "group"),
    "stride of zero": ("PerforatedConv", _perforated(), {"strides": [0, 1]}, "strides"),
    "dilation of zero": ("PerforatedConv", _perforated(), {"dilations": [1, 0]}, "dilations"),
    "negative pad": ("PerforatedConv", _perforated(), {"pads": [1, 1, 1, -1]}, "pads"),
    "pads of two": ("PerforatedConv", _perforated(), {"pads": [1, 1]}, "pads"),
    "pads beyond any map": ("PerforatedConv", _perforated(), {"pads": [2**62, 1, 1, 1]}, "pads"),
    "pads of floats": ("PerforatedConv", _perforated(), {"pads": [1.0, 1.0, 1.0, 1.0]}, "pads"),
    "slope is NaN": ("PerforatedConv", _perforated(), {"negative_slope": float("nan")}, "negative_slope"),
    "slopes too few": ("PerforatedConv", _perforated(slope=np.ones(3, np.float32)), {}, "'slope': shape [3]"),
    "one slope": ("PerforatedConv", _perforated(slope=np.ones(1, np.float32)), {}, "'slope': shape [1]"),
    "slopes of rank 3": ("PerforatedConv", _perforated(slope=np.ones((4, 1, 1), np.float32)), {}, "'slope'"),
    "an infinite slope": ("PerforatedConv", _perforated(slope=np.float32([1, 1, 1, np.inf])), {}, "'slope'"),
    "sparse slopes too many": ("SparseConv", _sparse(slope=np.ones(5, np.float32)), {}, "'slope': shape [5]"),
    "radius slopes too many": ("RadiusAdaptiveConv", _radius(slope=np.ones(5, np.float32)), {}, "'slope': shape [5]"),
    "clip is NaN": ("PerforatedConv", _perforated(), {"clip_max": float("nan")}, "clip_max"),
    "clip is an integer": ("PerforatedConv", _perforated(), {"clip_max": 6}, "clip_max"),
    "no such tiles": ("PerforatedConv", _perforated(), {"largest_tile": 3}, "'largest_tile': 3 instead of 0, 2 or 4"),
    "sparse tiles below zero": ("SparseConv", _sparse(), {"largest_tile": -2}, "'largest_tile': -2"),
    "radius tiles of floats": ("RadiusAdaptiveConv", _radius(), {"largest_tile": 2.0}, "'largest_tile': it must be"),
    "fill too long": ("SparseConv", _sparse(fill=np.zeros(5, np.float32)), {}, "fill"),
    "sparse mask of rank 1": ("SparseConv", _sparse(mask=MASK[0]), {}, "mask"),
    "kernel is not 3x3": ("RadiusAdaptiveConv", _radius(W=W[:, :, :1, :1]), {"kernel_shape": [1, 1]}, "3 x 3"),
    "W_alpha too short": ("RadiusAdaptiveConv", _radius(W_alpha=np.ones((1, 1, 1, 1), np.float32)), {}, "W_alpha"),
    "B_alpha too long": ("RadiusAdaptiveConv", _radius(B_alpha=np.ones(2, np.float32)), {}, "B_alpha"),
    "B_ring too short": ("RadiusAdaptiveConv", _radius(B_ring=np.ones(1, np.float32)), {}, "B_ring"),
    "center_gain is infinite": ("RadiusAdaptiveConv", _radius(), {"center_gain": float("inf")}, "center_gain"),
}


def _refusal(candidate: onnx.ModelProto) -> str:
    with pytest.raises(PerfonnxError) as caught:
        session(candidate)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_constants_and_attributes(case: str) -> None:
    op, constants, changes, wanted = REFUSED[case]
    message = _refusal(model(op, constants, name="block3/conv", **{**ATTRIBUTES, **changes}))
    assert f"{op} node 'block3/conv'" in message
    assert wanted in message


@pytest.mark.parametrize("name", ["W", "mask", "source", "weight", "slope"])
def test_constants_that_are_fed_are_refused(name: str) -> None:
    message = _refusal(model("PerforatedConv", _perforated(), graph_inputs=[name], name="fed", **ATTRIBUTES))
    assert "PerforatedConv node 'fed'" in message
    assert f"'{name}'" in message
    assert "constant" in message


def test_node_without_a_name_is_named_by_its_output() -> None:
    message = _refusal(model("PerforatedConv", _perforated(source=_source(99)), name="", **ATTRIBUTES))
    assert "PerforatedConv node" in message
    assert "'Y'" in message


@pytest.mark.parametrize("name", ["mask", "source", "weight", "slope"])
def test_constants_of_another_type_are_refused(name: str) -> None:
    constants = _perforated()
    constants[name] = np.asarray(constants[name]).astype(np.float64)
    assert _refusal(model("PerforatedConv", constants, **ATTRIBUTES))


def test_float16_images_with_float_weights_are_refused() -> None:
    constants = _perforated()
    assert _refusal(model("PerforatedConv", constants, element=onnx.TensorProto.FLOAT16, **ATTRIBUTES))


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((1, 3, 6, 5), "channels"),
        ((1, 2, 7, 5), "7 x 5, but the layer was made for 6 x 5"),
        ((1, 2, 0, 0), "0 x 0"),
        ((2, 6, 5), "shape"),
    ],
)
@pytest.mark.parametrize("op", ["PerforatedConv", "SparseConv"])
def test_images_that_do_not_fit_are_refused_by_name(op: str, shape: tuple[int, ...], wanted: str) -> None:
    constants = _perforated() if op == "PerforatedConv" else _sparse()
    rank = ["a", "b", "c", "d"][: len(shape)]
    running = session(model(op, constants, name="n1", x_shape=rank, **ATTRIBUTES))
    with pytest.raises(Exception, match=wanted) as caught:
        running.run(None, {"X": np.zeros(shape, np.float32)})
    assert f"{op} node 'n1': input 'X'" in str(caught.value)


@pytest.mark.parametrize("shape", [(1, 3, 6, 5), (2, 6, 5)])
def test_radius_adaptive_images_that_do_not_fit(shape: tuple[int, ...]) -> None:
    rank = ["a", "b", "c", "d"][: len(shape)]
    running = session(model("RadiusAdaptiveConv", _radius(), name="n1", x_shape=rank, **ATTRIBUTES))
    with pytest.raises(Exception, match="RadiusAdaptiveConv node 'n1': input 'X'"):
        running.run(None, {"X": np.zeros(shape, np.float32)})


def test_session_goes_on_after_a_refused_run() -> None:
    running = session(model("PerforatedConv", _perforated(), **ATTRIBUTES))
    good = np.ones((1, 2, 6, 5), np.float32)
    before = running.run(None, {"X": good})[0]
    with pytest.raises(Exception, match="channels"):
        running.run(None, {"X": np.ones((1, 3, 6, 5), np.float32)})
    np.testing.assert_array_equal(running.run(None, {"X": good})[0], before)
