"""A chain of three convolutions, in a message or with external data, and what lies in a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, NodeProto

from perfonnx.model.tensors import is_external
from tests.passes import nets
from tests.passes.nets import node

LAYERS = ("first", "second", "third")


def chain(**options: Any) -> ModelProto:
    """Three convolutions with Relu behind them."""
    nodes: list[NodeProto] = []
    for i, name in enumerate(LAYERS):
        nodes.append(nets.conv("x" if i == 0 else f"r{i - 1}", f"c{i}", f"w{i}", name=name))
        nodes.append(node("Relu", [f"c{i}"], ["y" if i == 2 else f"r{i}"]))
    weights = {f"w{i}": nets.values(8, 3 if i == 0 else 8, 3, 3, seed=i) for i in range(3)}
    return nets.model(nodes, weights, **options)


def rewrite_second(model: ModelProto, **options: Any) -> ModelProto:
    return nets.rewrite(model, rate=0.5, only=["^second$"], **options).proto


def as_bytes(message: Any) -> bytes:
    return bytes(message.SerializeToString(deterministic=True))


def external(directory: Path, name: str = "m.onnx", location: str = "weights/all.bin") -> tuple[Path, ModelProto]:
    """A model on disk with external data, and the same model whole."""
    model = chain()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / location).parent.mkdir(exist_ok=True)
    copy = ModelProto()
    copy.CopyFrom(model)
    onnx.save_model(copy, directory / name, save_as_external_data=True, location=location, size_threshold=0)
    assert all(is_external(t) for t in onnx.load(directory / name, load_external_data=False).graph.initializer)
    return directory / name, model


def whole(path: Path) -> ModelProto:
    """A model from disk with its data, after onnx has checked the files."""
    onnx.checker.check_model(path, full_check=True)
    return onnx.load(path)


def listing(directory: Path) -> dict[str, tuple[int, bytes]]:
    """All files below a directory, by name, with mode and content."""
    return {
        str(p.relative_to(directory)): (p.stat().st_mode, p.read_bytes() if p.is_file() else b"")
        for p in sorted(directory.rglob("*"))
    }
