"""A mask is one file: an invented one is found, listed in its place, and computes layers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from perfonnx.masks.request import named
from perfonnx.masks.uniform import uniform_mask
from tests.passes import nets

INVENTED = """
import numpy as np

from perfonnx.masks.request import Mask, MaskRequest, named


@named("top-half", place=15)
def top_half_mask(request: MaskRequest) -> Mask:
    mask = np.zeros(request.shape, np.bool_)
    mask[: -(-request.shape[0] // 2)] = True
    return mask
"""

RUN = """
import importlib.util, sys
folder, *arguments = sys.argv[1:]
spec = importlib.util.find_spec("perfonnx.masks")
spec.submodule_search_locations.append(folder)
masks = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = masks
spec.loader.exec_module(masks)
from perfonnx.cli import main
sys.exit(main(arguments))
"""
"""The command line where the package of masks has a file more."""


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN, folder, *arguments]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)


def test_a_mask_is_one_file(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "top_half.py").write_text(INVENTED)
    source, target = tmp_path / "m.onnx", tmp_path / "o.onnx"
    onnx.save(nets.model([nets.conv("x", "y", "w", name="conv")], {"w": nets.values(8, 3, 3, 3)}), source)
    rewrite = ("rewrite", source, target, "--method", "perforate", "--layout", "nchw", "--rate", ".5", "--mask")
    done = run(tmp_path / "masks", *rewrite, "top-half")
    assert done.returncode == 0, done.stderr
    (ours,) = nets.ours(onnx.load(target))
    (mask,) = (onnx.numpy_helper.to_array(i) for i in onnx.load(target).graph.initializer if i.name == ours.input[3])
    height = mask.shape[0]
    np.testing.assert_array_equal(mask, np.repeat(np.arange(height) < height / 2, mask.shape[1]).reshape(mask.shape))
    refused = run(tmp_path / "masks", *rewrite, "invented")
    assert refused.returncode == 2
    assert "choose from uniform, top-half, grid, grid-square," in refused.stderr
    helped = run(tmp_path / "masks", "rewrite", "--help")
    assert "uniform, top-half, grid, grid-square," in " ".join(helped.stdout.split())


def test_two_masks_of_a_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two masks are called 'uniform'"):
        named("uniform", place=5)(uniform_mask)
