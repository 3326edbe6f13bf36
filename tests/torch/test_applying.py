from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.extras import needs

torch = needs("torch")

from torch import nn  # noqa: E402

import perfonnx  # noqa: E402
import perfonnx.torch  # noqa: E402
from perfonnx.errors import PerfonnxError  # noqa: E402
from perfonnx.methods import METHODS  # noqa: E402
from perfonnx.methods.exact import Exact  # noqa: E402
from perfonnx.methods.perforate import Perforate  # noqa: E402
from perfonnx.methods.radius_adaptive import RadiusAdaptive  # noqa: E402
from perfonnx.methods.sparse import Sparse  # noqa: E402
from perfonnx.plan import Plan  # noqa: E402
from perfonnx.torch.modules import (  # noqa: E402
    STEEPNESS,
    ExactConv2d,
    PerforatedConv2d,
    RadiusAdaptiveConv2d,
    SparseConv2d,
)

EXAMPLE = torch.zeros(1, 3, 12, 10)


class Small(nn.Module):
    """Two normalized layers with a residual, one strided with a bias, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.last = nn.Conv2d(8, 8, 3, stride=2, padding="valid")
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = x + self.block(x)
        x = torch.relu(self.last(x))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model = Small()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


def plan_of(**fields: Any) -> Plan:
    method = METHODS[fields.pop("method")](**fields)
    return Plan(dict.fromkeys(("first", "block.0", "last"), method))


def agree(model: nn.Module, rewritten: perfonnx.Rewritten, tolerance: float = 1e-4) -> None:
    x = torch.randn(3, 3, 12, 10)
    with torch.no_grad():
        expected = model.eval()(x).numpy()
    session = perfonnx.session(rewritten.to_bytes())
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("layout", ["rows", "nchw"])
@pytest.mark.parametrize(
    "fields",
    [
        {"method": "perforate", "rate": 0.5},
        {"method": "perforate", "rate": 0.6, "mask": "uniform", "interpolation": "barycentric"},
        {"method": "sparse", "rate": 0.3, "mask": "propagated"},
        {"method": "radius-adaptive"},
        {"method": "radius-adaptive", "center_gain": 1.0},
    ],
    ids=["nearest", "barycentric", "sparse", "radius-adaptive", "gain"],
)
def test_exported_model_is_the_trained_network(model: nn.Module, fields: dict[str, Any], layout: str) -> None:
    before = model.eval()(torch.ones(2, 3, 12, 10)).detach()
    applied = perfonnx.torch.apply(model, plan_of(**fields), EXAMPLE)
    assert applied.modules == {name: name for name in ("first", "block.0", "last")}
    if fields["method"] == "radius-adaptive":
        torch.testing.assert_close(model(torch.ones(2, 3, 12, 10)), before, rtol=1e-4, atol=1e-4)
        for module in perfonnx.torch.sampled_modules(model).values():
            nn.init.normal_(module.gate, std=0.5 / STEEPNESS)
            nn.init.constant_(module.gate_bias, 0.2 / STEEPNESS)
            if module.ring_bias is not None:
                nn.init.normal_(module.ring_bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(2):
        model.train()(torch.randn(4, 3, 12, 10)).square().mean().backward()
        optimizer.step()
    rewritten = perfonnx.torch.export(model, layout=layout)
    assert {layer.name for layer in rewritten.report.layers} == {"first", "block.0", "last"}
    agree(model, rewritten)


def test_parameters_stay_where_they_were(model: nn.Module) -> None:
    names, identities = list(model.state_dict()), [id(p) for p in model.parameters()]
    dense = {name: value.clone() for name, value in model.state_dict().items()}
    perfonnx.torch.apply(model, plan_of(method="perforate", rate=0.5), EXAMPLE)
    assert isinstance(model.block[0], PerforatedConv2d)
    assert list(model.state_dict()) == names
    assert [id(p) for p in model.parameters()] == identities
    model.load_state_dict(dense)


def test_a_plan_applied_again_chooses_anew(model: nn.Module) -> None:
    perfonnx.torch.apply(model, plan_of(method="perforate", rate=0.25), EXAMPLE)
    weight = model.first.weight
    plan = Plan({"first": Perforate(0.75), "last": RadiusAdaptive()})
    perfonnx.torch.apply(model, plan)
    assert model.first.sampling.rate > 0.7
    assert model.first.weight is weight
    assert isinstance(model.last, RadiusAdaptiveConv2d)
    assert list(perfonnx.torch.sampled_modules(model)) == ["first", "last"]
    gate = model.last.gate
    perfonnx.torch.apply(model, plan)
    assert model.last.gate is gate


def test_options_choose_as_rewrite_does(model: nn.Module) -> None:
    applied = perfonnx.torch.apply(model, example=EXAMPLE, rate=0.5, only=["block", "last"])
    assert sorted(applied.modules) == ["block.0", "last"]
    assert [skip.layer for skip in applied.skips] == ["first"]


def test_masks_given_take_the_place_of_those_of_the_plan(model: nn.Module) -> None:
    mask = np.zeros((12, 10), bool)
    mask[::3, ::2] = True
    plan = Plan({"first": Sparse(0.5, "propagated")})
    perfonnx.torch.apply(model, plan, EXAMPLE, masks={"first": mask})
    assert isinstance(model.first, SparseConv2d)
    assert (model.first.mask.numpy() == mask).all()
    rewritten = perfonnx.torch.export(model)
    assert (rewritten.masks["first"] == mask).all()
    agree(model, rewritten)


def test_export_leaves_the_network_as_it_was(model: nn.Module) -> None:
    perfonnx.torch.apply(model, plan_of(method="perforate", rate=0.5), EXAMPLE)
    model.train()
    model.norm.eval()
    modules = [(path, id(m), m.training) for path, m in model.named_modules()]
    perfonnx.torch.export(model)
    assert [(path, id(m), m.training) for path, m in model.named_modules()] == modules


def test_saved_plan_makes_the_same_model_again(model: nn.Module, tmp_path: Path) -> None:
    perfonnx.torch.apply(model, Plan({"first": Sparse(0.3, "uniform")}, seed=3), EXAMPLE)
    rewritten = perfonnx.torch.export(model, tmp_path / "fast.onnx")
    rewritten.save_plan(tmp_path / "plan.json")
    dense, _ = perfonnx.torch.dense_onnx(model)
    again = perfonnx.rewrite(dense, plan=tmp_path / "plan.json")
    assert again.to_bytes() == (tmp_path / "fast.onnx").read_bytes()


def test_exact_layers_are_plain_ones_that_the_export_knows(model: nn.Module) -> None:
    plan = Plan({"first": Exact(), "block.0": Perforate(0.5, "uniform")})
    perfonnx.torch.apply(model, plan, EXAMPLE)
    assert isinstance(model.get_submodule("first"), ExactConv2d)
    exported = perfonnx.torch.export(model, example=EXAMPLE)
    assert {name: method.NAME for name, method in exported.plan.layers.items()} == {
        "first": "exact",
        "block.0": "perforate",
    }
    x = torch.randn(3, *EXAMPLE.shape[1:])
    (actual,) = perfonnx.session(exported.to_bytes()).run(None, {perfonnx_input(exported): x.numpy()})
    np.testing.assert_allclose(actual, model.eval()(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def perfonnx_input(exported: perfonnx.Rewritten) -> str:
    return str(exported.proto.graph.input[0].name)


def test_refusals(model: nn.Module) -> None:
    with pytest.raises(PerfonnxError, match="give example inputs"):
        perfonnx.torch.apply(model, plan_of(method="perforate"))
    with pytest.raises(PerfonnxError, match="layer 'second', which the model does not have"):
        perfonnx.torch.apply(model, Plan({"second": Perforate()}), EXAMPLE)
    with pytest.raises(PerfonnxError, match="layer 'first': it is normalized behind"):
        perfonnx.torch.apply(model, plan_of(method="perforate", interpolation="zero"), EXAMPLE)
    with pytest.raises(PerfonnxError, match="a plan says everything"):
        perfonnx.torch.apply(model, Plan(), EXAMPLE, rate=0.5)
    assert type(model.first) is nn.Conv2d
    with pytest.raises(PerfonnxError, match="PyTorch cannot export the network"):
        perfonnx.torch.apply(model, Plan(), torch.zeros(1, 5, 12, 10))


def test_a_module_used_twice_has_no_layer_of_its_own() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.conv(x))

    model = Twice()
    dense, modules = perfonnx.torch.dense_onnx(model, torch.zeros(1, 4, 8, 8))
    assert modules == {}
    layer = next(n.name for n in dense.graph.node if n.op_type == "Conv")
    with pytest.raises(PerfonnxError, match="no convolution module of its own"):
        perfonnx.torch.apply(model, Plan({layer: Perforate()}))
    model = nn.Sequential(model, nn.Conv2d(4, 4, 3, padding=1))
    applied = perfonnx.torch.apply(model, example=torch.zeros(1, 4, 8, 8), rate=0.5, only=["."])
    assert list(applied.modules) == ["1"]
    assert [skip.reason for skip in applied.skips] == ["no convolution module of its own stands for it"] * 2


def test_a_refused_plan_changes_no_weight() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"))
    before = model[0].weight.detach().clone()
    plan = Plan({name: RadiusAdaptive(center_gain=1.0) for name in "01"})
    with pytest.raises(PerfonnxError, match="layer '1': padding mode 'reflect'"):
        perfonnx.torch.apply(model, plan, torch.zeros(1, 3, 8, 8))
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("after", [Plan(), Plan({"0": RadiusAdaptive()})])
def test_a_gain_that_is_taken_away_stays_in_the_weights(after: Plan) -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)), torch.randn(2, 3, 8, 8)
    wanted = model(x)
    perfonnx.torch.apply(model, Plan({"0": RadiusAdaptive(center_gain=1.0)}), x)
    torch.testing.assert_close(model(x), wanted)
    perfonnx.torch.apply(model, after)
    torch.testing.assert_close(model(x), wanted)


def test_a_gain_is_refused_where_layers_share_a_weight() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1))
    onnx_model, _ = perfonnx.torch.dense_onnx(model, torch.zeros(1, 3, 8, 8))
    first, second = (node for node in onnx_model.graph.node if node.op_type == "Conv")
    second.input[1] = first.input[1]
    network = perfonnx.torch.from_onnx(onnx_model)
    with pytest.raises(PerfonnxError, match="layer '0': it shares its weight with another layer"):
        perfonnx.torch.apply(network, Plan({first.name: RadiusAdaptive(center_gain=1.0)}))
