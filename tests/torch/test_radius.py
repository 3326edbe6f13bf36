from __future__ import annotations

import pytest

from tests.extras import needs

torch = needs("torch")

from torch import nn  # noqa: E402

import perfonnx.torch  # noqa: E402
from perfonnx.errors import PerfonnxError  # noqa: E402
from perfonnx.torch.radius import REACHED_AT, OpenShareBudget, open_share, start_gates  # noqa: E402


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 3, padding=1))
    perfonnx.torch.apply(model, example=torch.zeros(1, 3, 8, 8), method="radius-adaptive", only=["."])
    return model


def test_open_network_is_within_its_budget_and_costs_nothing(model: nn.Module) -> None:
    budget = OpenShareBudget(model, 0.5)
    model(torch.randn(2, 3, 8, 8))
    budget.before_step(0.0)
    assert budget.loss().item() == 0
    budget.before_step(REACHED_AT / 2)
    assert budget.budget == pytest.approx(0.75)
    assert budget.loss().item() == pytest.approx(budget.price * 0.25)
    assert not budget.settled
    budget.before_step(0.9)
    assert budget.budget == 0.5
    assert budget.settled
    again = OpenShareBudget(model, 0.5)
    again.load_state_dict(budget.state_dict())
    assert again.settled


def test_share_is_weighted_by_the_multiplies_of_the_rings(model: nn.Module) -> None:
    nn.init.constant_(model[0].gate_bias, -1.0)
    budget = OpenShareBudget(model, 0.0)
    model(torch.randn(2, 3, 8, 8))
    budget.before_step(0.9)
    share = 4 * 8 / (3 * 4 + 4 * 8)
    assert budget.loss().item() == pytest.approx(budget.price * share)


def test_new_gates_are_open_and_close_last_where_the_ring_adds_most(model: nn.Module) -> None:
    x = torch.randn(8, 3, 8, 8)
    before = model(x).detach()
    start_gates(model, x)
    assert model.training
    torch.testing.assert_close(model(x), before)
    layer = model[0]
    assert (layer.alpha == 1).all()
    with torch.no_grad():
        score = torch.nn.functional.conv2d(x, layer.gate).flatten()
        added = layer.of_ring(x).square().mean(dim=1).flatten()
    best, worst = added[score > score.median()].mean(), added[score <= score.median()].mean()
    assert best > worst
    gate = layer.gate.clone()
    start_gates(model, torch.randn(8, 3, 8, 8))
    assert torch.equal(layer.gate, gate)


def test_gates_of_strided_and_unpadded_layers_start_open() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2))
    perfonnx.torch.apply(model, example=torch.zeros(1, 3, 9, 11), method="radius-adaptive", only=["."])
    x = torch.randn(4, 3, 9, 11)
    before = model(x).detach()
    start_gates(model, x)
    torch.testing.assert_close(model(x), before)
    assert all(module.gate.any() and (module.alpha == 1).all() for module in model)


def test_training_meets_the_budget(model: nn.Module) -> None:
    torch.manual_seed(0)
    x, teacher = torch.randn(8, 3, 8, 8), nn.Conv2d(3, 8, 3, padding=1)
    start_gates(model, x)
    budget = OpenShareBudget(model, 0.4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    goal = teacher(x).detach()
    for step in range(150):
        budget.before_step(step / 150)
        loss = (model(x) - goal).square().mean() + budget.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model(x)
    assert open_share(budget.layers).item() < 0.55


def test_refusals(model: nn.Module) -> None:
    with pytest.raises(PerfonnxError, match="no radius-adaptive layers"):
        OpenShareBudget(nn.Sequential(nn.Conv2d(3, 4, 3)), 0.5)
    with pytest.raises(PerfonnxError, match="in \\[0, 1\\]"):
        OpenShareBudget(model, 1.5)


def test_starting_gates_leaves_the_modules_modes(model: nn.Module) -> None:
    model[1].eval()
    start_gates(model, torch.randn(2, 3, 8, 8))
    assert [m.training for m in model] == [True, False, True]
