"""A model's inputs: shapes from models with open dimensions, and every mistake a user can make."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from perfonnx.data.feeds import random_feeds
from perfonnx.data.inputs import InputSpec, input_specs, model_inputs, parse_input_shapes, resolve_shapes
from perfonnx.errors import PerfonnxError
from tests.data.cases import input_of
from tests.passes import nets


class _Value:
    """Like onnxruntime's NodeArg."""

    def __init__(self, name: str, shape: Sequence[int | str | None], type: str) -> None:
        self.name, self.shape, self.type = name, shape, type


def test_parse_input_shapes() -> None:
    parsed = parse_input_shapes(["x:1,3,224,224", "net/input:0:1,8", "n:0"])
    assert parsed == {"x": (1, 3, 224, 224), "net/input:0": (1, 8), "n": (0,)}


@pytest.mark.parametrize("text", ["x", "x:", ":1,2", "x:1,-2", "x:1,,2", "x:1x3", "x:1,a b"])
def test_parse_input_shapes_refuses(text: str) -> None:
    with pytest.raises(PerfonnxError, match="write NAME:1,3,224,224"):
        parse_input_shapes([text])


def test_parse_input_shapes_refuses_a_second_time() -> None:
    with pytest.raises(PerfonnxError, match="'x' is given twice"):
        parse_input_shapes(["x:1", "x:2"])


def test_open_batch_is_one_and_given_shapes_win() -> None:
    specs = [input_of(["N", 3, "H", "W"]), input_of([None, 4], name="y"), input_of([], name="scalar")]
    assert resolve_shapes(specs, {"x": (2, 3, 8, 9)}) == {"x": (2, 3, 8, 9), "y": (1, 4), "scalar": ()}


@pytest.mark.parametrize(
    ("shape", "flag"),
    [
        (["N", 3, "H", "W"], "--input-shape x:1,3,224,224"),
        ([2, 3, 48, None], "--input-shape x:2,3,48,224"),
        ([1, "C", 8, 8], "--input-shape x:1,224,8,8"),
    ],
)
def test_open_dimensions_name_the_flag(shape: list[int | str | None], flag: str) -> None:
    with pytest.raises(PerfonnxError, match=flag):
        random_feeds([input_of(shape)], n=1)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"z": (1, 3)}, "'z': the model's inputs are 'x'"),
        ({"x": (1, 3)}, "x:1,3 contradicts"),
        ({"x": (1, 4, 8, 8)}, "contradicts the model's \\[N, 3, H, W\\]"),
    ],
)
def test_wrong_shapes_are_refused(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(PerfonnxError, match=message):
        random_feeds([input_of(["N", 3, "H", "W"])], n=1, shapes=shapes)


def test_a_name_in_a_shape_keeps_the_dimension_open() -> None:
    assert parse_input_shapes(["x:N,3,?,8"]) == {"x": ("N", 3, "?", 8)}
    specs = [InputSpec("x", ("batch", 3, None, 8), np.dtype(np.float32))]
    with pytest.raises(PerfonnxError, match="open dimensions"):
        resolve_shapes(specs, {"x": ("N", 3, "?", 8)})
    assert resolve_shapes(specs, {"x": ("N", 3, 5, 8)}) == {"x": (1, 3, 5, 8)}


def test_the_flag_that_is_asked_for_is_one_word_of_a_shell() -> None:
    specs = [InputSpec("an image", ("N", 3, "H", "W"), np.dtype(np.float32))]
    with pytest.raises(PerfonnxError, match="add --input-shape 'an image:1,3,224,224'"):
        resolve_shapes(specs, None)


def test_input_specs_reads_types_and_refuses_strings() -> None:
    specs = input_specs([_Value("a", ["N", 3], "tensor(float16)"), _Value("b", [], "tensor(int64)")])
    assert specs == [input_of(["N", 3], np.float16, "a"), input_of([], np.int64, "b")]
    with pytest.raises(PerfonnxError, match=r"input 's' has type tensor\(string\)"):
        input_specs([_Value("s", [1], "tensor(string)")])


def test_inputs_of_a_model() -> None:
    (found,) = model_inputs(nets.single())
    assert found == input_of([1, 3, 12, 10])
    (half,) = model_inputs(nets.followed_by([nets.node("Relu", ["c"], ["y"])], dtype=np.float16))
    assert half.dtype == np.float16
