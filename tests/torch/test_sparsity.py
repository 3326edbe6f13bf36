from __future__ import annotations

import numpy as np
import pytest

from tests.extras import needs

torch = needs("torch")

from torch import nn  # noqa: E402

import perfonnx.torch  # noqa: E402
from perfonnx.errors import PerfonnxError  # noqa: E402
from perfonnx.masks import propagated_mask, propagated_scores  # noqa: E402
from perfonnx.methods.sparse import Sparse  # noqa: E402
from perfonnx.plan import Plan  # noqa: E402
from perfonnx.torch.sparsity import SparsitySchedule  # noqa: E402


@pytest.fixture
def model() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2, padding=1))
    plan = Plan({"0": Sparse(0.4, "propagated"), "2": Sparse(0.2, "propagated")})
    perfonnx.torch.apply(model, plan, torch.zeros(1, 3, 20, 16))
    return model


def masked(model: nn.Module) -> list[float]:
    return [1 - float(model[i].mask.float().mean()) for i in (0, 2)]


def test_stages(model: nn.Module) -> None:
    schedule = SparsitySchedule(model)
    schedule.before_step(0.05)
    assert masked(model) == [0, 0]
    schedule.before_step(0.5)  # half way through the second stage
    assert masked(model) == pytest.approx([0.75 * 0.4, 0.75 * 0.2], abs=0.01)
    first = model[0].mask.clone()
    schedule.before_step(0.5)
    assert not (model[0].mask == first).all()
    schedule.before_step(0.9)
    assert masked(model) == pytest.approx([0.4, 0.2], abs=0.01)
    kept = model[0].mask.clone()
    schedule.before_step(0.95)
    assert (model[0].mask == kept).all()


def test_stages_have_the_borders_that_are_given(model: nn.Module) -> None:
    schedule = SparsitySchedule(model, dense_until=0.0, frozen_from=0.2)
    schedule.before_step(0.1)  # half way
    assert masked(model) == pytest.approx([0.75 * 0.4, 0.75 * 0.2], abs=0.01)
    assert not schedule.settled
    schedule.before_step(0.2)
    assert schedule.settled
    assert masked(model) == pytest.approx([0.4, 0.2], abs=0.01)
    at_once = SparsitySchedule(model, dense_until=0.0, frozen_from=0.0)
    at_once.before_step(0.0)
    assert at_once.settled
    with pytest.raises(PerfonnxError, match="give shares in order"):
        SparsitySchedule(model, dense_until=0.5, frozen_from=0.2)


def test_masks_of_all_layers_come_from_one_map(model: nn.Module) -> None:
    schedule = SparsitySchedule(model, seed=7)
    schedule.step = 5
    schedule.before_step(0.5)
    scores = propagated_scores((20, 16), np.random.default_rng([7, 5]))
    for i, rate in ((0, 0.4), (2, 0.2)):
        mask = propagated_mask(scores, tuple(model[i].mask.shape), 0.75 * rate)
        assert (model[i].mask.numpy() == mask).all()


def test_the_candidate_with_the_smallest_score_stays(model: nn.Module) -> None:
    seen = []

    def score() -> float:
        seen.append(model[0].mask.clone())
        return [3.0, float("nan"), 1.0, 2.0][len(seen) - 1]

    schedule = SparsitySchedule(model, score, candidates=4)
    schedule.freeze()
    assert len(seen) == 4
    assert (model[0].mask == seen[2]).all()
    schedule.freeze()
    assert len(seen) == 4


def test_a_network_without_sparse_layers_is_refused() -> None:
    with pytest.raises(PerfonnxError, match="no sparse layers"):
        SparsitySchedule(nn.Sequential(nn.Conv2d(3, 4, 3)))


@pytest.mark.parametrize("progress", [0.5, 0.95])
def test_a_schedule_goes_on_from_its_state(model: nn.Module, progress: float) -> None:
    schedule = SparsitySchedule(model, lambda: float(model[0].mask[0].sum()), seed=2)
    for _ in range(3):
        schedule.before_step(progress)
    assert schedule.settled == (progress > 0.9)
    again = SparsitySchedule(model, lambda: 0.0, seed=2)
    schedule.before_step(0.6)
    wanted = model[0].mask.clone()
    model[0].keep_mask(np.ones((20, 16), bool))
    state = schedule.state_dict()
    again.load_state_dict({**state, "step": state["step"] - 1})
    again.before_step(0.6)
    assert (model[0].mask == wanted).all()
    assert again.settled == schedule.settled


def test_given_masks_stay(model: nn.Module) -> None:
    mask = model[0].mask.numpy().copy()
    plan = Plan({str(i): model[i].planned for i in (0, 2)})
    perfonnx.torch.apply(model, plan, masks={"0": mask})
    SparsitySchedule(model).before_step(0.5)
    assert (model[0].mask.numpy() == mask).all()
    perfonnx.torch.apply(model, plan, masks={str(i): model[i].mask.numpy() for i in (0, 2)})
    with pytest.raises(PerfonnxError, match="no sparse layers with the mask propagated"):
        SparsitySchedule(model)
    perfonnx.torch.apply(model, Plan({"0": Sparse(0.2, "lattice"), "2": Sparse(0.2, "propagated")}))
    lattice = model[0].mask.clone()
    SparsitySchedule(model).freeze()
    assert (model[0].mask == lattice).all()
