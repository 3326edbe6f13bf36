"""Sizes that are given to inputs."""

from __future__ import annotations

import numpy as np
import pytest

from perfonnx import PerfonnxError
from tests.model.chains import chain
from tests.passes import nets


def test_input_shapes() -> None:
    model = chain(inputs={"x": ("N", 3, "H", "W")})
    proto = nets.rewrite(model, input_shapes={"x": ["N", 3, np.int64(12), 10]}, rate=0.5).proto
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == ["N", 3, 12, 10]
    for shapes, match in (
        ({"z": [1]}, r"the model has no such input; its inputs are x"),
        ({"w0": [1]}, r"the model has no such input"),
        ({"x": [1, 3, 12]}, r"has 3 dimensions, the model's input has 4"),
        ({"x": [1, 4, 12, 10]}, r"fixes this dimension at 3, not 4"),
        ({"x": [1, 3, -12, 10]}, r"-12 is no size"),
    ):
        with pytest.raises(PerfonnxError, match=match):
            nets.rewrite(model, input_shapes=shapes)
