"""Masks from files: what is read, and that everything else is refused in one line."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfonnx.errors import PerfonnxError
from perfonnx.masks import ANY_LAYER, load_masks, mask_from_file

MASK = np.array([[True, False, True], [False, False, True]])


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int64, np.float16, np.float32, np.float64])
def test_npy_is_for_every_layer(tmp_path: Path, dtype: type) -> None:
    np.save(tmp_path / "m.npy", MASK.astype(dtype))
    masks = load_masks(tmp_path / "m.npy")
    assert list(masks) == [ANY_LAYER]
    assert masks[ANY_LAYER].dtype == np.bool_
    np.testing.assert_array_equal(mask_from_file(masks, "conv7", (2, 3)), MASK)


def test_npz_is_by_layer_name(tmp_path: Path) -> None:
    names = {"conv1": MASK, "/features/3/Conv": ~MASK, "block.2:0": np.ones((4, 4), np.int8)}
    np.savez_compressed(tmp_path / "m.npz", allow_pickle=True, **names)
    masks = load_masks(str(tmp_path / "m.npz"))
    assert set(masks) == set(names)
    np.testing.assert_array_equal(mask_from_file(masks, "/features/3/Conv", (2, 3)), ~MASK)


def test_a_layer_without_mask() -> None:
    with pytest.raises(PerfonnxError, match="layer 'conv2': the mask file has no array of this name"):
        mask_from_file({"conv1": MASK}, "conv2", (2, 3))


def test_a_mask_that_does_not_fit() -> None:
    with pytest.raises(PerfonnxError, match="layer 'conv1': its mask is 2x3; its output map is 3x2"):
        mask_from_file({"conv1": MASK}, "conv1", (3, 2))


def test_a_mask_without_sites() -> None:
    with pytest.raises(PerfonnxError, match="layer 'conv1': its mask has no site"):
        mask_from_file({ANY_LAYER: np.zeros((2, 3), np.bool_)}, "conv1", (2, 3))


@pytest.mark.parametrize(
    "array",
    [
        np.full((2, 2), np.nan),
        np.array([[0.0, 0.5]]),
        np.array([[0, 2]]),
        np.array([[0, -1]]),
        np.ones(4, np.bool_),
        np.ones((1, 1, 2, 2)),
        np.ones((0, 3)),
        np.array([["a", "b"]]),
        np.ones((2, 2), np.complex64),
        np.array(True),
    ],
    ids=str,
)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_arrays_that_are_no_mask(tmp_path: Path, array: np.ndarray, suffix: str) -> None:
    path = tmp_path / f"m.{suffix}"
    if suffix == "npy":
        np.save(path, array)
    else:
        np.savez(path, fine=MASK, wrong=array)
    refuse(path)


def test_pickles_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.array([[True, None]], dtype=object), allow_pickle=True)
    refuse(tmp_path / "m.npy")
    np.savez(tmp_path / "m.npz", conv=np.array([[True, None]], dtype=object))
    refuse(tmp_path / "m.npz")


def test_files_that_are_something_else(tmp_path: Path) -> None:
    path = tmp_path / "m.npy"
    refuse(path)  # missing
    refuse(tmp_path)  # a folder
    for content in (b"", b"\n", b"not a mask\n", b"\x80\x04K\x01.", b"PK\x03\x04", b"\x93NUMPY", bytes(1000)):
        path.write_bytes(content)
        refuse(path)
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        pass
    refuse(tmp_path / "m.npz")
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refuse(tmp_path / "m.npz")


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_every_truncation_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m.{suffix}"
    if suffix == "npy":
        np.save(path, MASK)
    else:
        np.savez_compressed(path, conv=MASK)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refuse(path)


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 400), value=st.integers(0, 255), suffix=st.sampled_from(["npy", "npz"]))
def test_damage_never_escapes(tmp_path_factory: pytest.TempPathFactory, at: int, value: int, suffix: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"damaged.{suffix}"
    if suffix == "npy":
        np.save(path, MASK)
    else:
        np.savez_compressed(path, conv=MASK)
    content = bytearray(path.read_bytes())
    content[at % len(content)] = value
    path.write_bytes(content)
    try:
        masks = load_masks(path)
    except PerfonnxError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert all(mask.ndim == 2 and mask.dtype == np.bool_ for mask in masks.values())


def refuse(path: Path) -> None:
    """Checks that the file is refused by name and in one line."""
    with pytest.raises(PerfonnxError) as caught:
        load_masks(path)
    assert str(caught.value).startswith(f"mask file {path}")
    assert "\n" not in str(caught.value)
