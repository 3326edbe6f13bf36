"""Directories to run commands in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.cli.running import network
from tests.search import test_tune


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to work in, with a model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.onnx").write_bytes(network().SerializeToString())
    return tmp_path


@pytest.fixture
def with_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to work in, with a model and data."""
    monkeypatch.chdir(tmp_path)
    onnx.save(test_tune.network(), tmp_path / "m.onnx")
    np.savez(tmp_path / "data.npz", x=test_tune.samples(24).images, labels=np.arange(24) % 5)
    return tmp_path
