"""Large models, written tensor by tensor."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from perfonnx.model import files, streaming
from tests.passes import nets


def test_large_models_are_written_tensor_by_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written so is the message, whatever is streamed."""
    model = nets.model([nets.conv(y="y", b="b")], {"w": nets.values(4, 3, 3, 3), "b": nets.values(4)})
    model.metadata_props.add(key="k", value="v")
    loaded = files.load(model)
    files.save(loaded, tmp_path / "whole.onnx")
    monkeypatch.setattr(streaming, "_STREAMED", 100)  # the weight is larger, the bias smaller
    files.save(loaded, tmp_path / "streamed.onnx")
    assert onnx.load(tmp_path / "streamed.onnx") == onnx.load(tmp_path / "whole.onnx") == model
