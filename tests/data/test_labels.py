"""Labels: where they come from, and what they must be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from perfonnx.data.labels import load_labels
from perfonnx.data.samples import Samples
from perfonnx.errors import PerfonnxError
from tests.data.cases import IMAGE, pictures


@pytest.mark.parametrize("text", ["1\ntwo\n", "1.5"])
def test_labels_must_be_integers(text: str, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(PerfonnxError, match="one integer per line"):
        load_labels(tmp_path, 1)


def test_data_without_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros(3))
    assert load_labels(tmp_path, 1) is None
    assert load_labels(tmp_path / "d.npz", 1) is None
    assert load_labels(tmp_path / "d.npy", 1) is None


def labels_of(path: Path, labels: Any) -> list[int]:
    found = Samples.load(path, [IMAGE], labels=labels).labels
    assert found is not None
    return found.tolist()


def test_labels(tmp_path: Path) -> None:
    data = pictures(tmp_path / "data")
    assert labels_of(data, "folders") == [0, 0, 0, 1, 1, 1]
    assert labels_of(data, "prefix") == [1, 3, 5, 0, 2, 4]
    for number, file in enumerate(sorted(data.rglob("*.png"))):
        file.with_stem(f"9_8_{number + 3}").write_bytes(file.read_bytes())
        file.unlink()
    assert labels_of(data, "suffix") == [3, 4, 5, 6, 7, 8]
    pictures(data)
    for file in data.rglob("9_8_*"):
        file.unlink()
    table = tmp_path / "labels.csv"
    names = ["cats/001_a.png", "003_a.png", "cats/005_a.png", "dogs/000_a.png", "002_a.png", "004_a.png"]
    table.write_text("file,class\n" + "\n".join(f"{name}, {7 + i}" for i, name in enumerate(names)))
    assert labels_of(data, table) == [7, 8, 9, 10, 11, 12]
    table.with_suffix(".tsv").write_text("\n".join(f"{name}\t{i}" for i, name in enumerate(names)))
    assert labels_of(data, table.with_suffix(".tsv")) == [0, 1, 2, 3, 4, 5]
    (data / "labels.txt").write_text("5 4 3 2 1 0")
    assert labels_of(data, None) == [5, 4, 3, 2, 1, 0]


def test_labels_that_are_not_there(tmp_path: Path) -> None:
    data = pictures(tmp_path / "data")
    table = tmp_path / "labels.csv"
    table.write_text("file,class\ncats/001_a.png,1\n")
    with pytest.raises(PerfonnxError, match=r"labels\.csv: no label for cats/003_a\.png"):
        Samples.load(data, [IMAGE], labels=table)
    table.write_text("cats/001_a.png,1\ncats/003_a.png,tiger\n")
    with pytest.raises(PerfonnxError, match=r"line 2: needs a file name and a whole number"):
        Samples.load(data, [IMAGE], labels=table)
    with pytest.raises(PerfonnxError, match=r"nowhere\.csv: cannot be read \(No such file"):
        Samples.load(data, [IMAGE], labels=tmp_path / "nowhere.csv")
    Image.new("RGB", (8, 8)).save(data / "a.png")
    with pytest.raises(PerfonnxError, match=r"a\.png does not start with a number"):
        Samples.load(data, [IMAGE], labels="prefix")
    with pytest.raises(PerfonnxError, match=r"a\.png does not end with an underscore and a number"):
        Samples.load(data, [IMAGE], labels="suffix")
    np.savez(tmp_path / "d.npz", x=np.zeros((3, 3, 8, 8), np.float32), y=np.zeros((3, 2)))
    with pytest.raises(PerfonnxError, match=r"only a folder or \.zip file of images has them"):
        Samples.load(tmp_path / "d.npz", [IMAGE], labels="folders")
    with pytest.raises(PerfonnxError, match="neither a file nor an array"):
        Samples.load(tmp_path / "d.npz", [IMAGE], labels="z")
    with pytest.raises(PerfonnxError, match="must be one integer per sample"):
        Samples.load(tmp_path / "d.npz", [IMAGE], labels="y")
    with pytest.raises(PerfonnxError, match="2 labels for 3 samples"):
        Samples.load(np.zeros((3, 3, 8, 8), np.float32), [IMAGE], labels=[1, 2])
