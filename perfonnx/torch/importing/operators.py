"""The table of operators: a small function for each, called with the node and its inputs."""

from __future__ import annotations

from typing import Any

from perfonnx.torch.importing import elementwise, layers, resizing, shapes, windows

OPERATORS: dict[str, Any] = {
    **elementwise.OPERATORS,
    **layers.OPERATORS,
    **resizing.OPERATORS,
    **shapes.OPERATORS,
    **windows.OPERATORS,
}

_READ_AS_NUMBERS = "Clip Expand Gather Pad Reshape Resize Slice Split Squeeze Tile Unsqueeze Upsample"
SETTINGS = {
    **dict.fromkeys(_READ_AS_NUMBERS.split(), range(1, 8)),
    **{name: range(1, 8) for name in OPERATORS if name.startswith("Reduce")},
    "ConstantOfShape": range(8),
}
"""Positions of inputs that are read as numbers, so that constant ones stay on the CPU."""
