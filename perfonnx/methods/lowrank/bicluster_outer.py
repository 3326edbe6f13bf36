"""Biclustering with outer products in every block (Denton et al., arXiv 1404.0736, section 3.2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perfonnx.methods.lowrank.blocks import Biclustered
from perfonnx.methods.lowrank.cp import every_tap
from perfonnx.methods.lowrank.form import Form, Part
from perfonnx.methods.lowrank.multilinear import einsum, fit

Float = NDArray[np.float64]

TERM_ROUNDS = 6
"""Rounds over a new term's factors."""

_TERM = "mr,rij,rc->mcij"


@dataclass(frozen=True)
class BiclusterOuter(Biclustered):
    """In every block `rank` products of a mixture of its inputs, a filter for it, and a weight for each output."""

    NAME = "bicluster-outer"
    SUMMARY = "blocks of inputs and outputs, each a sum of outer products: 1x1, depthwise, 1x1"
    PLACE = 22
    SPEC = "hgmr,hgrij,hgrc->hmgcij"

    def full(self, form: Form) -> int:
        """See `LowRank.full`."""
        return min(self.block(form)) * form.taps

    def ranks_of_block(self, form: Form, rank: int) -> tuple[int, int]:
        """See `Biclustered.ranks_of_block`."""
        return rank, rank

    def core(self, form: Form, rank: int) -> Part:
        """See `Biclustered.core`."""
        channels = self.input_groups * self.output_groups * rank
        return Part("core", (channels, 1, *form.kernel), replace(form.attributes, group=channels))

    def start(self, block: Float, rank: int) -> Sequence[Float]:
        """See `Biclustered.start`: term by term on what the others leave."""
        if rank == min(block.shape[:2]) * block.shape[2] * block.shape[3]:
            return every_tap(block, split=False)
        left = block
        terms = []
        for _ in range(rank):
            term = _one_term(left)
            left = left - einsum(_TERM, *term)
            terms.append(term)
        outputs, core, inputs = zip(*terms, strict=True)
        return [np.concatenate(outputs, axis=1), np.concatenate(core), np.concatenate(inputs)]


def _one_term(block: Float) -> list[Float]:
    """The nearest product of one component, from the singular vectors of the outputs' side."""
    _, _, right = np.linalg.svd(block.reshape(len(block), -1), full_matrices=False)
    inputs, _, taps = np.linalg.svd(right[0].reshape(block.shape[1], -1), full_matrices=False)
    start = [np.ones((len(block), 1)), taps[:1].reshape(1, *block.shape[2:]), inputs[:, :1].T]
    return fit(_TERM, start, block, lambda w: w, rounds=TERM_ROUNDS)
