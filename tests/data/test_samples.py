"""Samples: batches of images, arrays and anything iterable, and what of them is used."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import perfonnx
from perfonnx.data.formats import PRESETS, ImageFormat
from perfonnx.data.inputs import model_inputs
from perfonnx.data.samples import Mirrored, Samples, count_of
from perfonnx.errors import PerfonnxError
from tests import real_models
from tests.data.cases import IMAGE, input_of, pictures


def reds(samples: Samples) -> list[int]:
    return [round(float(value) * 25.5) for batch in samples for value in batch.feeds["x"][:, 0, 0, 0]]


def test_a_folder_of_images(tmp_path: Path) -> None:
    samples = Samples.load(pictures(tmp_path), [IMAGE], batch=4)
    batches = list(samples)
    assert len(samples) == 6
    assert [batch.feeds["x"].shape for batch in batches] == [(4, 3, 8, 8), (2, 3, 8, 8)]
    assert batches[0].names == ["cats/001_a.png", "cats/003_a.png", "cats/005_a.png", "dogs/000_a.png"]
    assert samples.labels is None
    assert reds(samples) == reds(samples) == [1, 3, 5, 0, 2, 4]


def test_images_are_read_when_they_are_iterated(tmp_path: Path) -> None:
    samples = Samples.load(pictures(tmp_path), [IMAGE], batch=2)
    (tmp_path / "dogs" / "002_a.png").write_bytes(b"no image")
    batches = iter(samples)
    next(batches)
    next(batches)
    with pytest.raises(PerfonnxError, match=r"002_a\.png: cannot be read"):
        next(batches)


def zipped(folder: Path, target: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(target, "w", compression) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return target


def test_feeds_are_counted_without_reading(tmp_path: Path) -> None:
    samples = Samples.load(pictures(tmp_path), [IMAGE], batch=4)
    (tmp_path / "dogs" / "002_a.png").write_bytes(b"no image")
    assert count_of(samples.feeds()) == 6
    assert count_of(Mirrored(samples.feeds(), ["x"])) == 12
    assert count_of([{"x": np.zeros((3, 1))}, {"x": np.zeros((2, 1))}]) == 5


def test_mirror_images_follow() -> None:
    feed = {"x": np.arange(12).reshape(1, 1, 3, 4), "z": np.arange(4)}
    first, second = Mirrored([feed], ["x"])
    assert first is feed
    np.testing.assert_array_equal(second["x"], feed["x"][:, :, :, ::-1])
    np.testing.assert_array_equal(second["z"], feed["z"])


def test_a_zip_file_of_images_is_read_as_its_folder(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "data")
    (folder / "dogs" / "._000_a.png").write_bytes(b"what an operating system leaves")
    (folder / "notes.txt").write_text("no image")
    file = zipped(folder, tmp_path / "data.zip", zipfile.ZIP_DEFLATED)
    as_folder, as_zip = (list(Samples.load(data, [IMAGE], labels="folders", batch=4)) for data in (folder, file))
    for a, b in zip(as_folder, as_zip, strict=True):
        np.testing.assert_array_equal(a.feeds["x"], b.feeds["x"])
        assert a.names == b.names
        assert a.labels is not None
        assert b.labels is not None
        assert a.labels.tolist() == b.labels.tolist()


def test_zip_files_that_cannot_be_read(tmp_path: Path) -> None:
    file = zipped(pictures(tmp_path / "data", 2), tmp_path / "data.zip")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PerfonnxError, match=r"data\.zip: cannot be read as \.zip \(File is not a zip file\)"):
        Samples.load(file, [IMAGE])
    place = whole.index(b"IDAT") + 8
    file.write_bytes(whole[:place] + bytes(4) + whole[place + 4 :])
    with pytest.raises(PerfonnxError, match=r"image .*data\.zip/cats/001_a\.png: cannot be read"):
        list(Samples.load(file, [IMAGE]))
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", b"")
    with pytest.raises(PerfonnxError, match=r"data\.zip: no image \(\.jpg"):
        Samples.load(file, [IMAGE])
    with pytest.raises(PerfonnxError, match="several inputs"):
        Samples.load(file, [IMAGE, input_of(["N", 2], name="z")])


def test_some_samples_by_their_places(tmp_path: Path) -> None:
    samples = Samples.load(pictures(tmp_path), [IMAGE], labels="prefix", batch=2)
    batch = samples.shuffled(1).pick([4, 0, 5])
    wanted = samples.shuffled(1).labels
    assert wanted is not None
    assert batch.labels is not None
    assert batch.labels.tolist() == wanted[[4, 0, 5]].tolist()
    assert (batch.feeds["x"][:, 0, 0, 0] * 25.5).round().astype(int).tolist() == batch.labels.tolist()


def test_arrays(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(5), other=np.arange(5) + 10)
    np.save(tmp_path / "d.npy", x)
    for path in (tmp_path / "d.npz", tmp_path / "d.npy"):
        samples = Samples.load(path, [IMAGE], batch=2)
        np.testing.assert_array_equal(np.concatenate([b.feeds["x"] for b in samples]), x)
    assert Samples.load(tmp_path / "d.npz", [IMAGE]).labels is not None
    labels = Samples.load(tmp_path / "d.npz", [IMAGE], labels="other").labels
    assert labels is not None
    assert labels.tolist() == [10, 11, 12, 13, 14]


def test_an_iterable() -> None:
    items = [np.full((3, 8, 8), i, np.float64) for i in range(5)]
    for data in (items, np.stack(items), (item for item in items), [{"x": item} for item in items]):
        samples = Samples.load(data, [input_of(["N", 3, 8, 8], np.float16)], labels=range(5), batch=3)
        for _ in range(2):
            assert [b.feeds["x"][:, 0, 0, 0].tolist() for b in samples] == [[0, 1, 2], [3, 4]]
        assert all(b.feeds["x"].dtype == np.float16 for b in samples)
        assert [b.labels.tolist() for b in samples if b.labels is not None] == [[0, 1, 2], [3, 4]]


def test_a_fixed_batch_leaves_out_the_rest() -> None:
    data = np.zeros((7, 3, 8, 8), np.float32)
    samples = Samples.load(data, [input_of([2, 3, 8, 8])], batch=5)
    assert len(samples) == 6
    assert [len(b.names) for b in samples] == [2, 2, 2]
    with pytest.raises(PerfonnxError, match="too few samples for the model's batch of 2"):
        samples.take(1)


@pytest.mark.parametrize("dtype", [np.float16, np.uint8])
def test_other_input_types(dtype: Any, tmp_path: Path) -> None:
    samples = Samples.load(pictures(tmp_path), [input_of([1, 8, 8, 3], dtype)], image_format=ImageFormat(scale=1.0))
    values = [batch.feeds["x"] for batch in samples]
    assert all(v.dtype == dtype and v.shape == (1, 8, 8, 3) for v in values)
    assert [int(v[0, 0, 0, 0]) for v in values] == [10, 30, 50, 0, 20, 40]
    assert {int(v[0, 0, 0, 2]) for v in values} == {200}


def test_arrays_of_images_in_either_layout(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 6, 5)).astype(np.uint8)
    mean = ImageFormat(mean=(0.1, 0.2, 0.3))
    wanted = pixels.astype(np.float32) / 255 - np.array([0.1, 0.2, 0.3], np.float32)[:, None, None]
    for data in (pixels, pixels.transpose(0, 2, 3, 1)):
        for shape, order in (((None, 3, 6, 5), (0, 1, 2, 3)), ((None, 6, 5, 3), (0, 2, 3, 1))):
            np.save(tmp_path / "d.npy", data)
            (batch,) = Samples.load(tmp_path / "d.npy", [input_of(list(shape))], image_format=mean)
            np.testing.assert_allclose(batch.feeds["x"], wanted.transpose(order), atol=1e-6)


def test_subsets_are_disjoint_and_repeat(tmp_path: Path) -> None:
    samples = Samples.load(pictures(tmp_path, 20), [IMAGE], labels="prefix", batch=3)
    a, b = samples.split(7, 5, seed=3)
    again, _ = samples.split(7, 5, seed=3)
    other, _ = samples.split(7, 5, seed=4)
    assert (len(a), len(b)) == (7, 5)
    assert not set(reds(a)) & set(reds(b))
    assert reds(a) == reds(again) != reds(other)
    for part in (a, b, samples.shuffled(1), samples.take(4)):
        assert part.labels is not None
        assert reds(part) == part.labels.tolist()
    assert reds(samples.take(4)) == reds(samples)[:4]
    assert sorted(reds(samples.shuffled(1))) == sorted(reds(samples)) != reds(samples.shuffled(1))
    with pytest.raises(PerfonnxError, match="20 samples cannot be split into 15 and 6"):
        samples.split(15, 6)


def test_data_that_does_not_fit(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(PerfonnxError, match="no image"):
        Samples.load(tmp_path / "empty", [IMAGE])
    with pytest.raises(PerfonnxError, match="no such file or directory"):
        Samples.load(tmp_path / "nothing", [IMAGE])
    with pytest.raises(PerfonnxError, match=r"sample 1: float64 \[3, 8\] does not fit input 'x', float32 \[3, 8, 8\]"):
        list(Samples.load([np.zeros((3, 8, 8)), np.zeros((3, 8))], [IMAGE]))
    with pytest.raises(PerfonnxError, match="sample 0: nothing for input 'x'"):
        list(Samples.load([{"z": np.zeros((3, 8, 8))}], [IMAGE]))
    with pytest.raises(PerfonnxError, match="several inputs"):
        list(Samples.load([np.zeros((3, 8, 8))], [IMAGE, input_of(["N", 2], name="z")]))
    with pytest.raises(PerfonnxError, match="has no samples"):
        Samples.load([], [IMAGE])
    mixed = [np.zeros((3, 8, 8)), np.zeros((3, 9, 8))]
    with pytest.raises(PerfonnxError, match="differ in shape; use a batch of 1"):
        list(Samples.load(mixed, [input_of(["N", 3, "H", "W"])]))
    assert len(list(Samples.load(mixed, [input_of(["N", 3, "H", "W"])], batch=1))) == 2


@pytest.mark.parametrize(
    ("model", "data", "preset", "labels", "least"),
    [
        ("cifar10_resnet20", "cifar10_test_jpg_dev2000.npz", "imagenet", None, 0.7),
        ("imagenet_squeezenet_winml_fp32", "imagenet_sample", "imagenet-bgr-caffe", "prefix", 0.4),
    ],
)
def test_real_models_get_what_they_were_trained_on(
    model: str, data: str, preset: str, labels: str | None, least: float
) -> None:
    path, folder = real_models.path(model), real_models.DATA / "images" / data
    samples = Samples.load(folder, model_inputs(path), image_format=PRESETS[preset], labels=labels).shuffled().take(50)
    session = perfonnx.session(path)
    right = 0
    for batch in samples:
        scores = session.run(None, batch.feeds)[0].reshape(len(batch.names), -1)
        right += int((scores.argmax(axis=1) == batch.labels).sum())
    assert right / len(samples) >= least
