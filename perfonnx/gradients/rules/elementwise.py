"""Elementwise operators: activations, functions of one tensor, arithmetic with broadcasting."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from perfonnx.gradients.builder import Builder, Value
from perfonnx.gradients.network import Node
from perfonnx.gradients.rules.registry import gradient

_SELU_ALPHA, _SELU_GAMMA = 1.6732632423543772, 1.0507009873554805
_SQRT_2 = math.sqrt(2.0)
_ROOT_2_OVER_PI = math.sqrt(2.0 / math.pi)
_GELU_CUBIC = 0.044715  # the tanh form of Gelu, Hendrycks and Gimpel, arXiv 1606.08415

Derivative = Callable[[Builder, Node, Value, Value], Value]


def _derivative(*operators: str) -> Callable[[Derivative], Derivative]:
    """Registers y' of a function y = f(x) of one tensor, from x and y. What it does not use is not kept."""

    def register(derivative: Derivative) -> Derivative:
        def rule(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
            return [dy * derivative(g, node, g.value(node, 0), g.result(node))]

        gradient(*operators)(rule)
        return derivative

    return register


@gradient("Identity", "Dropout")
def _identity(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    if node.attribute("training_mode", 0) or (node.has(2) and bool(node.constants.get(node.inputs[2], False))):
        raise node.refuse("Dropout in training mode has no gradient here; export the model for inference")
    return [dy]


@gradient("Cast", "CastLike")
def _cast(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    return [dy]  # to integers it is flat, see `reverse`


@_derivative("Relu")
def _relu(g: Builder, node: Node, x: Value, y: Value) -> Value:
    return x > 0.0


@_derivative("LeakyRelu")
def _leaky_relu(g: Builder, node: Node, x: Value, y: Value) -> Value:
    slope = node.attribute("alpha", 0.01)
    return (x > 0.0) * (1.0 - slope) + slope


@_derivative("ThresholdedRelu")
def _thresholded_relu(g: Builder, node: Node, x: Value, y: Value) -> Value:
    return x > node.attribute("alpha", 1.0)


def _exponential_below_zero(x: Value, scale: float, width: float) -> Value:
    """1 above zero, `scale * exp(x / width)` below; no overflow where x is large."""
    above = x > 0.0
    below = (x.map("Min", 0.0) / width).map("Exp") * scale
    return above + (1.0 - above) * below


@_derivative("Elu")
def _elu(g: Builder, node: Node, x: Value, y: Value) -> Value:
    return _exponential_below_zero(x, node.attribute("alpha", 1.0), 1.0)


@_derivative("Selu")
def _selu(g: Builder, node: Node, x: Value, y: Value) -> Value:
    return _exponential_below_zero(x, node.attribute("alpha", _SELU_ALPHA), 1.0) * node.attribute("gamma", _SELU_GAMMA)


@_derivative("Celu")
def _celu(g: Builder, node: Node, x: Value, y: Value) -> Value:
    return _exponential_below_zero(x, 1.0, node.attribute("alpha", 1.0))


@_derivative("Sigmoid")
def _sigmoid(g: Builder, node: Node, x: Value, y: Value) -> Value:
    return y * (1.0 - y)


@_derivative("Tanh")
def _tanh(g: Builder, node: Node, x: Value, y: Value) -> Value:
    return 1.0 - y * y


@_derivative("HardSigmoid")
def _hard_sigmoid(g: Builder, node: Node, x: Value, y: Value) -> Value:
    return (y > 0.0) * (y < 1.0) * node.attribute("alpha", 0.2)


@_derivative("HardSwish")
def _hard_swish(g: Builder, node: Node, x: Value, y: Value) -> Value:
    inside = (x > -3.0) * (x < 3.0)
    return (x > 3.0) + inside * (x / 3.0 + 0.5)


@_derivative("Softplus")
def _softplus(g: Builder, node: Node, x: Value, y: Value) -> Value:
    return x.map("Sigmoid")


@_derivative("Softsign")
def _softsign(g: Builder, node: Node, x: Value, y: Value) -> Value:
    return (1.0 + x.map("Abs")) ** -2.0


@_derivative("Mish")
def _mish(g: Builder, node: Node, x: Value, y: Value) -> Value:
    t = x.map("Softplus").map("Tanh")
    return t + x * x.map("Sigmoid") * (1.0 - t * t)


@_derivative("Gelu")
def _gelu(g: Builder, node: Node, x: Value, y: Value) -> Value:
    if node.attribute("approximate", "none") == "tanh":
        inner = (x + x * x * x * _GELU_CUBIC) * _ROOT_2_OVER_PI
        t = inner.map("Tanh")
        slope = (1.0 + x * x * (3 * _GELU_CUBIC)) * _ROOT_2_OVER_PI
        return (1.0 + t) * 0.5 + x * (1.0 - t * t) * slope * 0.5
    density = (x * x * -0.5).map("Exp") / math.sqrt(2 * math.pi)
    return ((x / _SQRT_2).map("Erf") + 1.0) * 0.5 + x * density


@_derivative("Erf")
def _erf(g: Builder, node: Node, x: Value, y: Value) -> Value:
    return (-(x * x)).map("Exp") * (2 / math.sqrt(math.pi))


@_derivative("Exp")
def _exp(g: Builder, node: Node, x: Value, y: Value) -> Value:
    return y


@_derivative("Log")
def _log(g: Builder, node: Node, x: Value, y: Value) -> Value:
    return 1.0 / x


@_derivative("Sqrt")
def _sqrt(g: Builder, node: Node, x: Value, y: Value) -> Value:
    return 0.5 / y


@_derivative("Abs")
def _abs(g: Builder, node: Node, x: Value, y: Value) -> Value:
    return x.map("Sign")


@_derivative("Neg")
def _neg(g: Builder, node: Node, x: Value, y: Value) -> Value:
    return g.constant(-1.0)


@_derivative("Reciprocal")
def _reciprocal(g: Builder, node: Node, x: Value, y: Value) -> Value:
    return -(y * y)


@_derivative("Sin")
def _sin(g: Builder, node: Node, x: Value, y: Value) -> Value:
    return x.map("Cos")


@_derivative("Cos")
def _cos(g: Builder, node: Node, x: Value, y: Value) -> Value:
    return -x.map("Sin")


@gradient("Clip")
def _clip(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    x = g.value(node, 0)
    for position, name in ((1, "min"), (2, "max")):
        attribute = node.attribute(name)
        if not node.has(position) and attribute is None:
            continue
        bound = g.value(node, position) if node.has(position) else g.constant(attribute)
        dy = dy * ((x > bound) if name == "min" else (x < bound))
    return [dy]


@gradient("PRelu")
def _prelu(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    x, slope = g.value(node, 0), g.value(node, 1)
    positive = x > 0.0
    dslope = (dy * x * (1.0 - positive)).fit(node.shape(0), node.shape(1))
    return [dy * (positive + (1.0 - positive) * slope), dslope]


# --- arithmetic ------------------------------------------------------------------------------------------------------


def _fitted(node: Node, gradients: Sequence[Value | None]) -> list[Value | None]:
    """Gradients of the output's shape, summed to those of the inputs."""
    own = node.output_shape()
    return [d and d.fit(own, node.shape(i)) for i, d in enumerate(gradients)]


@gradient("Add", "Sum")
def _add(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    return _fitted(node, [dy] * len(node.inputs))


@gradient("Sub")
def _sub(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    return _fitted(node, [dy, -dy])


@gradient("Mul")
def _mul(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    return _fitted(node, [dy * g.value(node, 1), dy * g.value(node, 0)])


@gradient("Div")
def _div(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    quotient = dy / g.value(node, 1)
    return _fitted(node, [quotient, -(quotient * g.result(node))])


@gradient("Pow")
def _pow(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    base, exponent = g.value(node, 0), g.value(node, 1)
    to_base = dy * exponent * base ** (exponent - 1.0)
    return _fitted(node, [to_base, dy * g.result(node) * base.map("Log") if node.wants(1) else None])


@gradient("Mean")
def _mean(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    return _fitted(node, [dy / len(node.inputs)] * len(node.inputs))


@gradient("Max", "Min")
def _extremum(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    y = g.result(node)
    hits = [g.value(node, i).equals(y) for i in range(len(node.inputs))]
    total = hits[0]
    for hit in hits[1:]:
        total = total + hit  # inputs that are equal share the gradient
    return _fitted(node, [dy * hit / total for hit in hits])


@gradient("Where")
def _where(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    chosen = g.value(node, 0)
    return _fitted(node, [None, dy * chosen, dy * (1.0 - chosen)])


@gradient("Affine")
def _affine(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    return [dy * node.attribute("alpha", 1.0)]  # dropped from ONNX, kept by onnxruntime


@gradient("ImageScaler")
def _image_scaler(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    return [dy * node.attribute("scale", 1.0)]  # likewise
