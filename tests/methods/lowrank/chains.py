"""Chains of convolutions by numpy, and layers to approximate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from perfonnx.methods.lowrank.base import Approximation, LowRank
from perfonnx.methods.lowrank.form import Form, Order, Piece
from perfonnx.methods.lowrank.metric import Frobenius
from perfonnx.ops.common import ConvAttributes, convolve

SQUARE = ConvAttributes((3, 3), (1, 1), (1, 1, 1, 1))
AWKWARD = ConvAttributes((3, 2), (2, 1), (0, 1, 2, 0), (1, 2))


def form(outputs: int, inputs: int, attributes: ConvAttributes = SQUARE, size: tuple[int, int] = (9, 7)) -> Form:
    return Form(outputs, inputs, attributes, 1, size)


def weight(of: Form, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((of.outputs, of.inputs, *of.kernel))


def plain(w: np.ndarray) -> Approximation:
    """To be approximated without data."""
    return Approximation(w, Frobenius())


def run(pieces: Sequence[Piece], arrays: Sequence[np.ndarray], x: np.ndarray) -> np.ndarray:
    """What a chain gives for x [N, C, H, W]."""
    for piece, array in zip(pieces, arrays, strict=True):
        if isinstance(piece, Order):
            assert x.shape[1] == piece.channels
            x = x[:, array.astype(int)]
        else:
            assert array.shape == piece.shape
            x = convolve(x, array, None, piece.attributes)
    return x


def counted(method: LowRank, of: Form, rank: int) -> float:
    """The multiplies of the original over those of the approximation."""
    return of.multiplies([of.whole]) / of.multiplies(method.pieces(of, rank))


def geometry(kernel: int, **changes: Any) -> ConvAttributes:
    half = kernel // 2
    return replace(ConvAttributes((kernel, kernel), pads=(half, half, half, half)), **changes)
