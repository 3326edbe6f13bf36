from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.extras import needs

torch = needs("torch")

import numpy as np  # noqa: E402
from torch import nn  # noqa: E402

from perfonnx.errors import PerfonnxError  # noqa: E402
from perfonnx.ops.common import ConvAttributes  # noqa: E402
from perfonnx.ops.perforated_conv import PERFORATED_CONV  # noqa: E402
from perfonnx.ops.radius_adaptive_conv import RADIUS_ADAPTIVE_CONV  # noqa: E402
from perfonnx.ops.sparse_conv import SPARSE_CONV  # noqa: E402
from perfonnx.sampling import interpolate  # noqa: E402
from perfonnx.torch.modules import (  # noqa: E402
    STEEPNESS,
    Conv2d,
    PerforatedConv2d,
    RadiusAdaptiveConv2d,
    SparseConv2d,
    steep_gate,
)

GEOMETRIES = {
    "same": ((1, 1), (1, 1, 1, 1), (1, 1), 1),
    "valid": ((1, 1), (0, 0, 0, 0), (1, 1), 1),
    "strided": ((2, 1), (1, 1, 1, 1), (1, 1), 1),
    "asymmetric": ((1, 2), (0, 1, 2, 0), (1, 1), 1),
    "dilated": ((1, 1), (2, 1, 2, 3), (2, 1), 1),
    "groups": ((1, 1), (1, 1, 1, 1), (1, 1), 2),
}


def dense(
    geometry: str, bias: bool = True, kernel: tuple[int, int] = (3, 3)
) -> tuple[Conv2d, ConvAttributes, torch.Tensor]:
    strides, pads, dilations, group = GEOMETRIES[geometry]
    layer = Conv2d(4, 6, kernel, strides, pads, dilations, group, bias).double()
    attributes = ConvAttributes(kernel, strides, pads, dilations, group)
    return layer, attributes, torch.randn(2, 4, 7, 9, dtype=torch.float64)


def numpy_of(layer: nn.Conv2d) -> tuple[Any, Any]:
    return layer.weight.detach().numpy(), None if layer.bias is None else layer.bias.detach().numpy()


def random_mask(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    mask = np.random.default_rng(seed).random(shape) < 0.4
    mask[0, 0] = True
    return mask


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("interpolation", ["nearest", "zero", "barycentric"])
def test_perforated_layer_is_the_operator(geometry: str, interpolation: str) -> None:
    layer, attributes, x = dense(geometry)
    sampling = interpolate(random_mask(attributes.output_shape(7, 9)), interpolation)
    module = PerforatedConv2d(layer, sampling)
    expected = PERFORATED_CONV.reference(
        x.numpy(), *numpy_of(layer), sampling.mask, sampling.source, sampling.weight, **attributes.attributes()
    )
    np.testing.assert_allclose(module(x).detach().numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_sparse_layer_is_the_operator(geometry: str) -> None:
    layer, attributes, x = dense(geometry)
    mask = random_mask(attributes.output_shape(7, 9))
    module = SparseConv2d(layer, mask)
    expected = SPARSE_CONV.reference(x.numpy(), *numpy_of(layer), mask, **attributes.attributes())
    np.testing.assert_allclose(module(x).detach().numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("center_gain", [0.0, 1.0])
@pytest.mark.parametrize("bias", [True, False])
def test_radius_adaptive_layer_is_the_operator(geometry: str, center_gain: float, bias: bool) -> None:
    layer, attributes, x = dense(geometry, bias)
    module = RadiusAdaptiveConv2d(layer, center_gain)
    with torch.no_grad():
        module.gate.normal_(std=1 / STEEPNESS)
        module.gate_bias.fill_(0.3 / STEEPNESS)
        if module.ring_bias is not None:
            module.ring_bias.normal_()
    y = module(x)
    assert 0 < float((module.alpha == 0).double().mean()) < 0.9
    expected = RADIUS_ADAPTIVE_CONV.reference(
        x.numpy(),
        *numpy_of(layer),
        STEEPNESS * module.gate.detach().numpy(),
        STEEPNESS * module.gate_bias.detach().numpy(),
        None if module.ring_bias is None else module.ring_bias.detach().numpy(),
        **attributes.attributes(),
        center_gain=center_gain,
    )
    np.testing.assert_allclose(y.detach().numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("center_gain", [0.0, 1.0])
def test_a_new_radius_adaptive_layer_is_the_dense_one(geometry: str, center_gain: float) -> None:
    layer, _, x = dense(geometry)
    before = layer(x).detach()
    module = RadiusAdaptiveConv2d(layer, center_gain)
    torch.testing.assert_close(module(x), before)
    assert (module.alpha == 1).all()


def test_gradients_are_those_of_finite_differences() -> None:
    layer, attributes, x = dense("groups")
    mask = random_mask(attributes.output_shape(7, 9))
    for module in (
        PerforatedConv2d(layer, interpolate(mask, "nearest")),
        PerforatedConv2d(layer, interpolate(mask, "barycentric")),
        SparseConv2d(layer, mask),
    ):
        assert torch.autograd.gradcheck(module, x.requires_grad_())


def test_gradients_add_up_at_the_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, attributes, x = dense("same")
    mask = random_mask(attributes.output_shape(7, 9))
    module = PerforatedConv2d(layer, interpolate(mask, "nearest"))
    everywhere = layer(x).detach().requires_grad_()
    monkeypatch.setattr(module, "dense", lambda _: everywhere)
    module(x).sum().backward()
    filled = np.bincount(module.sampling.source[:, 0], minlength=mask.size).reshape(mask.shape)
    assert (everywhere.grad.numpy() == filled).all()
    assert (filled[~mask] == 0).all()


def test_gradients_of_a_radius_adaptive_layer() -> None:
    layer, _, x = dense("same")
    module = RadiusAdaptiveConv2d(layer, 1.0)
    with torch.no_grad():
        module.gate.normal_(std=0.5 / STEEPNESS)
        module.gate_bias.fill_(0.5 / STEEPNESS)
    module(x)
    assert ((module.alpha > 0) & (module.alpha < 1)).double().mean() > 0.5
    names = ("weight", "bias", "ring_bias")

    def run(*values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, tuple(getattr(module, name) for name in names))
    module(x).sum().backward()
    assert module.gate.grad.abs().sum() > 0
    assert module.gate_bias.grad.abs().sum() > 0


def test_a_gate_is_steep_but_learns_from_pixels_nearby() -> None:
    score = torch.tensor([-2.0, -0.5, 0.005, 0.5, 2.0], requires_grad=True)
    alpha = steep_gate(score)
    assert alpha.tolist() == [0, 0, 0.5, 1, 1]
    alpha.sum().backward()
    assert score.grad.tolist() == [0, 1, 1, 1, 0]


def test_parameters_keep_their_names_and_identity() -> None:
    layer = nn.Conv2d(4, 6, 3, padding="same")
    mask = random_mask((7, 9))
    for module in (
        PerforatedConv2d(layer, interpolate(mask, "nearest")),
        SparseConv2d(layer, mask),
        Conv2d.like(layer),
    ):
        assert module.weight is layer.weight
        assert module.bias is layer.bias
        assert list(module.state_dict()) == ["weight", "bias"]
    adaptive = RadiusAdaptiveConv2d(layer)
    assert adaptive.weight is layer.weight
    assert sorted(adaptive.state_dict()) == ["bias", "gate", "gate_bias", "weight"]


@pytest.mark.parametrize("padding", ["same", "valid", 2, (0, 1)])
def test_padding_of_any_form_is_kept(padding: Any) -> None:
    layer = nn.Conv2d(4, 6, (3, 2), padding=padding)
    x = torch.randn(1, 4, 7, 9)
    torch.testing.assert_close(Conv2d.like(layer)(x), layer(x))


def test_refusals() -> None:
    with pytest.raises(PerfonnxError, match="reflect"):
        Conv2d.like(nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(PerfonnxError, match="5x5 kernel"):
        RadiusAdaptiveConv2d(nn.Conv2d(4, 6, 5))
    module = SparseConv2d(nn.Conv2d(4, 6, 3, padding=1), random_mask((7, 9)))
    with pytest.raises(PerfonnxError, match="a mask of 7x9 meets a map of 8x9"):
        module(torch.zeros(1, 4, 8, 9))


def test_an_adaptive_layer_is_copied_in_the_middle_of_training() -> None:
    layer = RadiusAdaptiveConv2d(nn.Conv2d(3, 4, 3, padding=1))
    x = torch.randn(2, 3, 8, 8)
    y = layer(x)
    torch.testing.assert_close(copy.deepcopy(layer)(x), y)
