"""Trainable counterparts of the operators: `torch.nn.Conv2d` layers with the same tables and the same result.

They compute every position and then keep what the operator would: training costs what dense training costs, and needs
nothing but PyTorch. Parameters have the names that they have in `torch.nn.Conv2d`, and tables are left out of the state
dict, so that states of the dense network fit.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from perfonnx.corrections import Correction, TrainedGate, digest
from perfonnx.errors import PerfonnxError
from perfonnx.masks import Mask
from perfonnx.methods import Method
from perfonnx.sampling import Sampling

Pads = tuple[int, int, int, int]

STEEPNESS = 100.0
"""Slope of alpha over a gate's score."""

WINDOW = 1.0
"""Scores nearer to 0 than this have a gradient."""


class Conv2d(nn.Conv2d):
    """A convolution with the pads of ONNX, which need not be symmetric.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Height and width.
        stride: Of both axes.
        pads: Top, left, bottom, right.
        dilation: Of both axes.
        groups: Groups of channels.
        bias: Whether there is one.
        device: Where the parameters are made.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        pads: Pads = (0, 0, 0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        bias: bool = True,
        device: str | torch.device | None = None,
    ) -> None:
        symmetric = pads[:2] == pads[2:]
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            pads[:2] if symmetric else 0,
            dilation,
            groups,
            bias,
            device=device,
        )
        self.pads = pads
        self.symmetric = symmetric

    @classmethod
    def like(cls, dense: nn.Conv2d) -> Conv2d:
        """A plain layer that takes over the parameters of `dense`.

        Raises:
            PerfonnxError: Its padding is not made of zeros.
        """
        layer = Conv2d.__new__(Conv2d)
        layer.take_over(dense)
        return layer

    def take_over(self, dense: nn.Conv2d) -> None:
        """Become a convolution with the geometry and the parameters of `dense`."""
        Conv2d.__init__(
            self,
            dense.in_channels,
            dense.out_channels,
            cast("tuple[int, int]", dense.kernel_size),
            cast("tuple[int, int]", dense.stride),
            explicit_pads(dense),
            cast("tuple[int, int]", dense.dilation),
            dense.groups,
            dense.bias is not None,
            device="meta",
        )
        self.weight, self.bias = dense.weight, dense.bias
        self.train(dense.training)

    def dense(self, x: Tensor) -> Tensor:
        """The convolution at every position, [N, M, OH, OW]."""
        return self.convolve(x, self.weight, self.bias)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """A convolution of this geometry."""
        if not self.symmetric:
            top, left, bottom, right = self.pads
            x = functional.pad(x, (left, right, top, bottom))
        padding = self.pads[:2] if self.symmetric else 0
        return functional.conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)

    def forward(self, x: Tensor) -> Tensor:
        """Input [N, C, H, W], output [N, M, OH, OW]."""
        return self.dense(x)


class Product(Conv2d):
    """A matrix product as the 1x1 convolution of its rows.

    Args:
        weight: [M, K].
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight.shape[1], weight.shape[0], (1, 1), bias=False, device="meta")
        self.weight = nn.Parameter(weight[:, :, None, None], requires_grad=False)


def explicit_pads(conv: nn.Conv2d) -> Pads:
    """Top, left, bottom, right.

    Raises:
        PerfonnxError: Its padding is not made of zeros.
    """
    if isinstance(conv, Conv2d):
        return conv.pads
    if conv.padding_mode != "zeros":
        raise PerfonnxError(f"padding mode {conv.padding_mode!r}: only layers padded with zeros are sampled")
    left, right, top, bottom = conv._reversed_padding_repeated_twice
    return top, left, bottom, right


class SampledConv2d(Conv2d):
    """Base of the trainable counterparts.

    Attributes:
        planned: What the plan says of the layer; set by `perfonnx.torch.apply`.
    """

    planned: Method

    def goal(self, y: Tensor) -> Tensor:
        """What the layer is to give where it gave y, [N, M, OH, OW], in the original network."""
        return y

    def trained(self) -> Correction | None:
        """What makes the layer as it is now, in the place of what it was fitted with; None where it was not."""
        return None


class FittedConv2d(SampledConv2d):
    """Base of those that train what was fitted for the layer; the dense layer's weight is kept and takes no part.

    Attributes:
        correction: What was fitted.
    """

    correction: Correction


def fitted_weight(dense: nn.Conv2d, correction: Correction) -> NDArray[np.floating]:
    """The weight of a layer as it was when something was fitted: half precision is trained in float32."""
    weight = dense.weight.detach().cpu().numpy()
    forms = [weight]
    if isinstance(dense, Product):
        forms = [weight[:, :, 0, 0], weight[:, :, 0, 0].T]
    for form in (*forms, *(form.astype(np.float16) for form in forms)):
        if correction.weights == digest(form):
            return form
    return weight


class ExactConv2d(SampledConv2d):
    """A layer that is computed at every position, as a plain one is.

    Args:
        dense: The layer whose parameters it takes over.
    """

    def __init__(self, dense: nn.Conv2d) -> None:
        self.take_over(dense)


class MaskedConv2d(SampledConv2d):
    """Base of those with a mask, bool [OH, OW]."""

    mask: Tensor

    def keep_mask(self, mask: Mask) -> None:
        """Set the mask, bool [OH, OW]."""
        self._keep("mask", mask)

    def _keep(self, name: str, values: NDArray[Any]) -> None:
        self.register_buffer(name, torch.from_numpy(np.array(values)).to(self.weight.device), persistent=False)

    def checked(self, y: Tensor) -> Tensor:
        """The map, if it has the size that the mask was made for."""
        if y.shape[-2:] != self.mask.shape:
            sizes = ["x".join(str(n) for n in shape) for shape in (self.mask.shape, y.shape[-2:])]
            raise PerfonnxError(
                f"a mask of {sizes[0]} meets a map of {sizes[1]}; apply the plan with inputs of this size"
            )
        return y


class PerforatedConv2d(MaskedConv2d):
    """Perforated convolution (Figurnov et al., arXiv 1504.08362): computed at the sites, interpolated elsewhere.

    Gradients of all positions filled from a site add up at that site; skipped positions get none.

    Args:
        dense: The layer whose parameters it takes over.
        sampling: Its mask and interpolation.
    """

    source: Tensor
    source_weight: Tensor

    def __init__(self, dense: nn.Conv2d, sampling: Sampling) -> None:
        self.take_over(dense)
        self.sampling = sampling
        self.keep_mask(sampling.mask)
        weight = (sampling.source >= 0).astype(np.float32) if sampling.weight is None else sampling.weight
        self._keep("source", np.maximum(sampling.source, 0).astype(np.int64))
        self._keep("source_weight", weight[:, :, np.newaxis])
        self.plain = bool((weight == 1).all())

    def forward(self, x: Tensor) -> Tensor:
        """Input [N, C, H, W], output [N, M, OH, OW]."""
        y = self.checked(self.dense(x))
        n, m, height, width = y.shape
        rows = y.permute(0, 2, 3, 1).reshape(n, height * width, m)
        weights = self.source_weight.to(rows.dtype)
        parts = []
        for k in range(self.source.shape[1]):
            part = rows.index_select(1, self.source[:, k])
            parts.append(part if self.plain else part * weights[:, k])
        return sum(parts[1:], parts[0]).reshape(n, height, width, m).permute(0, 3, 1, 2)


class SparseConv2d(MaskedConv2d):
    """Semi-structured activation sparsity (Grimaldi et al.): masked outputs are zero, before any normalization.

    Args:
        dense: The layer whose parameters it takes over.
        mask: bool [OH, OW], false where masked; `keep_mask` sets another one.
    """

    def __init__(self, dense: nn.Conv2d, mask: Mask) -> None:
        self.take_over(dense)
        self.keep_mask(mask)

    def forward(self, x: Tensor) -> Tensor:
        """Input [N, C, H, W], output [N, M, OH, OW]."""
        y = self.checked(self.dense(x))
        return torch.where(self.mask, y, torch.zeros((), dtype=y.dtype, device=y.device))


class RadiusAdaptiveConv2d(SampledConv2d):
    """Radius-adaptive convolution (Rakhshanfar): the 3x3 ring is added to the centre as far as alpha of the pixel says.

    alpha = clip(STEEPNESS * (x . gate + gate_bias), 0, 1) with x the pixel under the centre tap; the output is
    (1 + center_gain * alpha) * centre + bias + alpha * ring. A new layer has the gate 0 and its bias 1, so that alpha
    is 1 and the layer is the dense one; with a gain the centre tap is divided by 1 + center_gain for that.

    Args:
        dense: The layer whose parameters it takes over.
        center_gain: 0 or 1, the two published forms.

    Attributes:
        gate: [1, C, 1, 1].
        gate_bias: [1].
        ring_bias: [M], added to the ring before alpha scales it, as in the released program; None without a gain.
        alpha: Of the last forward pass, [N, 1, OH, OW], with its gradient; None before.
        ring_multiplies: Those of the ring at all pixels of an image, of the last forward pass.
    """

    gate: nn.Parameter
    gate_bias: nn.Parameter
    ring: Tensor

    def __init__(self, dense: nn.Conv2d, center_gain: float = 0.0) -> None:
        self.take_over(dense)
        if self.kernel_size != (3, 3):
            raise PerfonnxError(f"{self.kernel_size[0]}x{self.kernel_size[1]} kernel; radius-adaptive layers have 3x3")
        self.center_gain = center_gain
        ring = torch.ones(1, 1, 3, 3, dtype=self.weight.dtype, device=self.weight.device)
        ring[..., 1, 1] = 0
        self.register_buffer("ring", ring, persistent=False)
        with torch.no_grad():
            self.weight[:, :, 1, 1] /= 1 + center_gain
        self.gate = nn.Parameter(self.weight.new_zeros(1, self.in_channels, 1, 1))
        self.gate_bias = nn.Parameter(self.weight.new_ones(1))
        self.ring_bias = nn.Parameter(self.weight.new_zeros(self.out_channels)) if center_gain else None
        self.alpha: Tensor | None = None
        self.ring_multiplies = 0

    def forward(self, x: Tensor) -> Tensor:
        """Input [N, C, H, W], output [N, M, OH, OW]."""
        pixels = self.under_centre(x)
        # Layers before learn nothing from the gate, whose gradient is right in sign alone.
        alpha = steep_gate(functional.conv2d(pixels.detach(), self.gate, self.gate_bias, self.stride))
        centre = functional.conv2d(pixels, self.weight[:, :, 1:2, 1:2], None, self.stride, groups=self.groups)
        if self.center_gain:
            centre = (1 + self.center_gain * alpha) * centre
        y = centre + alpha * self.of_ring(x)
        self.alpha = alpha
        self.ring_multiplies = self.weight.numel() // 9 * 8 * alpha.shape[2] * alpha.shape[3]
        return y if self.bias is None else y + self.bias[:, None, None]

    def opened(self) -> Conv2d:
        """The plain layer that it is where alpha is 1, with the same parameters; the centre tap takes in the gain."""
        with torch.no_grad():
            self.weight[:, :, 1, 1] *= 1 + self.center_gain
        return Conv2d.like(self)

    def __getstate__(self) -> dict[str, Any]:
        """Without alpha: with its gradient it can be neither copied nor saved."""
        return {**self.__dict__, "alpha": None}

    def trained_gate(self) -> TrainedGate:
        """The gate as `perfonnx.rewrite` takes it, with the share of pixels that it opened in the last forward pass."""
        share = 1.0 if self.alpha is None else float((self.alpha > 0).float().mean())
        weight, bias = ((STEEPNESS * p.detach()).float().cpu().numpy().ravel() for p in (self.gate, self.gate_bias))
        ring_bias = None if self.ring_bias is None else self.ring_bias.detach().float().cpu().numpy()
        return TrainedGate(weight, float(bias[0]), ring_bias, share)

    def of_ring(self, x: Tensor) -> Tensor:
        """What the ring would add at each position, [N, M, OH, OW]."""
        return self.convolve(x, self.weight * self.ring, self.ring_bias)

    def under_centre(self, x: Tensor) -> Tensor:
        """The part of the padded input that the centre tap reads; it takes the strides' steps."""
        top, left, bottom, right = self.pads
        down, across = self.dilation
        edges = (left - across, right - across, top - down, bottom - down)
        return functional.pad(x, edges) if any(edges) else x


def plain(module: nn.Conv2d) -> Conv2d:
    """The plain layer with the parameters of a module; of a radius-adaptive one, what it is where its gate is open."""
    return module.opened() if isinstance(module, RadiusAdaptiveConv2d) else Conv2d.like(module)


class _SteepGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, score: Tensor) -> Tensor:
        ctx.save_for_backward(score)
        return (score * STEEPNESS).clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (score,) = ctx.saved_tensors
        return gradient * (score.abs() < WINDOW)


def steep_gate(score: Tensor) -> Tensor:
    """Alpha of a score: clip(STEEPNESS * score, 0, 1), with the gradient of a slope of 1 where |score| < WINDOW.

    Half open pixels cost as much as open ones, and weights learn to do without the ring only where it is gone: so the
    slope is steep. It would leave hardly a pixel with a gradient; the wider window reaches those about to change sides.
    """
    return cast(Tensor, _SteepGate.apply(score))  # type: ignore[no-untyped-call, unused-ignore]
