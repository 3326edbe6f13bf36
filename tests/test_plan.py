from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto

import perfonnx
from perfonnx import PerfonnxError, Plan, ops
from perfonnx.methods import Chain
from perfonnx.methods.perforate import Perforate
from perfonnx.methods.radius_adaptive import RadiusAdaptive
from perfonnx.methods.sparse import Sparse
from perfonnx.model.atomic import digest
from perfonnx.plan import FILES, LAYOUTS
from perfonnx.sampling import INTERPOLATIONS
from tests.passes import nets
from tests.passes.nets import node

LAYER = {"method": "perforate", "rate": 0.5, "mask": "grid", "interpolation": "nearest"}


def plan_with(**fields: Any) -> dict[str, Any]:
    return {"perfonnx_plan": 1, "seed": 0, "layers": {"conv": {**LAYER, **fields}}}


rates = st.floats(0, 1, exclude_max=True)
masks = st.sampled_from(["grid", "uniform", "pooling-structure", "propagated", "a mask.npy", "b.npz"])
layer_methods = st.one_of(
    st.builds(Perforate, rates, masks, st.sampled_from(INTERPOLATIONS)),
    st.builds(Sparse, rates, masks),
    st.builds(RadiusAdaptive, st.sampled_from([0.0, 1.0])),
    st.just(Chain()),
)


@given(st.builds(Plan, st.dictionaries(st.text(), layer_methods), st.integers(0, 2**70), st.just({"a": "b"})))
def test_round_trip(plan: Plan) -> None:
    data = json.loads(json.dumps(plan.to_json()))
    again = Plan.from_json(data)
    assert again.seed == plan.seed
    assert list(again.layers) == list(plan.layers)
    assert again.to_json()["layers"] == plan.to_json()["layers"]
    assert again.layers == plan.layers


def test_files(tmp_path: Path) -> None:
    plan = Plan({"größe": Sparse(0.125, "uniform")}, 3, {"other": "why"})
    plan.save(tmp_path / "p.json")
    data = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    assert data == {
        "perfonnx_plan": 1,
        "seed": 3,
        "layers": {"größe": {"method": "sparse", "rate": 0.125, "mask": "uniform"}},
        "notes": {"other": "why"},
    }
    again = Plan.load(tmp_path / "p.json")
    assert again == plan


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ([], "not a plan"),
        (None, "not a plan"),
        ({}, "not a plan"),
        ({"layers": []}, "not a plan"),
        ({"layers": {}}, "plan format None is unknown"),
        ({"perfonnx_plan": 2, "layers": {}}, "plan format 2 is unknown; this version reads 1"),
        ({"perfonnx_plan": "1", "layers": {}}, "plan format '1'"),
        ({"perfonnx_plan": 1, "layers": {}, "sede": 1}, "unknown field 'sede'"),
        ({"perfonnx_plan": 1, "layers": {}, "seed": -1}, "seed -1"),
        ({"perfonnx_plan": 1, "layers": {}, "seed": 0.5}, "seed 0.5"),
        ({"perfonnx_plan": 1, "layers": {}, "seed": None}, "seed None"),
        ({"perfonnx_plan": 1, "layers": {}, "seed": True}, "seed True"),
        ({"perfonnx_plan": 1, "layers": {}, "largest_tile": 8}, "largest_tile is 8; give 4, 2 or 0"),
        ({"perfonnx_plan": 1, "layers": {}, "largest_tile": False}, "largest_tile is False"),
        ({"perfonnx_plan": 1, "layers": {}, "means": "rows"}, "unknown means 'rows'; choose from sites, maps"),
        ({"perfonnx_plan": 1, "layers": {}, "input_shapes": [1]}, "input_shapes must be an object"),
        ({"perfonnx_plan": 1, "layers": {}, "input_shapes": {"x": 4}}, "input_shapes, 'x': 4 is no shape"),
        ({"perfonnx_plan": 1, "layers": {}, "input_shapes": {"x": [1, -3]}}, r"'x': \[1, -3\] is no shape"),
        ({"perfonnx_plan": 1, "layers": {}, "placement": []}, "placement is none that perfonnx wrote"),
        ({"perfonnx_plan": 1, "layers": {}, "placement": {"of": 1}}, "placement is none that perfonnx wrote"),
        ({"perfonnx_plan": 1, "layers": {}, "placement": {"of": "", "hope": []}}, "placement is none that perfonnx"),
        ({"perfonnx_plan": 1, "layers": {}, "placement": {"of": "", "kept": [1]}}, r"placement: kept is \[1\]"),
        ({"perfonnx_plan": 1, "layers": {"conv": 3}}, "layer 'conv' needs an object"),
        ({"perfonnx_plan": 1, "layers": {"conv": {}}}, "layer 'conv' needs an object"),
        ({"perfonnx_plan": True, "layers": {}}, "plan format True"),
        ({"perfonnx_plan": 1.0, "layers": {}}, "plan format 1.0"),
        (plan_with(method=None), "layer 'conv' needs an object"),
        (plan_with(method="dense", rtae=1), "layer 'conv' has the unknown field 'rtae'"),
        (plan_with(method="dense", rate=9), "layer 'conv': rate 9 is not in"),
        (plan_with(method="magic"), "layer 'conv': unknown method 'magic'"),
        (plan_with(rate=1), "layer 'conv': rate 1 "),
        (plan_with(rate=-0.5), "layer 'conv': rate -0.5"),
        (plan_with(rate="half"), "layer 'conv': rate 'half'"),
        (plan_with(rate=None), "layer 'conv': rate None"),
        (plan_with(rate=[0.5]), "layer 'conv': rate"),
        (plan_with(rate=float("nan")), "layer 'conv': rate nan"),
        (plan_with(mask="magic"), "layer 'conv': unknown mask 'magic'"),
        (plan_with(mask=None), "layer 'conv': unknown mask None"),
        (plan_with(mask=["grid"]), "layer 'conv': unknown mask"),
        (plan_with(interpolation="cubic"), "layer 'conv': unknown interpolation 'cubic'"),
        (plan_with(interpolation={}), "layer 'conv': unknown interpolation"),
        (plan_with(interpolation=["nearest"]), "layer 'conv': unknown interpolation"),
        (plan_with(center_gain=2), "layer 'conv': center_gain 2"),
        (plan_with(center_gain="1"), "layer 'conv': center_gain '1'"),
        (plan_with(rtae=0.5), "layer 'conv' has the unknown field 'rtae'; known are"),
    ],
)
def test_malformed_plans(data: Any, match: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(PerfonnxError, match=match) as caught:
        nets.rewrite(nets.single(), tmp_path / "out.onnx", plan=path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["p.json"]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "cannot be read as a plan"),
        (b"[" * 100_000, "not JSON"),
        (b'{"perfonnx_plan": 1, "layers": {}, "seed": ' + b"1" * 5000 + b"}", "not JSON"),
        (None, "No such file"),
    ],
)
def test_files_that_are_no_plans(content: bytes | None, match: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PerfonnxError, match=match) as caught:
        Plan.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(PerfonnxError):
        Plan.load(tmp_path)
    with pytest.raises(PerfonnxError):
        Plan.load("a\0b")


def test_layers_that_are_not_there() -> None:
    plan = Plan({"conv": Sparse(), "ghost": Chain()})
    with pytest.raises(PerfonnxError, match=r"the plan names layer 'ghost', which the model does not have"):
        nets.rewrite(nets.single(), plan=plan)


def test_plan_objects_are_checked() -> None:
    with pytest.raises(PerfonnxError, match="plan, layer 'conv': rate 2"):
        nets.rewrite(nets.single(), plan=Plan({"conv": Sparse(rate=2)}))


def test_a_plan_does_what_it_says_and_no_more(tmp_path: Path) -> None:
    nodes = [nets.conv("x" if i == 0 else f"t{i - 1}", f"t{i}", f"w{min(i, 1)}", name=f"c{i}") for i in range(5)]
    nodes.append(node("Identity", ["t4"], ["y"]))
    model = nets.model(nodes, {"w0": nets.values(8, 3, 3, 3), "w1": nets.values(8, 8, 3, 3)})
    plan = Plan(
        {
            "c0": Perforate(0.75, "uniform", "zero"),
            "c1": Sparse(0.5, "grid"),
            "c2": RadiusAdaptive(center_gain=1.0),
            "c3": Chain(),
        },
        seed=4,
    )
    plan.save(tmp_path / "plan.json")
    result = nets.rewrite(model, plan=tmp_path / "plan.json")
    assert nets.op_types(result.proto)[:5] == ["PerforatedConv", "SparseConv", "RadiusAdaptiveConv", "Conv", "Conv"]
    assert {s.layer: s.reason for s in result.report.skips} == {"c3": "dense in the plan", "c4": "not in the plan"}
    assert nets.attribute(nets.ours(result.proto)[0], "interpolation") == b"zero"
    assert nets.attribute(nets.ours(result.proto)[2], "center_gain") == 1
    result.plan.save(tmp_path / "again.json")
    assert nets.rewrite(model, plan=tmp_path / "again.json").to_bytes() == result.to_bytes()
    nets.check(result.proto)
    nets.run(result.proto, nets.feed())


def test_what_a_plan_cannot_have_is_said() -> None:
    model = nets.single()
    result = nets.rewrite(model, plan=Plan({"conv": Perforate(0.5, "pooling-structure")}))
    assert [s.reason for s in result.report.skips] == ["no pooling layer follows; the pooling-structure mask needs one"]


def test_the_plan_in_the_metadata_makes_the_model_again() -> None:
    model = nets.single()
    result = nets.rewrite(model, rate=0.3, mask="uniform", seed=9)
    assert nets.rewrite(model, plan=Plan.from_json(nets.plan_in(result.proto))).to_bytes() == result.to_bytes()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("largest_tile", [2, 0])
def test_a_plan_keeps_the_tiles_that_may_be_used(largest_tile: int, layout: str) -> None:
    model = nets.single()
    result = perfonnx.rewrite(model, rate=0.3, mask="uniform", largest_tile=largest_tile, layout=layout)
    assert result.plan.to_json()["largest_tile"] == largest_tile
    convolutions = [n for n in result.proto.graph.node if n.domain == ops.DOMAIN and n.op_type.endswith("Conv")]
    assert convolutions
    for n in convolutions:
        assert [a.i for a in n.attribute if a.name == "largest_tile"] == [largest_tile]
    again = Plan.from_json(json.loads(json.dumps(result.plan.to_json())))
    assert perfonnx.rewrite(model, plan=again).to_bytes() == result.to_bytes()
    assert perfonnx.rewrite(model, plan=Plan.from_json(nets.plan_in(result.proto))).to_bytes() == result.to_bytes()


def open_sizes() -> ModelProto:
    return nets.model([nets.conv(y="y")], {"w": nets.values(8, 3, 3, 3)}, inputs={"x": ("N", 3, "H", "W")})


def test_a_plan_keeps_the_shapes_it_was_made_for(tmp_path: Path) -> None:
    first = nets.rewrite(open_sizes(), input_shapes={"x": ("N", 3, 12, 10)}, rate=0.5, mask="uniform", only=[""])
    first.plan.save(tmp_path / "p.json")
    assert json.loads((tmp_path / "p.json").read_text())["input_shapes"] == {"x": ["N", 3, 12, 10]}
    again = nets.rewrite(open_sizes(), plan=tmp_path / "p.json")
    assert again.to_bytes() == first.to_bytes()
    assert again.plan.input_shapes == first.plan.input_shapes
    assert "input_shapes" not in nets.rewrite(nets.single()).plan.to_json()
    twice = nets.rewrite(first.proto, only=[""])
    assert nets.plan_in(twice.proto)["input_shapes"] == {"x": ["N", 3, 12, 10]}


def test_another_size_than_the_plans_is_refused() -> None:
    plan = nets.rewrite(open_sizes(), input_shapes={"x": (1, 3, 12, 10)}, rate=0.5).plan
    nets.rewrite(open_sizes(), plan=plan, input_shapes={"x": (4, 3, 12, 10)})  # the batch may be another
    for model, shapes in ((open_sizes(), {"x": (1, 3, 24, 10)}), (nets.single(), None)):
        if shapes is None:
            model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 24
        with pytest.raises(PerfonnxError, match="made for input x:1,3,12,10, but here it is x:1,3,24,10; give that"):
            nets.rewrite(model, plan=plan, input_shapes=shapes)
    renamed = nets.single()
    renamed.graph.input[0].name = renamed.graph.node[0].input[0] = "other"
    with pytest.raises(PerfonnxError, match="made for an input 'x', which net does not have"):
        nets.rewrite(renamed, plan=plan)


@pytest.mark.parametrize("kind", FILES)
def test_a_plan_knows_the_files_that_were_written_with_it(kind: str, tmp_path: Path) -> None:
    """Whatever bit is turned in them; and when a program was stopped between the two."""
    plan, file = Plan(), tmp_path / f"plan.{kind}.npz"
    file.write_bytes(b"what was found")
    setattr(plan, kind, file.name)
    plan.digests[kind] = digest(file.read_bytes())
    plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded.file(kind) == str(file)
    for content in (b"what was fount", b"", b"what was found "):
        file.write_bytes(content)
        with pytest.raises(PerfonnxError, match="is damaged, or was not written with this plan"):
            loaded.file(kind)
    file.unlink()
    with pytest.raises(PerfonnxError, match="cannot be read"):
        loaded.file(kind)
    file.write_bytes(b"another")
    loaded.digests.clear()  # as in a plan that somebody wrote by hand
    assert loaded.file(kind) == str(file)
