"""What a lowering rule is: which operators it takes, when they can work on rows, and what it makes of them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import TensorProto

from perfonnx.masks import Mask
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
        source: int32 [H*W], the row of each position; -1: zeros, or a position that is not needed.
        shape: (H, W).
        channels: C.
        elem_type: onnx element type.
        batch: First dimension.
        needed: bool [H, W], the positions that somebody reads; None: all.
    """

    tensor: gs.Tensor
    count: int
    source: Table
    shape: tuple[int, int]
    channels: int
    elem_type: int
    batch: int | str | None
    needed: Mask | None = None

    @property
    def has_fill(self) -> bool:
        """Whether some position that is needed has no row."""
        without = self.source < 0
        return bool((without if self.needed is None else without & self.needed.reshape(-1)).any())

    def at(self, needed: Mask) -> Rows:
        """The same where these positions [H, W] are needed."""
        if needed.all():
            return replace(self, needed=None)
        return replace(self, source=np.where(needed.reshape(-1), self.source, np.int32(-1)), needed=needed)

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
        ends: Whether the result of a node is no map, so that rows end here.
        reads: Given a node that has no obstacle, and the positions of its result that are needed, [OH, OW], the
            positions [H, W] that these read of its input, or of each map that it joins; None: all of them.
    """

    takes: Collection[str]
    apply: Callable[[Lowering, gs.Node], Match | Skip]
    obstacle: Callable[[Workspace, gs.Node], str | None] = lambda _workspace, _node: None
    domain: str = ""
    joins: bool = False
    keeps_rows: bool = True
    ends: Callable[[Workspace, gs.Node], bool] = lambda _workspace, _node: False
    reads: Callable[[Workspace, gs.Node, Mask], Mask] | None = None


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


def same_positions(_workspace: Workspace, _node: gs.Node, needed: Mask) -> Mask:
    """What operators read that make each position from the same one."""
    return needed


def map_size(workspace: Workspace, tensor: gs.Tensor) -> tuple[int, int]:
    """Height and width of a map."""
    known = workspace.types[tensor.name].shape
    assert known is not None
    height, width = (int(d) for d in known[2:])  # type: ignore[arg-type]
    return height, width


def window_positions(needed: Mask, strides: tuple[int, int], taps: NDArray[np.int64], shape: tuple[int, int]) -> Mask:
    """What windows at some positions read.

    Args:
        needed: bool [OH, OW].
        strides: Between windows.
        taps: [T, 2], from a position times the stride.
        shape: Of the map that is read.
    """
    read = np.zeros(shape, bool)
    at = np.argwhere(needed) * np.array(strides)
    for tap in taps:
        y, x = (at + tap).T
        inside = (y >= 0) & (y < shape[0]) & (x >= 0) & (x < shape[1])
        read[y[inside], x[inside]] = True
    return read


def numbered(mask: Mask) -> Table:
    """The number of each position that a mask [H, W] holds among them, int32 [H*W]; -1 for the others."""
    flat = mask.reshape(-1)
    return np.where(flat, np.cumsum(flat) - 1, -1).astype(np.int32)
