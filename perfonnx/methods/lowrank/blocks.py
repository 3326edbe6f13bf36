"""Biclustered layers: blocks of outputs and inputs, each with factors of its own (Denton et al., arXiv 1404.0736)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perfonnx.errors import PerfonnxError
from perfonnx.methods.base import setting
from perfonnx.methods.lowrank.base import Approximation, Factors, LowRank
from perfonnx.methods.lowrank.clusters import equal_clusters
from perfonnx.methods.lowrank.form import Form, Order, Part, Piece, pointwise
from perfonnx.methods.lowrank.multilinear import einsum, fit

Float = NDArray[np.float64]

GROUPS = 2


@dataclass(frozen=True)
class Biclustered(LowRank):
    """Outputs and inputs are clustered into groups of one size; each pair of groups is a block.

    Attributes:
        input_groups: Groups of inputs, G.
        output_groups: Groups of outputs, H.
    """

    input_groups: int = setting(GROUPS, "groups of inputs, for bicluster methods (default 2)", "G")
    output_groups: int = setting(GROUPS, "groups of outputs, for bicluster methods (default 2)", "H")

    SPEC = ""
    """A block's product over factors of outputs, core and inputs, in einsum's notation: h and g are its groups."""

    def check(self, where: str) -> None:
        """See `Method.check`."""
        super().check(where)
        for name in ("input_groups", "output_groups"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise PerfonnxError(f"{where}: {name} {value!r} is not a whole number from 1 up")

    def unfit(self, form: Form) -> str | None:
        """See `LowRank.unfit`."""
        for count, groups, what in (
            (form.inputs, self.input_groups, "inputs"),
            (form.outputs, self.output_groups, "outputs"),
        ):
            if count % groups:
                return f"its {count} {what} are not {groups} groups of one size"
        return "its kernel is 1x1; svd is for those" if form.taps == 1 else None

    def block(self, form: Form) -> tuple[int, int]:
        """Outputs and inputs of a block."""
        return form.outputs // self.output_groups, form.inputs // self.input_groups

    @abstractmethod
    def ranks_of_block(self, form: Form, rank: int) -> tuple[int, int]:
        """What a block has between the core and its outputs, and between its inputs and the core."""

    @abstractmethod
    def core(self, form: Form, rank: int) -> Part:
        """The convolutions of all blocks, the groups of inputs before those of outputs."""

    @abstractmethod
    def start(self, block: Float, rank: int) -> Sequence[Float]:
        """Factors of a block's weight without data."""

    def pieces(self, form: Form, rank: int) -> list[Piece]:
        """See `LowRank.pieces`."""
        inner_groups, outer_groups, (outer, inner) = (
            self.input_groups,
            self.output_groups,
            self.ranks_of_block(form, rank),
        )
        blocks = inner_groups * outer_groups
        first = pointwise("inputs", blocks * inner, form.inputs, inner_groups)
        last = pointwise("outputs", form.outputs, inner_groups * outer, 1)
        last = replace(last, attributes=replace(last.attributes, group=outer_groups))
        found: list[Piece] = [first, self.core(form, rank)]
        if inner_groups > 1:
            found.insert(0, Order("clustered", form.inputs, form.inputs))
            if outer_groups > 1:
                found.append(Order("blocks", blocks * outer, blocks * outer))
        found.append(last)
        if outer_groups > 1:
            found.append(Order("order", form.outputs, form.outputs))
        return found

    def factors(self, problem: Approximation, form: Form, rank: int) -> Factors:
        """See `LowRank.factors`: block by block, then all of them together in the metric."""
        weight, (rows, columns) = problem.weight, self.block(form)
        outer_groups, inner_groups = self.output_groups, self.input_groups
        flat = weight.reshape(form.outputs, form.inputs, -1)
        outputs = equal_clusters(flat.reshape(form.outputs, -1), outer_groups)
        inputs = equal_clusters(flat.transpose(1, 0, 2).reshape(form.inputs, -1), inner_groups)
        back_outputs, back_inputs = np.argsort(outputs), np.argsort(inputs)

        def blocked(w: Float) -> Float:
            """[H, M/H, G, C/G, kh, kw]."""
            return w[outputs][:, inputs].reshape(outer_groups, rows, inner_groups, columns, *form.kernel)

        def whole(w: Float) -> Float:
            return w.reshape(weight.shape)[back_outputs][:, back_inputs]

        blocks = blocked(weight)
        found = [[self.start(blocks[h, :, g], rank) for g in range(inner_groups)] for h in range(outer_groups)]
        factors = [np.stack([np.stack([f[i] for f in row]) for row in found]) for i in range(3)]
        if np.square(blocks - einsum(self.SPEC, *factors)).sum() > 1e-12 * np.square(blocks).sum():
            factors = fit(self.SPEC, factors, blocks, lambda w: blocked(problem.metric.apply(whole(w))))
        product = whole(einsum(self.SPEC, *factors))
        return Factors(self._arrays(form, factors, outputs, inputs), product)

    def _arrays(
        self, form: Form, factors: Sequence[Float], outputs: NDArray[np.intp], inputs: NDArray[np.intp]
    ) -> list[NDArray[np.float64]]:
        """Of the pieces, from outputs [H, G, m, a], core [H, G, ...] and inputs [H, G, b, c]."""
        last, core, first = factors
        outer_groups, inner_groups, _, outer = last.shape
        blocks = inner_groups * outer_groups
        found = [
            first.transpose(1, 0, 2, 3).reshape(-1, first.shape[3])[:, :, None, None],
            core.swapaxes(0, 1).reshape(blocks * outer, -1, *form.kernel),
        ]
        if inner_groups > 1:
            found.insert(0, inputs)
            if outer_groups > 1:
                order = np.arange(blocks * outer).reshape(inner_groups, outer_groups, outer)
                found.append(order.transpose(1, 0, 2).reshape(-1))
        found.append(last.transpose(0, 2, 1, 3).reshape(form.outputs, -1)[:, :, None, None])
        if outer_groups > 1:
            found.append(np.argsort(outputs))
        return found
