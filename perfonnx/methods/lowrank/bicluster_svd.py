"""Biclustering with singular values on both sides of every block (Denton et al., arXiv 1404.0736, section 3.2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perfonnx.methods.base import setting
from perfonnx.methods.lowrank.blocks import Biclustered
from perfonnx.methods.lowrank.form import Form, Part
from perfonnx.methods.lowrank.tucker import check_input_rank, input_rank_of, two_sided

Float = NDArray[np.float64]


@dataclass(frozen=True)
class BiclusterSvd(Biclustered):
    """In every block 1x1 to `input_rank`, kh x kw to `rank`, and 1x1 to its outputs.

    Attributes:
        input_rank: K1 of the paper; 0: the same part of a block's inputs as `rank`, K2, is of its outputs.
    """

    NAME = "bicluster-svd"
    SUMMARY = "blocks of inputs and outputs, each by singular values on both sides"
    PLACE = 21
    SPEC = "hgma,hgabij,hgbc->hmgcij"

    input_rank: int = setting(0, "rank on the input side, for tucker and bicluster-svd", "K")

    def check(self, where: str) -> None:
        """See `Method.check`."""
        super().check(where)
        check_input_rank(self.input_rank, where)

    def full(self, form: Form) -> int:
        """See `LowRank.full`."""
        return self.block(form)[0]

    def ranks_of_block(self, form: Form, rank: int) -> tuple[int, int]:
        """See `Biclustered.ranks_of_block`."""
        outputs, inputs = self.block(form)
        return rank, input_rank_of(self.input_rank, rank, inputs, outputs)

    def core(self, form: Form, rank: int) -> Part:
        """See `Biclustered.core`."""
        blocks, (outer, inner) = self.input_groups * self.output_groups, self.ranks_of_block(form, rank)
        return Part("core", (blocks * outer, inner, *form.kernel), replace(form.attributes, group=blocks))

    def start(self, block: Float, rank: int) -> Sequence[Float]:
        """See `Biclustered.start`."""
        outputs, inputs = block.shape[:2]
        return two_sided(block, rank, input_rank_of(self.input_rank, rank, inputs, outputs))
