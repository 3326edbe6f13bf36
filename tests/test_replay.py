"""A network run piece by piece."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

import perfonnx
from perfonnx.model.files import load
from perfonnx.replay import Replay
from tests.passes import nets
from tests.passes.nets import node


@pytest.mark.parametrize("channels", [8, 16])
def test_layers_may_share_constants_of_float16(channels: int) -> None:
    """Of zeros, as layers without a bias do before they are fitted: onnxruntime would cast them at run time."""
    weights = {f"w{i}": nets.values(channels, channels, 3, 3, seed=i, dtype=np.float16) for i in range(2)}
    nodes = [
        node("Relu", ["x"], ["r"]),
        nets.conv("r", "a", "w0", name="c0"),
        node("Add", ["a", "x"], ["s"]),
        nets.conv("s", "b", "w1", name="c1"),
        node("Add", ["b", "s"], ["y"]),
    ]
    shape = ("N", channels, 12, 10)
    model = nets.model(nodes, weights, inputs={"x": shape}, dtype=TensorProto.FLOAT16, opset=13)
    proto = perfonnx.rewrite(model, rate=0.5, only=".", layout="nchw").proto
    (wanted,) = perfonnx.session(proto).run(None, feed := nets.feed(2, channels, 12, 10, dtype=np.float16))
    first, second = nets.ours(proto)
    second.input[2] = first.input[2]
    replay = Replay(load(proto), lambda: list(proto.graph.node), {}, [feed], 1 << 20)
    (found,) = replay.ask(["y"], settled=["y"], later=[])
    np.testing.assert_allclose(found["y"], wanted, atol=1e-2 * np.abs(wanted).max())
