"""Files of samples: arrays and folders, and every mistake a user can make."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from perfonnx.data.formats import ImageFormat
from perfonnx.data.labels import load_labels
from perfonnx.errors import PerfonnxError
from tests.data.cases import input_of, load_feeds


def test_npz_by_input_name_in_batches(tmp_path: Path) -> None:
    x, y = np.arange(14, dtype=np.float64).reshape(7, 2), np.arange(7, dtype=np.int32)
    np.savez(tmp_path / "d.npz", x=x, y=y, more=x)
    feeds = load_feeds(tmp_path / "d.npz", [input_of([3, 2], np.float16), input_of([3], np.int64, "y")])
    first, second = feeds
    assert first["x"].dtype == np.float16
    assert first["y"].dtype == np.int64
    np.testing.assert_array_equal(first["x"], x[:3])
    np.testing.assert_array_equal(second["y"], [3, 4, 5])


def test_npz_with_one_array_of_any_name_beside_labels(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, images=np.ones((5, 2), np.float32), y=np.array([3, 1, 4, 1, 5], np.uint8))
    assert len(list(load_feeds(path, [input_of(["N", 2])]))) == 5
    labels = load_labels(path, 3)
    assert labels is not None
    assert labels.tolist() == [3, 1, 4]
    with pytest.raises(PerfonnxError, match="5 labels for 6 samples"):
        load_labels(path, 6)


def test_npy_and_shapes_choose_the_batch(tmp_path: Path) -> None:
    data = np.random.default_rng(0).standard_normal((4, 1, 5, 6)).astype(np.float32)
    np.save(tmp_path / "d.npy", data)
    feeds = load_feeds(tmp_path / "d.npy", [input_of(["N", 1, "H", "W"])], shapes={"x": (2, 1, 5, 6)})
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in feeds]), data)
    # Open height and width take the data's own.
    assert next(load_feeds(tmp_path / "d.npy", [input_of(["N", 1, "H", "W"])]))["x"].shape == (1, 1, 5, 6)


@pytest.mark.parametrize("channels_last", [True, False])
def test_arrays_of_8_bit_images_are_normalized(channels_last: bool, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", x=pixels if channels_last else pixels.transpose(0, 3, 1, 2))
    image_format = ImageFormat(scale=1.0, mean=(104, 117, 123), std=(2,), bgr=True)
    (feed,) = load_feeds(tmp_path / "d.npz", [input_of([2, 3, 4, 5])], image_format=image_format)
    expected = (pixels[..., ::-1].astype(np.float64) - [104, 117, 123]) / 2
    np.testing.assert_allclose(feed["x"], expected.transpose(0, 3, 1, 2), rtol=1e-6)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 2, 2), np.float32), r"has shape \[4, 2, 2\]: input 'x' \[N, 2\] needs 2 dimensions"),
        (np.zeros((4, 3), np.float32), r"has shape \[4, 3\]: it does not fit input 'x'"),
        (np.zeros((4, 2), np.int64), "has type int64: input 'x' needs float32"),
        (np.array([["a", "b"]]), "has type <U1"),
        (np.zeros((0, 2), np.float32), "has no samples"),
        (np.float32(1), r"has shape \[\]"),
    ],
)
def test_arrays_that_do_not_fit(array: np.ndarray, message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=array)
    with pytest.raises(PerfonnxError, match=message):
        load_feeds(tmp_path / "d.npz", [input_of(["N", 2])])


def test_nan_is_found_and_located(tmp_path: Path) -> None:
    data = np.zeros((6, 2), np.float32)
    data[3, 1] = np.nan
    np.save(tmp_path / "d.npy", data)
    feeds = load_feeds(tmp_path / "d.npy", [input_of([2, 2])])
    next(feeds)
    with pytest.raises(PerfonnxError, match="samples 2 to 3: has NaN"):
        next(feeds)


def test_integers_that_do_not_fit(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.array([[1], [300]]))
    feeds = load_feeds(tmp_path / "d.npy", [input_of([2, 1], np.uint8)])
    with pytest.raises(PerfonnxError, match="values outside uint8"):
        next(feeds)


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    spec = [input_of([1, 2])]
    good = tmp_path / "good.npz"
    np.savez(good, x=np.zeros((400, 2), np.float32))
    cases = {
        "none.npz": (None, "no such file or directory"),
        "text.npz": (b"hello", "cannot be read as .npz"),
        "cut.npz": (good.read_bytes()[:200], "is damaged|cannot be read"),
        "empty.npy": (b"", "cannot be read"),
        "model.bin": (b"1", "give a directory, an .npz file, an .npy file or"),
    }
    for name, (content, message) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(PerfonnxError, match=message) as caught:
            load_feeds(tmp_path / name, spec)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(PerfonnxError, match=r"cannot be read as .npy"):
        load_feeds(tmp_path / "d.npy", [input_of([1])])


def test_several_inputs_need_one_array_each(tmp_path: Path) -> None:
    specs = [input_of([1, 2]), input_of([1, 2], name="y")]
    np.savez(tmp_path / "d.npz", x=np.zeros((3, 2), np.float32))
    np.savez(tmp_path / "e.npz", x=np.zeros((3, 2), np.float32), y=np.zeros((4, 2), np.float32))
    np.save(tmp_path / "d.npy", np.zeros((3, 2), np.float32))
    with pytest.raises(PerfonnxError, match="no array for input 'y', it has 'x'"):
        load_feeds(tmp_path / "d.npz", specs)
    with pytest.raises(PerfonnxError, match="differ in their number of samples"):
        load_feeds(tmp_path / "e.npz", specs)
    with pytest.raises(PerfonnxError, match="several inputs \\('x', 'y'\\)"):
        load_feeds(tmp_path / "d.npy", specs)
    with pytest.raises(PerfonnxError, match="several inputs"):
        load_feeds(tmp_path, specs)


def test_directory_of_arrays(tmp_path: Path) -> None:
    for index in range(3):
        np.save(tmp_path / f"{index}.npy", np.full((1, 2) if index else (2,), index, np.float64))
    (tmp_path / "labels.txt").write_text("7\n8\n9\n0\n")
    feeds = load_feeds(tmp_path, [input_of(["N", 2])])
    assert [feed["x"].tolist() for feed in feeds] == [[[0, 0]], [[1, 1]], [[2, 2]]]
    labels = load_labels(tmp_path, 3)
    assert labels is not None
    assert labels.tolist() == [7, 8, 9]
    np.save(tmp_path / "3.npy", np.zeros(3))
    with pytest.raises(PerfonnxError, match=r"3.npy has shape \[3\]: one sample of input 'x' has \[2\]"):
        list(load_feeds(tmp_path, [input_of(["N", 2])]))


def test_directories_that_give_nothing(tmp_path: Path) -> None:
    spec = [input_of([1, 3, 4, 4])]
    with pytest.raises(PerfonnxError, match=r"no image \(.jpg, .*\) and no .npy file"):
        load_feeds(tmp_path, spec)
    (tmp_path / "broken.JPG").write_bytes(b"not an image")
    with pytest.raises(PerfonnxError, match=r"broken.JPG: cannot be read"):
        next(load_feeds(tmp_path, spec))
    np.save(tmp_path / "a.npy", np.zeros((3, 4, 4)))
    with pytest.raises(PerfonnxError, match=r"both images and .npy files"):
        load_feeds(tmp_path, spec)
