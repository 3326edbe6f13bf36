"""What a lowering rule is: which operators it takes, when they can work on rows, and what it makes of them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import TensorProto

from perfonnx.model.workspace import Workspace
from perfonnx.passes.base import Skip

if TYPE_CHECKING:
    from perfonnx.passes.lower import Lowering

Table: TypeAlias = "NDArray[np.int32]"


@dataclass(frozen=True)
class Rows:
    """A map that stands as rows.

    Attributes:
        tensor: The rows [N, P, C].
        count: P.
        source: int32 [H*W], the row of each position; -1: zeros.
        shape: (H, W).
        channels: C.
        elem_type: onnx element type.
        batch: First dimension.
    """

    tensor: gs.Tensor
    count: int
    source: Table
    shape: tuple[int, int]
    channels: int
    elem_type: int
    batch: int | str | None

    @property
    def has_fill(self) -> bool:
        """Whether some position has no row."""
        return bool((self.source < 0).any())

    def same_sampling(self, other: Rows) -> bool:
        """Whether row i of one stands for the positions that row i of the other stands for."""
        return self.count == other.count and np.array_equal(self.source, other.source)


@dataclass(frozen=True)
class Match:
    """A node that is on rows now, and what became of it."""

    what: str


def skip(node: gs.Node, reason: str) -> Skip:
    """A node that stays on maps, and the reason, as a person says it."""
    return Skip(str(node.name or node.outputs[0].name), reason)


@dataclass(frozen=True)
class Rule:
    """How nodes that rows reach work on them.

    Attributes:
        takes: Names of operators.
        apply: Emits what takes the place of the node, or changes nothing and says why it stays on maps.
        obstacle: Why a node cannot work on rows, whatever rows reach it; None where it can.
        domain: That of the operators.
        joins: Whether all inputs are maps, not the first alone.
        keeps_rows: Whether the result has a row for each row that is read, and no others.
        ends: Whether the result is no map, so that rows end here.
    """

    takes: Collection[str]
    apply: Callable[[Lowering, gs.Node], Match | Skip]
    obstacle: Callable[[Workspace, gs.Node], str | None] = lambda _workspace, _node: None
    domain: str = ""
    joins: bool = False
    keeps_rows: bool = True
    ends: bool = False


NO_MAP = "its maps are not float32 or float16 with channels, height and width that are known"
NO_WORK_SAVED = "there are as many rows as positions, and no sampled layer follows that would read them"
POSITIONS_WITHOUT_ROWS = "positions without a row hold zeros, and it does not keep them zero"


def is_map(workspace: Workspace, tensor: gs.Tensor) -> bool:
    """True for a float32 or float16 tensor of rank 4 whose channels, height and width are known."""
    known = workspace.types.get(tensor.name)
    return (
        known is not None
        and known.shape is not None
        and len(known.shape) == 4
        and all(isinstance(d, int) for d in known.shape[1:])
        and known.elem_type in (TensorProto.FLOAT, TensorProto.FLOAT16)
    )
