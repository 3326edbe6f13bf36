"""Canonical polyadic decomposition (Lebedev et al., arXiv 1412.6553): pointwise, depthwise, pointwise."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perfonnx.errors import PerfonnxError
from perfonnx.methods.base import setting
from perfonnx.methods.lowrank.base import Approximation, Factors, LowRank
from perfonnx.methods.lowrank.form import Form, Part, Piece, pointwise
from perfonnx.methods.lowrank.metric import Frobenius
from perfonnx.methods.lowrank.multilinear import einsum, fit

Float = NDArray[np.float64]

WHOLE, SPLIT = "whole", "split"

STARTING_ROUNDS = 40
"""Rounds without data, from random factors."""

_RIDGE = 1e-9


@dataclass(frozen=True)
class Cp(LowRank):
    """`rank` products of a mixture of the inputs, a filter for it, and a weight for every output.

    Attributes:
        depthwise: `whole`: filters of kh x kw; `split`: of kh x 1 and 1 x kw, as in the paper.
    """

    NAME = "cp"
    SUMMARY = "canonical polyadic: 1x1, depthwise, 1x1"
    PLACE = 25

    depthwise: str = setting(
        WHOLE, "depthwise filters of cp: whole (default, kh x kw) or split (kh x 1, 1 x kw)", "KIND"
    )

    def check(self, where: str) -> None:
        """See `Method.check`."""
        super().check(where)
        if self.depthwise not in (WHOLE, SPLIT):
            raise PerfonnxError(f"{where}: unknown depthwise {self.depthwise!r}; choose from {WHOLE}, {SPLIT}")

    def unfit(self, form: Form) -> str | None:
        """See `LowRank.unfit`."""
        return "its kernel is 1x1; svd is for those" if form.taps == 1 else None

    def pieces(self, form: Form, rank: int) -> list[Piece]:
        """See `LowRank.pieces`."""
        height, width = form.kernel
        if self.depthwise == WHOLE:
            filters = [Part("depthwise", (rank, 1, height, width), replace(form.attributes, group=rank))]
        else:
            filters = [
                Part("vertical", (rank, 1, height, 1), replace(form.vertical(), group=rank)),
                Part("horizontal", (rank, 1, 1, width), replace(form.horizontal(), group=rank)),
            ]
        return [pointwise("inputs", rank, form.inputs), *filters, pointwise("outputs", form.outputs, rank)]

    def full(self, form: Form) -> int:
        """See `LowRank.full`."""
        return min(form.inputs, form.outputs) * form.taps

    def factors(self, problem: Approximation, form: Form, rank: int) -> Factors:
        """See `LowRank.factors`: alternating without data from random factors, then in the metric."""
        split = self.depthwise == SPLIT
        spec = "mr,ri,rj,rc->mcij" if split else "mr,rij,rc->mcij"
        if rank == self.full(form):
            found = every_tap(problem.weight, split=split)
        else:
            rng = np.random.default_rng(0)
            sizes = dict(zip("mcij", problem.weight.shape, strict=True)) | {"r": rank}
            names = spec.split("->")[0].split(",")
            found = [rng.standard_normal([sizes[each] for each in name]) for name in names]
            found = alternated(spec, found, problem.weight)
            if not isinstance(problem.metric, Frobenius):
                found = fit(spec, found, problem.weight, problem.metric.apply)
        found = balanced(found)
        outputs, *taps, inputs = found
        filters = [taps[0][:, None, :, None], taps[1][:, None, None, :]] if split else [taps[0][:, None]]
        product = einsum(spec, *found)
        largest = np.prod([_norms(f) for f in (outputs.T, *found[1:])], axis=0).max() / np.linalg.norm(problem.weight)
        note = f"the largest component {largest:.2g} times as long as the weight"
        return Factors([inputs[:, :, None, None], *filters, outputs[:, :, None, None]], product, note=note)


def alternated(spec: str, factors: list[Float], weight: Float) -> list[Float]:
    """The factors whose components' sum is nearest in squares: each by its normal equations, of `rank` unknowns."""
    names, found = spec.split("->")[0].split(","), list(factors)
    for _ in range(STARTING_ROUNDS):
        found = balanced(found)
        for place, name in enumerate(names):
            others = [k for k in range(len(names)) if k != place]
            rest = ",".join(names[k] for k in others)
            right = einsum(f"mcij,{rest}->r{name.replace('r', '')}", weight, *(found[k] for k in others))
            grams = [einsum(f"{names[k]},{names[k].replace('r', 's')}->rs", found[k], found[k]) for k in others]
            gram = np.prod(grams, axis=0)
            gram = gram + max(_RIDGE * float(np.trace(gram)) / len(gram), 1e-300) * np.eye(len(gram))
            solved = np.linalg.solve(gram, right.reshape(len(gram), -1)).reshape(right.shape)
            found[place] = np.moveaxis(solved, 0, name.index("r"))
    return found


def every_tap(weight: Float, *, split: bool) -> list[Float]:
    """Products that are exact: one for every tap of every input, or of every output where these are fewer."""
    outputs, inputs, height, width = weight.shape
    fewer, taps = min(outputs, inputs), height * width
    tap = np.tile(np.eye(taps), (fewer, 1)).reshape(fewer * taps, height, width)
    each = np.repeat(np.eye(fewer), taps, axis=0)
    if inputs <= outputs:
        first, last = weight.reshape(outputs, -1), each
    else:
        first, last = each.T, weight.transpose(0, 2, 3, 1).reshape(-1, inputs)
    return [first, tap.max(axis=2), tap.max(axis=1), last] if split else [first, tap, last]


def balanced(factors: list[Float]) -> list[Float]:
    """The same products with the norms of every component's factors alike; the first is [M, rank], others [rank, ...].

    Components that nearly cancel have norms far beyond the weight's, and their own must not add to that.
    """
    turned = [factors[0].T, *factors[1:]]
    norms = np.stack([_norms(factor) for factor in turned])
    alike = np.exp(np.log(np.maximum(norms, 1e-150)).mean(axis=0))
    scaled = [
        f * (alike / np.maximum(n, 1e-150)).reshape(-1, *(1,) * (f.ndim - 1))
        for f, n in zip(turned, norms, strict=True)
    ]
    return [scaled[0].T, *scaled[1:]]


def _norms(factor: Float) -> Float:
    """Of every component, which come first."""
    norms: Float = np.linalg.norm(factor.reshape(len(factor), -1), axis=1)
    return norms
