"""Lowering to rows changes where values are kept, never what they are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper

import perfonnx
from perfonnx.passes import weigh
from perfonnx.passes.estimates import KINDS, Costs, Price
from perfonnx.rewriting import LAYOUTS
from tests.passes import nets

HEAD = '<ir_version: 8, opset_import: ["" : {opset}]>\ng (float[N,4,12,10] x) => ({outputs})\n'


CONSTANTS = {
    "crop_from": np.array([1, 1]),
    "crop_to": np.array([-1, -1]),
    "crop_axes": np.array([2, 3]),
    "flat_shape": np.array([-1, 960]),
    "factors": np.array([1, 1, 2, 3], np.float32),
    "around": np.array([0, 0, 1, 0, 0, 0, 1, 2]),
}


def network(body: str, weights: dict[str, tuple[int, ...]], outputs: str, opset: int = 13) -> onnx.ModelProto:
    """A network in onnx's text form, with seeded weights."""
    text = HEAD.format(opset=opset, outputs=outputs) + "{\n" + body + "\n}"
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in weights.items():
        values = rng.standard_normal(shape) / np.sqrt(max(1, int(np.prod(shape[1:]))))
        values = abs(values) if name.endswith("v") else values  # variances
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    read = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in CONSTANTS.items() if n in read)
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{index}"
    onnx.checker.check_model(model, full_check=True)
    return model


CHAIN = """
  a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w1, b1)
  ar = Relu(a)
  b = Conv<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,1]>(ar, w2)
  br = LeakyRelu<alpha=0.2>(b)
  p = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[0,1,1,0], ceil_mode=1>(br)
  c = Conv<kernel_shape=[1,1]>(p, w3)
  y = Conv<kernel_shape=[3,2], pads=[1,0,1,1]>(c, w4, b4)
"""
RESIDUAL = """
  a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w1, b1)
  ar = Relu(a)
  b = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(ar, w2)
  br = Relu(b)
  c = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(br, w5)
  s = Add(c, ar)
  sr = Relu(s)
  d = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(sr, w6)
  t = Sum(d, sr, ar)
  g = GlobalAveragePool(t)
  y = Flatten(g)
"""
FIRE = """
  a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w1, b1)
  ar = Relu(a)
  q = Conv<kernel_shape=[1,1]>(ar, w7)
  qr = Relu(q)
  e1 = Conv<kernel_shape=[1,1]>(qr, w8)
  e3 = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(qr, w9)
  k = Concat<axis=1>(e1, e3)
  kr = Relu(k)
  m = AveragePool<kernel_shape=[2,2], strides=[2,2]>(kr)
  y = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(m, w10)
"""
BRANCHES = """
  a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w1, b1)
  ar = Relu(a)
  v = Softmax<axis=1>(ar)
  u = Tanh(ar)
  b = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(u, w2)
  z = Sigmoid(b)
  y = Mul(z, v)
"""
GROUPS = """
  a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w1, b1)
  b = Conv<kernel_shape=[3,3], pads=[2,2,2,2], dilations=[2,2], group=4>(a, w11)
  c = Conv<kernel_shape=[3,3], pads=[1,1,1,1], group=8>(b, w12)
  y = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(c, w6)
"""
BOTTLENECK = """
  a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w1, b1)
  an = BatchNormalization(a, w12v, b1, b1, w12v)
  ar = Relu(an)
  q = Conv<kernel_shape=[1,1]>(ar, w7)
  qn = BatchNormalization(q, w13v, w13v, w13v, w13v)
  qr = Relu(qn)
  e = Conv<kernel_shape=[1,1], strides=[2,2]>(ar, w7)
  f = MaxPool<kernel_shape=[2,2], strides=[2,2]>(qr)
  s = Add(e, f)
  y = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(s, w9)
"""
MOVES = """
  a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w1, b1)
  ar = Relu(a)
  b = Conv<kernel_shape=[3,3]>(ar, w2)
  cropped = Slice(ar, crop_from, crop_to, crop_axes)
  s = Add(b, cropped)
  c = Conv<kernel_shape=[3,3], strides=[2,2]>(s, w5)
  up = Resize<mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric">(c, , factors)
  padded = Pad<mode="reflect">(up, around)
  d = Conv<kernel_shape=[3,3]>(padded, w6)
  y = Relu(d)
"""
NORMALIZED = """
  a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w1, b1)
  al = LRN<size=5, alpha=0.7, beta=0.75, bias=2.0>(a)
  b = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(al, w2)
  bl = LRN<size=3, alpha=0.5, beta=0.6>(b)
  c = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(bl, w5)
  cn = InstanceNormalization<epsilon=0.01>(c, w12v, b1)
  cr = Relu(cn)
  y = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(cr, w6)
"""
READ_BESIDE_A_COPY = """
  a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w1, b1)
  up = Resize<mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric">(a, , factors)
  ur = Relu(up)
  b = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(ur, w2)
  c = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(b, w5)
  cropped = Slice(c, crop_from, crop_to, crop_axes)
  d = Conv<kernel_shape=[3,3]>(c, w6)
  s = Add(cropped, d)
  y = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(s, w2)
  z = Tanh(a)
"""
HEAD_OF_CLASSIFIER = """
  a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w1, b1)
  ar = Relu(a)
  b = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(ar, w2)
  br = Relu(b)
  f = {flatten}
  y = {gemm}
"""
WEIGHTS = {
    "w12v": (8,),
    "w13v": (4,),
    "w1": (8, 4, 3, 3),
    "b1": (8,),
    "w2": (8, 8, 3, 3),
    "w3": (6, 8, 1, 1),
    "w4": (5, 6, 3, 2),
    "b4": (5,),
    "w5": (8, 8, 3, 3),
    "w6": (8, 8, 3, 3),
    "w7": (4, 8, 1, 1),
    "w8": (6, 4, 1, 1),
    "w9": (7, 4, 3, 3),
    "w10": (3, 13, 3, 3),
    "w11": (8, 2, 3, 3),
    "w12": (8, 1, 3, 3),
}
NETWORKS = {
    "chain": (CHAIN, "float[N,5,oh,ow] y"),
    "residual": (RESIDUAL, "float[N,8] y"),
    "fire": (FIRE, "float[N,3,6,5] y"),
    "branches": (BRANCHES, "float[N,8,12,10] y, float[N,8,12,10] ar"),
    "bottleneck": (BOTTLENECK, "float[N,7,6,5] y"),
    "moves": (MOVES, "float[N,8,8,9] y"),
    "normalized": (NORMALIZED, "float[N,8,12,10] y"),
    "groups": (GROUPS, "float[N,8,12,10] y"),
    "copied": (READ_BESIDE_A_COPY, "float[N,8,22,28] y, float[N,8,12,10] z"),
}


def build(name: str, opset: int = 13) -> onnx.ModelProto:
    body, outputs = NETWORKS[name]
    used = {w: shape for w, shape in WEIGHTS.items() if f"{w})" in body or f"{w}," in body}
    return network(body, used, outputs, opset)


def outputs_of(model: onnx.ModelProto, *, library: bool, batch: int = 2) -> list[np.ndarray]:
    x = np.random.default_rng(1).standard_normal((batch, 4, 12, 10)).astype(np.float32)
    return perfonnx.session(model, library=library, threads=2).run(None, {"x": x})


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


CHOICES = [
    {"rate": 0.0},
    {"rate": 0.5},
    {"rate": 0.75, "mask": "uniform"},
    {"rate": 0.5, "mask": "uniform", "interpolation": "zero"},
    {"rate": 0.5, "method": "sparse"},
    {"rate": 0.5, "interpolation": "barycentric"},
    {"method": "radius-adaptive"},
]


@pytest.mark.parametrize("choices", CHOICES, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_both_layouts_agree(name: str, choices: dict[str, object]) -> None:
    model = build(name)
    maps, rows = (perfonnx.rewrite(model, layout=layout, only=[""], **choices) for layout in LAYOUTS[::-1])
    onnx.checker.check_model(rows.proto, full_check=True)
    expected = outputs_of(maps.proto, library=False)
    for library in (False, True):
        for batch in (2, 0):
            actual = outputs_of(rows.proto, library=library, batch=batch)
            for a, e in zip(actual, expected, strict=True):
                assert a.shape[1:] == e.shape[1:]
                if batch:
                    np.testing.assert_allclose(a, e, rtol=0, atol=2e-5 * max(1.0, float(np.abs(e).max())))
    assert [layer.name for layer in rows.report.layers] == [layer.name for layer in maps.report.layers]


def in_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network in float16."""
    half = onnx.ModelProto()
    half.CopyFrom(model)
    for tensor in half.graph.initializer:
        if tensor.name in CONSTANTS:  # whole numbers, and factors that Resize wants in float32
            continue
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for info in (*half.graph.input, *half.graph.output):
        info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    return half


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("name", NETWORKS)
def test_float16_in_both_layouts(name: str, opset: int) -> None:
    """Operators and function bodies round every result to float16, onnxruntime's own in a chain only the last one."""
    model = in_half(build(name, opset))
    x = np.random.default_rng(1).standard_normal((2, 4, 12, 10)).astype(np.float16)
    maps, rows = (perfonnx.rewrite(model, layout=layout, rate=0.5, only=[""]) for layout in LAYOUTS[::-1])
    assert operators(rows.proto)["SampledConv"] > 1
    onnx.checker.check_model(rows.proto, full_check=True)
    expected = perfonnx.session(maps.proto, library=False).run(None, {"x": x})
    for library in (False, True):
        for a, e in zip(perfonnx.session(rows.proto, library=library).run(None, {"x": x}), expected, strict=True):
            assert a.dtype == np.float16
            np.testing.assert_allclose(a.astype(float), e.astype(float), rtol=0, atol=6e-3)


@pytest.mark.parametrize("interpolation", ["nearest", "zero"])
@pytest.mark.parametrize("gemm", ["Gemm(f, k, kb)", "Gemm<transB=1, alpha=0.5>(f, kt, kb)", "MatMul(f, k)"])
@pytest.mark.parametrize("flatten", ["Flatten(br)", "Reshape(br, flat_shape)"])
def test_positions_of_one_row_share_the_weights_of_a_gemm(flatten: str, gemm: str, interpolation: str) -> None:
    body = HEAD_OF_CLASSIFIER.format(flatten=flatten, gemm=gemm)
    shapes = {"w1": (8, 4, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "k": (960, 5), "kt": (5, 960), "kb": (5,)}
    used = {name: shape for name, shape in shapes.items() if f"{name})" in body or f"{name}," in body}
    model = network(body, used, "float[N,5] y")
    maps, rows = (
        perfonnx.rewrite(model, layout=layout, rate=0.75, interpolation=interpolation) for layout in LAYOUTS[::-1]
    )
    assert operators(rows.proto)["ExpandRows"] == 0
    smaller = [t for t in rows.proto.graph.initializer if t.name.endswith(".summed")]
    assert np.prod(smaller[0].dims) == 30 * 8 * 5
    for library in (False, True):
        actual, expected = outputs_of(rows.proto, library=library), outputs_of(maps.proto, library=False)
        np.testing.assert_allclose(actual[0], expected[0], rtol=0, atol=2e-5)


def test_a_chain_is_turned_to_rows_once_and_back_once() -> None:
    found = operators(perfonnx.rewrite(build("chain"), layout="rows", rate=0.5, only=[""]).proto)
    assert found == {"Compact": 1, "SampledConv": 4, "SampledMaxPool": 1, "ExpandRows": 1}


def test_a_dense_layer_between_sampled_ones_joins() -> None:
    result = perfonnx.rewrite(build("chain"), layout="rows", rate=0.5, only=["Conv_0", "Conv_2", "Conv_6"])
    assert operators(result.proto) == {"Compact": 1, "SampledConv": 4, "SampledMaxPool": 1, "ExpandRows": 1}
    assert [layer.name for layer in result.report.layers] == ["Conv_0", "Conv_2", "Conv_6"]


@pytest.mark.parametrize("interpolation", ["nearest", "zero"])
def test_a_pointwise_layer_is_computed_once_per_row(interpolation: str) -> None:
    result = perfonnx.rewrite(build("bottleneck"), rate=0.75, only="Conv_0|Conv_9", interpolation=interpolation)
    nodes = {n.name: n for n in result.proto.graph.node}
    constants = {t.name: numpy_helper.to_array(t) for t in result.proto.graph.initializer}
    sampled, pointwise, strided = (constants[nodes[n].input[5]].size for n in ("Conv_0", "Conv_3", "Conv_6"))
    assert operators(result.proto)["BatchNormalization"] == 0
    assert pointwise == sampled + (interpolation == "zero")  # all skipped positions have one value
    saved = sum(layer.multiplies[0] - layer.multiplies[1] for layer in result.report.layers)
    assert strided < 6 * 5  # the last layer skips positions, and what only they would read
    joined = (8 * 4) * (12 * 10 - pointwise + 6 * 5 - strided)
    assert result.report.multiplies[0] - result.report.multiplies[1] == saved + joined


@pytest.mark.parametrize(
    ("name", "gone"), [("moves", ["Slice", "Pad", "Resize"]), ("normalized", ["LRN", "InstanceNormalization"])]
)
def test_nodes_that_cut_no_region(name: str, gone: list[str]) -> None:
    result = operators(perfonnx.rewrite(build(name), rate=0.5).proto)
    assert not set(gone) & set(result)
    assert result["Compact"] == result["ExpandRows"] == 1


def test_a_residual_of_other_sites_is_added_by_the_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row of the dense branch lies beside one row of the sampled one, not the other way round."""
    body = """
      a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w1)
      b = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(a, w2)
      c = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(a, w5)
      s = Add(b, c)
      y = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(s, w6)
    """
    monkeypatch.setattr(
        weigh, "DEFAULT_COSTS", Costs(compact=1e5, expand=1e5, canonical=1e6)
    )  # so that the dense branch joins
    model = network(body, {w: WEIGHTS[w] for w in ("w1", "w2", "w5", "w6")}, "float[N,8,12,10] y")
    result = perfonnx.rewrite(model, rate=0.5, only="Conv_[014]").proto
    assert not {"Add", "Gather"} & set(operators(result))
    np.testing.assert_allclose(
        outputs_of(result, library=True)[0],
        outputs_of(perfonnx.rewrite(model, rate=0.5, only="Conv_[014]", layout="nchw").proto, library=True)[0],
        rtol=1e-5,
        atol=1e-5,
    )


def test_radius_adaptive_layers_exchange_rows_with_dense_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = dict.fromkeys(KINDS, Price(1e4))  # layers this small would be left on maps
    dear = Costs(dense=slow, compact=1e5, expand=1e5, canonical=1e6)
    monkeypatch.setattr(weigh, "DEFAULT_COSTS", dear)
    result = perfonnx.rewrite(build("chain"), layout="rows", method="radius-adaptive", only=["Conv_0", "Conv_2"])
    found = operators(result.proto)
    assert found["Compact"] == found["ExpandRows"] == 1
    assert found["SampledRadiusAdaptiveConv"] == 2
    result = perfonnx.rewrite(build("residual"), layout="rows", method="radius-adaptive", only=["Conv_0", "Conv_7"])
    found = operators(result.proto)
    assert found["SampledRadiusAdaptiveConv"] == found["SampledConv"] == 2  # the dense ones in between
    assert [layer.name for layer in result.report.layers] == ["Conv_0", "Conv_7"]


def with_gates(model: onnx.ModelProto, layers: dict[str, float]) -> onnx.ModelProto:
    """The model with gates that open and close with the pixels, as if they had been trained."""
    changed, rng = onnx.ModelProto(), np.random.default_rng(5)
    changed.CopyFrom(model)
    shapes = {t.name: t.dims for t in changed.graph.initializer}
    for node in changed.graph.node:
        if node.name in layers:
            assert "RadiusAdaptive" in node.op_type
            values = {
                "gate": rng.standard_normal(shapes[node.input[3]]),
                "opening": np.full(1, layers[node.name]),
                "ring_bias": rng.standard_normal(shapes[node.input[5]]),
            }
            for position, (kind, value) in enumerate(values.items(), 3):
                name = f"{node.name}.{kind}"
                changed.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
                node.input[position] = name
    return changed


@pytest.mark.parametrize("gain", [0.0, 1.0])
@pytest.mark.parametrize("name", ["chain", "residual", "fire", "groups"])
def test_both_layouts_agree_whatever_the_gates(name: str, gain: float) -> None:
    maps, rows = (
        perfonnx.rewrite(build(name), layout=layout, method="radius-adaptive", center_gain=gain, only=[""])
        for layout in LAYOUTS[::-1]
    )
    layers = {layer.name: 0.3 * (i % 3) - 0.3 for i, layer in enumerate(maps.report.layers)}
    assert len(layers) > 1
    expected = outputs_of(with_gates(maps.proto, layers), library=False)
    for library in (False, True):
        for proto in (rows.proto, maps.proto):
            actual = outputs_of(with_gates(proto, layers), library=library)
            for a, e in zip(actual, expected, strict=True):
                np.testing.assert_allclose(a, e, rtol=0, atol=2e-5 * max(1.0, float(np.abs(e).max())))


def test_radius_adaptive_layers_read_through_a_perforated_one() -> None:
    layers = {
        "Conv_0": perfonnx.Perforate(0.6, "uniform"),
        "Conv_2": perfonnx.RadiusAdaptive(),
    }
    maps, rows = (
        perfonnx.rewrite(build("residual"), layout=layout, plan=perfonnx.Plan(layers)) for layout in LAYOUTS[::-1]
    )
    (adaptive,) = (n for n in rows.proto.graph.node if n.op_type == "SampledRadiusAdaptiveConv")
    (source,) = (t for t in rows.proto.graph.initializer if t.name == adaptive.input[6])
    assert numpy_helper.to_array(source).max() == 48 - 1
    for library in (False, True):
        actual, expected = outputs_of(rows.proto, library=library), outputs_of(maps.proto, library=False)
        np.testing.assert_allclose(actual[0], expected[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("wrong", [10_000, -2])
def test_a_table_that_fits_no_map_is_left_to_the_kernel(wrong: int) -> None:
    maps = perfonnx.rewrite(build("chain"), layout="nchw", rate=0.5, only=["Conv_0", "Conv_2"]).proto
    node = next(n for n in maps.graph.node if n.name == "Conv_2")
    tensor = next(t for t in maps.graph.initializer if t.name == node.input[4])
    source = numpy_helper.to_array(tensor).copy()
    source[5] = wrong
    tensor.CopyFrom(numpy_helper.from_array(source, tensor.name))
    again = perfonnx.rewrite(maps, layout="rows", rate=0.5, only=["Conv_6"]).proto
    assert operators(again)["PerforatedConv"] >= 1
    with pytest.raises(perfonnx.PerfonnxError, match=r"Conv_2.*'source': \[5, 0\]"):
        perfonnx.session(again)


def test_optional_inputs_that_a_model_omits_are_written_for_the_function_bodies() -> None:
    """A radius-adaptive model from elsewhere may leave out the biases."""
    maps = perfonnx.rewrite(build("chain"), layout="nchw", method="radius-adaptive", only=["Conv_0", "Conv_2"]).proto
    for node in maps.graph.node:
        if node.op_type == "RadiusAdaptiveConv":
            del node.input[5:]
            node.input[2] = node.input[4] = ""
            node.input[4:] = []
    again = perfonnx.rewrite(maps, layout="rows", rate=0.5, only=["Conv_6"], interpolation="nearest").proto
    assert operators(again)["SampledRadiusAdaptiveConv"] == 2
    by_kernel, by_function = (outputs_of(again, library=library)[0] for library in (True, False))
    np.testing.assert_allclose(by_kernel, by_function, rtol=0, atol=1e-5)


def test_a_sampled_layer_alone_stays_canonical() -> None:
    result = perfonnx.rewrite(build("groups"), layout="rows", rate=0.5, only=["Conv_3"])
    assert operators(result.proto) == {"Conv": 3, "PerforatedConv": 1}


def test_a_map_is_written_once_for_all_that_read_it() -> None:
    result = perfonnx.rewrite(build("branches"), layout="rows", rate=0.5)
    found = operators(result.proto)
    assert found["ExpandRows"] == 2  # the first layer's, for Softmax and the graph output, and the last one's
    assert found["SampledConv"] == 2


def test_equal_samplings_are_added_without_a_gather(tmp_path: Path) -> None:
    mask = np.zeros((12, 10), bool)
    mask[::2, ::2] = True
    np.save(tmp_path / "mask.npy", mask)
    choices = {"layout": "rows", "mask": str(tmp_path / "mask.npy"), "only": [""]}
    found = operators(perfonnx.rewrite(build("residual"), **choices).proto)
    assert found["Gather"] == 0
    assert found["Add"] == 0  # done by the convolution before
    assert found["SampledAveragePool"] == 1


def test_unequal_samplings_are_added_on_their_refinement() -> None:
    names = ["Conv_0", "Conv_2", "Conv_4", "Conv_7"]
    masks = ["uniform", "grid", "grid", "uniform"]
    layers = {n: perfonnx.Perforate(0.6, m) for n, m in zip(names, masks, strict=True)}
    maps, rows = (
        perfonnx.rewrite(build("residual"), layout=layout, plan=perfonnx.Plan(layers)) for layout in LAYOUTS[::-1]
    )
    assert operators(rows.proto)["Gather"] >= 2
    for library in (False, True):
        actual, expected = outputs_of(rows.proto, library=library), outputs_of(maps.proto, library=False)
        np.testing.assert_allclose(actual[0], expected[0], rtol=0, atol=1e-5)


def test_lowering_is_idempotent() -> None:
    once = perfonnx.rewrite(build("fire"), layout="rows", rate=0.5)
    twice = perfonnx.rewrite(once.proto, layout="rows", rate=0.5)
    assert twice.to_bytes() == once.to_bytes()
    assert {s.reason for s in twice.report.skips} == {"already rewritten"}
    assert twice.report.multiplies[0] == once.report.multiplies[1]


@pytest.mark.parametrize("opset", [8, 9, 10, 11, 12, 15, 18])
def test_every_opset(opset: int) -> None:
    """With pools that opset 8 has, too."""
    body, outputs = NETWORKS["fire"]
    used = {w: shape for w, shape in WEIGHTS.items() if f"{w})" in body or f"{w}," in body}
    model = network(body, used, outputs, opset)
    maps, rows = (perfonnx.rewrite(model, layout=layout, rate=0.5) for layout in LAYOUTS[::-1])
    assert operators(rows.proto)["SampledAveragePool"] == 1
    for a, e in zip(outputs_of(rows.proto, library=False), outputs_of(maps.proto, library=False), strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=2e-5)


@pytest.mark.parametrize("batch", ["2", "N"])
@pytest.mark.parametrize("opset", [8, 12, 13, 18])
def test_normalizations_at_every_opset(opset: int, batch: str) -> None:
    body, outputs = NETWORKS["normalized"]
    used = {w: shape for w, shape in WEIGHTS.items() if f"{w})" in body or f"{w}," in body}
    model = network(body, used, outputs, opset)
    for info in (*model.graph.input, *model.graph.output):
        if batch.isdigit():
            info.type.tensor_type.shape.dim[0].dim_value = int(batch)
    maps, rows = (perfonnx.rewrite(model, layout=layout, rate=0.5) for layout in LAYOUTS[::-1])
    assert operators(rows.proto)["InstanceNormalization"] == 0
    for a, e in zip(outputs_of(rows.proto, library=False), outputs_of(maps.proto, library=False), strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=2e-5)


def normalizing(size: int, dtype: type[np.floating]) -> onnx.ModelProto:
    """InstanceNormalization of the input, between two 1x1 convolutions that change nothing."""
    one = np.eye(4, dtype=dtype).reshape(4, 4, 1, 1)
    same = {"kernel_shape": [1, 1], "pads": [0] * 4}
    nodes = [
        nets.conv("x", "a", "w", name="before", **same),
        nets.node("InstanceNormalization", ["a", "scale", "bias"], ["n"], epsilon=1e-5),
        nets.conv("n", "y", "w", name="behind", **same),
    ]
    constants = {"w": one, "scale": np.full(4, 0.5, dtype), "bias": np.full(4, 2, dtype)}
    elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return nets.model(nodes, constants, inputs={"x": (1, 4, size, size)}, dtype=elem_type)


@pytest.mark.parametrize(
    ("dtype", "size", "spread", "tolerance"), [(np.float32, 256, 0.05, 3e-6), (np.float16, 32, 500, 2e-3)]
)
def test_normalizations_on_rows_are_exact(
    monkeypatch: pytest.MonkeyPatch, dtype: type[np.floating], size: int, spread: float, tolerance: float
) -> None:
    """For values far from zero and close to each other; in float16 squares would be infinite."""
    slow = dict.fromkeys(KINDS, Price(1e4))  # layers this small would be left on maps
    monkeypatch.setattr(weigh, "DEFAULT_COSTS", Costs(slow, compact=1e5, expand=1e5, canonical=1e6))
    result = perfonnx.rewrite(normalizing(size, dtype), rate=0.0, only=[""]).proto
    assert operators(result)["InstanceNormalization"] == 0
    x = (127 + spread * np.random.default_rng(0).standard_normal((1, 4, size, size))).astype(dtype)
    exact = x.astype(np.float64)
    deviation = np.sqrt(exact.var(axis=(2, 3), keepdims=True) + 1e-5)
    expected = 0.5 * (exact - exact.mean(axis=(2, 3), keepdims=True)) / deviation + 2
    for library in (False, True):
        actual = perfonnx.session(result, library=library).run(None, {"x": x})[0]
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("opset", [7, 17])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    ("shape", "on_rows"),
    [((6, 1, 1), True), ((1, 6, 1, 1), True), ((1, 1, 1), True), ((6,), False), ((1, 6), False), ((6, 6, 1), False)],
)
def test_slopes_per_channel_cut_no_region(
    shape: tuple[int, ...], on_rows: bool, dtype: type[np.floating], opset: int
) -> None:
    """On a map as wide as it has channels, where six slopes in one dimension are one for each column."""
    nodes = [
        nets.conv("x", "a", "w", name="first"),
        nets.node("Abs", ["a"], ["b"]),
        nets.node("PRelu", ["b", "s"], ["c"]),
        nets.node("Neg", ["c"], ["d"]),
        nets.node("PRelu", ["d", "s"], ["e"]),
        nets.conv("e", "y", "w", name="second"),
    ]
    constants = {"w": nets.values(6, 6, 3, 3, dtype=dtype), "s": nets.values(*shape, dtype=dtype)}
    elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    size = (1, 6, 6, 6)
    model = nets.model(nodes, constants, inputs={"x": size}, outputs={"y": size}, opset=opset, dtype=elem_type)
    maps, rows = (perfonnx.rewrite(model, layout=layout, rate=0.5, only=[""]) for layout in LAYOUTS[::-1])
    assert (operators(rows.proto)["Compact"] == 1) == on_rows
    feeds = nets.feed(*size, dtype=dtype)
    expected = perfonnx.session(maps.proto, library=False).run(None, feeds)[0].astype(np.float64)
    for library in (False, True):
        actual = perfonnx.session(rows.proto, library=library).run(None, feeds)[0]
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 if dtype is np.float32 else 6e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("group", [1, 2, 6])
@pytest.mark.parametrize("method", ["perforate", "sparse", "radius-adaptive"])
def test_slopes_per_channel_move_into_layers_on_rows(method: str, group: int, dtype: type[np.floating]) -> None:
    """Behind the layer, and behind the sum that it takes up; the last layer has none."""
    nodes = [
        nets.conv("x", "a", "w", name="first", group=group),
        nets.node("PRelu", ["a", "s"], ["b"]),
        nets.conv("b", "c", "w", name="second", group=group),
        nets.node("Add", ["c", "b"], ["d"]),
        nets.node("PRelu", ["d", "s"], ["e"]),
        nets.conv("e", "y", "w", name="third", group=group),
    ]
    slopes = np.array([0.25, 0, 3, -1.5, 1, -0.5]).reshape(6, 1, 1).astype(dtype)
    constants = {"w": nets.values(6, 6 // group, 3, 3, dtype=dtype), "s": slopes}
    size, elem_type = (1, 6, 7, 9), helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    model = nets.model(nodes, constants, inputs={"x": size}, outputs={"y": size}, dtype=elem_type)
    maps, rows = (
        perfonnx.rewrite(model, layout=layout, method=method, rate=0.5, only=[""]) for layout in LAYOUTS[::-1]
    )
    found = operators(rows.proto)
    assert found["SampledRadiusAdaptiveConv" if method == "radius-adaptive" else "SampledConv"] == 3
    assert found["PRelu"] == (method == "radius-adaptive")  # which takes up no sum
    feeds = nets.feed(*size, dtype=dtype)
    expected = perfonnx.session(maps.proto, library=False).run(None, feeds)[0].astype(np.float64)
    tolerance = (1e-5 if dtype is np.float32 else 2e-3) * np.abs(expected).max()
    for library in (False, True):
        actual = perfonnx.session(rows.proto, library=library).run(None, feeds)[0]
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("rate", [0.0, 0.75])
def test_tables_are_stored_once_and_say_nothing_twice(rate: float) -> None:
    """A chain over one large map: its positions in order, the sites, their rows, and the map at the end."""
    chain = [nets.conv(f"x{i}" if i else "x", f"x{i + 1}", "w", name=f"c{i}") for i in range(4)]
    chain[-1].output[0] = "y"
    model = nets.model(chain, {"w": nets.values(16, 16, 3, 3)}, inputs={"x": (1, 16, 64, 64)})
    result = perfonnx.rewrite(model, rate=rate, only=[""]).proto
    assert operators(result)["SampledConv"] == 4
    tables = [numpy_helper.to_array(t) for t in result.graph.initializer if t.name.startswith("perfonnx.")]
    contents = {(t.shape, t.dtype.str, t.tobytes()) for t in tables}
    assert len(contents) == len(tables)
    assert sum(t.nbytes for t in tables) < 3.5 * 4 * 64 * 64


def test_inspect_knows_rows() -> None:
    result = perfonnx.rewrite(build("chain"), layout="rows", rate=0.5, only=[""])
    found = {conv.name: conv for conv in perfonnx.inspect(result.proto).convs}
    assert found["Conv_0"].op == "SampledConv"
    assert found["Conv_0"].output == (12, 10)
    (conv,) = (node for node in result.proto.graph.node if node.name == "Conv_0")
    sites = nets.constant(result.proto, conv.input[5]).size
    assert sites <= 60
    assert found["Conv_0"].multiplies == 4 * 8 * 9 * sites


@pytest.mark.parametrize(
    ("op", "outputs"),
    [
        ("Dropout", "float[N,8,12,10] y, bool[N,8,12,10] second"),
        ("MaxPool<kernel_shape=[1,1]>", "float[N,8,12,10] y, int64[N,8,12,10] second"),
    ],
)
def test_a_second_output_that_is_asked_for_keeps_its_node(op: str, outputs: str) -> None:
    body = f"""
      a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w1)
      d, second = {op}(a)
      y = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(d, w2)
    """
    model = network(body, {w: WEIGHTS[w] for w in ("w1", "w2")}, outputs)
    maps, rows = (perfonnx.rewrite(model, layout=layout, rate=0.5) for layout in LAYOUTS[::-1])
    for library in (False, True):
        actual, expected = outputs_of(rows.proto, library=library), outputs_of(maps.proto, library=library)
        for a, e in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a, e, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("batches", "sizes"),
    [("N1", (2, 1)), ("1N", (1, 2)), ("NM", (2, 1)), ("NM", (1, 2)), ("??", (2, 1)), ("??", (1, 2)), ("NN", (2, 2))],
)
def test_an_add_may_broadcast_over_the_batch(batches: str, sizes: tuple[int, int]) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 13]>
    g (float[{batches[0]},4,12,10] x, float[{batches[1]},4,12,10] z) => (float[B,8,12,10] y) {{
      a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w1)
      b = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(z, w1)
      s = Add(a, b)
      y = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(s, w2)
    }}"""
    model, rng = onnx.parser.parse_model(text), np.random.default_rng(0)
    for name in ("w1", "w2"):
        values = rng.standard_normal(WEIGHTS[name]).astype(np.float32) / 6
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    feeds = {n: rng.standard_normal((s, 4, 12, 10)).astype(np.float32) for n, s in zip("xz", sizes, strict=True)}
    maps, rows = (perfonnx.rewrite(model, layout=layout, rate=0.5) for layout in LAYOUTS[::-1])
    expected = perfonnx.session(maps.proto, library=False).run(None, feeds)[0]
    for library in (False, True):
        actual = perfonnx.session(rows.proto, library=library).run(None, feeds)[0]
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def test_a_window_larger_than_its_map_is_left_to_onnxruntime() -> None:
    body = """
      a = Conv<kernel_shape=[3,3], strides=[3,3]>(x, w1)
      p = MaxPool<kernel_shape=[3,3], strides=[2,2], dilations=[2,2], auto_pad="VALID", ceil_mode=1>(a)
      y = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(p, w2)
    """
    model = network(body, {w: WEIGHTS[w] for w in ("w1", "w2")}, "float[N,8,oh,ow] y")
    result = perfonnx.rewrite(model, rate=0.5, only=["Conv_0"])
    assert [layer.plan.mask for layer in result.report.layers] == ["grid"]


def test_layers_behind_a_pool_whose_size_is_in_doubt_are_left_alone() -> None:
    """onnx's inference has a row more than onnxruntime computes, where a window starts in the padding behind."""
    body = """
      a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w1)
      p = MaxPool<kernel_shape=[2,2], strides=[2,2], pads=[0,0,1,1], ceil_mode=1>(a)
      y = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(p, w2)
    """
    model = network(body, {w: WEIGHTS[w] for w in ("w1", "w2")}, "float[N,8,oh,ow] y")
    for layout in LAYOUTS:
        result = perfonnx.rewrite(model, layout=layout, rate=0.5, only=[""])
        assert [layer.name for layer in result.report.layers] == ["Conv_0"]
        assert outputs_of(result.proto, library=True)[0].shape == (2, 8, 6, 5)
