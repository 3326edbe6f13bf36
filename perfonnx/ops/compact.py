"""Compact: the rows of a map at some positions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfonnx.ops import rows
from perfonnx.ops.base import Default, Given, Inference, Input, Known, Operator, refuse
from perfonnx.ops.bodies import FunctionBuilder

DOC = """Rows of X [N, C, H, W] at the flat positions `sites` (all of them where absent), channels last. A map of
another height or width than `shape` is an error: its positions would be other ones."""


def _infer(node: Inference) -> None:
    dims = node.dims("X")
    if dims is None:
        return
    if len(dims) != 4:
        refuse(f"X must have rank 4, not {len(dims)}")
    sizes = [d.dim_value for d in dims[2:] if d.HasField("dim_value")]
    wanted = node.map_size("shape")
    if wanted is not None and len(sizes) == 2 and not _fits(sizes, wanted):
        refuse(_misfit(sizes, wanted))
    rows.infer_rows(node, channels=dims[1], positions=sizes[0] * sizes[1] if len(sizes) == 2 else None)


def _fits(sizes: Sequence[int], wanted: Sequence[int]) -> bool:
    return all(other in (0, size) for size, other in zip(sizes, wanted, strict=True))


def _misfit(sizes: Sequence[int], wanted: Sequence[int]) -> str:
    return f"X is {sizes[0]} x {sizes[1]}, but the layer was made for {wanted[0]} x {wanted[1]}"


def _compute(given: Given) -> NDArray[Any]:
    """Raises `ValueError` for a map of another size than `shape`."""
    x, shape = given["X"], given["shape"]
    if shape is not None and not _fits(x.shape[2:], shape.tolist()):
        raise ValueError(_misfit(x.shape[2:], shape.tolist()))
    return rows.take_sites(x, given["sites"])


def _body(f: FunctionBuilder, _: Collection[str]) -> str:
    return rows.body_rows(f, "X", "sites", "shape")


def _map_size(known: Known) -> NDArray[np.int64]:
    """Height and width of the map; 0 where they are not known."""
    return np.array([size or 0 for size in known("X")[1][2:]], np.int64)


COMPACT = Operator(
    name="Compact",
    doc=DOC,
    inputs=(
        Input("X", "T", "Map [N, C, H, W]."),
        rows.sites("[P], flat positions y*W+x; absent: all."),
        rows.map_size(
            "shape",
            "[2]: H, W that sites were made for; absent or 0: any.",
            optional=True,
            default=Default("shape", _map_size),  # nodes from a version that did not ask for it have none
        ),
    ),
    output=Input("S", "T", "Rows [N, P, C]."),
    infer=_infer,
    compute=_compute,
    body=_body,
    lowered=True,
)
