"""Feeds: shapes from models with open dimensions, arrays and images from files, and every mistake a user can make."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from perfonnx.data import sources as feeds
from perfonnx.data.samples import Samples
from perfonnx.data.sources import (
    Feed,
    ImageFormat,
    InputSpec,
    input_specs,
    load_labels,
    parse_input_shapes,
    random_feeds,
    resolve_shapes,
)
from perfonnx.errors import PerfonnxError


def _spec(shape: Sequence[int | str | None], dtype: type = np.float32, name: str = "x") -> InputSpec:
    return InputSpec(name, tuple(shape), np.dtype(dtype))


def load_feeds(path: Path, specs: Sequence[InputSpec], **settings: Any) -> Iterator[Feed]:
    """The feeds of a file's or directory's samples, one by one where the model leaves its batch open."""
    return iter(Samples.load(path, specs, batch=1, **settings).feeds())


class _Value:
    """Like onnxruntime's NodeArg."""

    def __init__(self, name: str, shape: Sequence[int | str | None], type: str) -> None:
        self.name, self.shape, self.type = name, shape, type


# --- shapes ----------------------------------------------------------------------------------------------------------


def test_parse_input_shapes() -> None:
    parsed = parse_input_shapes(["x:1,3,224,224", "net/input:0:1,8", "n:0"])
    assert parsed == {"x": (1, 3, 224, 224), "net/input:0": (1, 8), "n": (0,)}


@pytest.mark.parametrize("text", ["x", "x:", ":1,2", "x:1,-2", "x:1,,2", "x:1x3", "x:1,a b"])
def test_parse_input_shapes_refuses(text: str) -> None:
    with pytest.raises(PerfonnxError, match="write NAME:1,3,224,224"):
        parse_input_shapes([text])


def test_parse_input_shapes_refuses_a_second_time() -> None:
    with pytest.raises(PerfonnxError, match="'x' is given twice"):
        parse_input_shapes(["x:1", "x:2"])


def test_open_batch_is_one_and_given_shapes_win() -> None:
    specs = [_spec(["N", 3, "H", "W"]), _spec([None, 4], name="y"), _spec([], name="scalar")]
    assert resolve_shapes(specs, {"x": (2, 3, 8, 9)}) == {"x": (2, 3, 8, 9), "y": (1, 4), "scalar": ()}


@pytest.mark.parametrize(
    ("shape", "flag"),
    [
        (["N", 3, "H", "W"], "--input-shape x:1,3,224,224"),
        ([2, 3, 48, None], "--input-shape x:2,3,48,224"),
        ([1, "C", 8, 8], "--input-shape x:1,224,8,8"),
    ],
)
def test_open_dimensions_name_the_flag(shape: list[int | str | None], flag: str) -> None:
    with pytest.raises(PerfonnxError, match=flag):
        random_feeds([_spec(shape)], n=1)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"z": (1, 3)}, "'z': the model's inputs are 'x'"),
        ({"x": (1, 3)}, "x:1,3 contradicts"),
        ({"x": (1, 4, 8, 8)}, "contradicts the model's \\[N, 3, H, W\\]"),
    ],
)
def test_wrong_shapes_are_refused(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(PerfonnxError, match=message):
        random_feeds([_spec(["N", 3, "H", "W"])], n=1, shapes=shapes)


def test_input_specs_reads_types_and_refuses_strings() -> None:
    specs = input_specs([_Value("a", ["N", 3], "tensor(float16)"), _Value("b", [], "tensor(int64)")])
    assert specs == [_spec(["N", 3], np.float16, "a"), _spec([], np.int64, "b")]
    with pytest.raises(PerfonnxError, match=r"input 's' has type tensor\(string\)"):
        input_specs([_Value("s", [1], "tensor(string)")])


# --- random ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype",
    [np.float16, np.float32, np.float64, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.bool_],
)
def test_random_feeds_of_every_type(dtype: type) -> None:
    (feed,) = random_feeds([_spec([1, 3, 20, 20], dtype)], n=1, seed=3)
    array = feed["x"]
    assert array.dtype == dtype
    assert array.shape == (1, 3, 20, 20)
    assert len(np.unique(array)) > 1
    if np.dtype(dtype).kind == "f":
        assert abs(float(array.astype(np.float64).std()) - 1) < 0.1
    elif dtype is not np.uint8:
        assert set(np.unique(array)) <= {0, 1}


def test_random_feeds_are_seeded_and_rounded_up_to_batches() -> None:
    specs = [_spec([4, 2]), _spec(["N", 3], np.int64, "y")]
    feeds = random_feeds(specs, n=6, seed=1)
    assert (feeds.samples, feeds.batches) == (8, 2)
    first = list(feeds)
    again = list(random_feeds(specs, n=6, seed=1))
    other = list(random_feeds(specs, n=6, seed=2))
    assert len(first) == 2
    for left, right in zip(first, again, strict=True):
        assert all(np.array_equal(left[name], right[name]) for name in ("x", "y"))
    assert not np.array_equal(first[0]["x"], other[0]["x"])
    assert not np.array_equal(first[0]["x"], first[1]["x"])


def test_random_feeds_of_an_empty_batch() -> None:
    (feed,) = random_feeds([_spec([0, 3])], n=5)
    assert feed["x"].shape == (0, 3)


def test_no_samples_is_refused() -> None:
    with pytest.raises(PerfonnxError, match="number of samples 0"):
        random_feeds([_spec([1])], n=0)


# --- .npz and .npy ---------------------------------------------------------------------------------------------------


def test_npz_by_input_name_in_batches(tmp_path: Path) -> None:
    x, y = np.arange(14, dtype=np.float64).reshape(7, 2), np.arange(7, dtype=np.int32)
    np.savez(tmp_path / "d.npz", x=x, y=y, more=x)
    feeds = load_feeds(tmp_path / "d.npz", [_spec([3, 2], np.float16), _spec([3], np.int64, "y")])
    first, second = feeds
    assert first["x"].dtype == np.float16
    assert first["y"].dtype == np.int64
    np.testing.assert_array_equal(first["x"], x[:3])
    np.testing.assert_array_equal(second["y"], [3, 4, 5])


def test_npz_with_one_array_of_any_name_beside_labels(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, images=np.ones((5, 2), np.float32), y=np.array([3, 1, 4, 1, 5], np.uint8))
    assert len(list(load_feeds(path, [_spec(["N", 2])]))) == 5
    labels = load_labels(path, 3)
    assert labels is not None
    assert labels.tolist() == [3, 1, 4]
    with pytest.raises(PerfonnxError, match="5 labels for 6 samples"):
        load_labels(path, 6)


def test_npy_and_shapes_choose_the_batch(tmp_path: Path) -> None:
    data = np.random.default_rng(0).standard_normal((4, 1, 5, 6)).astype(np.float32)
    np.save(tmp_path / "d.npy", data)
    feeds = load_feeds(tmp_path / "d.npy", [_spec(["N", 1, "H", "W"])], shapes={"x": (2, 1, 5, 6)})
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in feeds]), data)
    # Open height and width take the data's own.
    assert next(load_feeds(tmp_path / "d.npy", [_spec(["N", 1, "H", "W"])]))["x"].shape == (1, 1, 5, 6)


@pytest.mark.parametrize("channels_last", [True, False])
def test_arrays_of_8_bit_images_are_normalized(channels_last: bool, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", x=pixels if channels_last else pixels.transpose(0, 3, 1, 2))
    image_format = ImageFormat(scale=1.0, mean=(104, 117, 123), std=(2,), bgr=True)
    (feed,) = load_feeds(tmp_path / "d.npz", [_spec([2, 3, 4, 5])], image_format=image_format)
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
        load_feeds(tmp_path / "d.npz", [_spec(["N", 2])])


def test_nan_is_found_and_located(tmp_path: Path) -> None:
    data = np.zeros((6, 2), np.float32)
    data[3, 1] = np.nan
    np.save(tmp_path / "d.npy", data)
    feeds = load_feeds(tmp_path / "d.npy", [_spec([2, 2])])
    next(feeds)
    with pytest.raises(PerfonnxError, match="samples 2 to 3: has NaN"):
        next(feeds)


def test_integers_that_do_not_fit(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.array([[1], [300]]))
    feeds = load_feeds(tmp_path / "d.npy", [_spec([2, 1], np.uint8)])
    with pytest.raises(PerfonnxError, match="values outside uint8"):
        next(feeds)


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    spec = [_spec([1, 2])]
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
        load_feeds(tmp_path / "d.npy", [_spec([1])])


def test_several_inputs_need_one_array_each(tmp_path: Path) -> None:
    specs = [_spec([1, 2]), _spec([1, 2], name="y")]
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


# --- directories -----------------------------------------------------------------------------------------------------


def test_directory_of_arrays(tmp_path: Path) -> None:
    for index in range(3):
        np.save(tmp_path / f"{index}.npy", np.full((1, 2) if index else (2,), index, np.float64))
    (tmp_path / "labels.txt").write_text("7\n8\n9\n0\n")
    feeds = load_feeds(tmp_path, [_spec(["N", 2])])
    assert [feed["x"].tolist() for feed in feeds] == [[[0, 0]], [[1, 1]], [[2, 2]]]
    labels = load_labels(tmp_path, 3)
    assert labels is not None
    assert labels.tolist() == [7, 8, 9]
    np.save(tmp_path / "3.npy", np.zeros(3))
    with pytest.raises(PerfonnxError, match=r"3.npy has shape \[3\]: one sample of input 'x' has \[2\]"):
        list(load_feeds(tmp_path, [_spec(["N", 2])]))


def test_images_keep_their_pixels_at_their_own_size(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 8, 3), dtype=np.uint8)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    feeds = load_feeds(tmp_path, [_spec([2, 3, 6, 8], np.float16)], image_format=ImageFormat(scale=1.0))
    (feed,) = feeds
    assert feed["x"].dtype == np.float16
    np.testing.assert_array_equal(feed["x"], pixels.transpose(0, 3, 1, 2))


def test_images_are_scaled_on_the_short_side_and_cropped_at_the_centre(tmp_path: Path) -> None:
    # Three vertical bands of 40 columns; the middle one is a square of 40 x 40.
    bands = np.repeat(np.array([10, 100, 200], np.uint8), 40)[None, :].repeat(40, axis=0)
    Image.fromarray(bands).save(tmp_path / "a.png")
    feed = next(load_feeds(tmp_path, [_spec(["N", 1, 20, 20])], image_format=ImageFormat(scale=1.0)))
    # Only the smoothing of the scaling reaches into the neighbouring bands.
    np.testing.assert_array_equal(feed["x"][..., 1:-1], np.full((1, 1, 20, 18), 100))
    wide = next(load_feeds(tmp_path, [_spec(["N", 1, 20, 60])], image_format=ImageFormat(scale=1.0)))
    np.testing.assert_array_equal(wide["x"][0, 0, :, [0, 18, 21, 38, 41, 59]].T[0], [10, 10, 100, 100, 200, 200])


def test_crop_keeps_the_share_of_the_short_side(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    feed = next(load_feeds(tmp_path, [_spec([1, 1, 4, 4])], image_format=ImageFormat(scale=1.0, crop=0.5)))
    np.testing.assert_array_equal(feed["x"][0, 0], pixels[2:6, 2:6])


def test_gray_files_feed_colour_models_and_the_other_way(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 51).save(tmp_path / "gray.bmp")
    feed = next(load_feeds(tmp_path, [_spec([1, 3, 4, 4])]))
    np.testing.assert_allclose(feed["x"], np.full((1, 3, 4, 4), 0.2), rtol=1e-6)
    (tmp_path / "gray.bmp").unlink()
    Image.new("RGBA", (4, 4), (255, 255, 255, 0)).save(tmp_path / "colour.png")
    feed = next(load_feeds(tmp_path, [_spec([1, 1, 4, 4])]))
    np.testing.assert_allclose(feed["x"], np.ones((1, 1, 4, 4)), rtol=1e-6)


def test_directories_that_give_nothing(tmp_path: Path) -> None:
    spec = [_spec([1, 3, 4, 4])]
    with pytest.raises(PerfonnxError, match=r"no image \(.jpg, .*\) and no .npy file"):
        load_feeds(tmp_path, spec)
    (tmp_path / "broken.JPG").write_bytes(b"not an image")
    with pytest.raises(PerfonnxError, match=r"broken.JPG: cannot be read"):
        next(load_feeds(tmp_path, spec))
    np.save(tmp_path / "a.npy", np.zeros((3, 4, 4)))
    with pytest.raises(PerfonnxError, match=r"both images and .npy files"):
        load_feeds(tmp_path, spec)


def test_deep_images_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(PerfonnxError, match=r"deep.png: has more than 8 bits"):
        next(load_feeds(tmp_path, [_spec([1, 1, 4, 4])]))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (_spec(["N", 3, "H", "W"]), "--input-shape x:1,3,224,224"),
        (_spec([1, 4, 8, 8]), "images need a floating-point input"),
        (_spec([1, 8, 8, 4]), "images need a floating-point input"),
        (_spec([1, 3, 8, 8], np.int64), "images need a floating-point input"),
        (_spec([1, 10]), "images need a floating-point input"),
    ],
)
def test_models_that_take_no_images(spec: InputSpec, message: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(PerfonnxError, match=message):
        load_feeds(tmp_path, [spec])


def test_image_format_checks_itself() -> None:
    with pytest.raises(PerfonnxError, match="crop 0"):
        ImageFormat(crop=0)
    with pytest.raises(PerfonnxError, match="std"):
        ImageFormat(std=(1, 0, 1))
    with pytest.raises(PerfonnxError, match="mean has 2 values, but the model has 3 channels"):
        ImageFormat(mean=(1, 2)).normalize(np.zeros((1, 3, 2, 2), np.uint8))


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


def test_a_name_in_a_shape_keeps_the_dimension_open() -> None:
    assert parse_input_shapes(["x:N,3,?,8"]) == {"x": ("N", 3, "?", 8)}
    specs = [InputSpec("x", ("batch", 3, None, 8), np.dtype(np.float32))]
    with pytest.raises(PerfonnxError, match="open dimensions"):
        resolve_shapes(specs, {"x": ("N", 3, "?", 8)})
    assert resolve_shapes(specs, {"x": ("N", 3, 5, 8)}) == {"x": (1, 3, 5, 8)}


def test_the_flag_that_is_asked_for_is_one_word_of_a_shell() -> None:
    specs = [feeds.InputSpec("an image", ("N", 3, "H", "W"), np.dtype(np.float32))]
    with pytest.raises(PerfonnxError, match="add --input-shape 'an image:1,3,224,224'"):
        resolve_shapes(specs, None)


# --- hostile images --------------------------------------------------------------------------------------------------

FORMATS = {"png": {}, "jpg": {}, "bmp": {}, "ppm": {}, "pgm": {}, "webp": {"lossless": True}}


def _first_feed(directory: Path, **options: Any) -> np.ndarray:
    return next(load_feeds(directory, [_spec([1, 3, 4, 4])], image_format=ImageFormat(**options)))["x"]


def _image(width: int = 16, height: int = 16) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8, endpoint=True)
    return Image.fromarray(values)


@pytest.mark.parametrize("suffix", FORMATS)
def test_images_that_are_cut_short(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    _image().convert("L" if suffix == "pgm" else "RGB").save(path, **FORMATS[suffix])
    whole = path.read_bytes()
    expected = _first_feed(tmp_path)
    step = max(1, len(whole) // 40)
    for length in sorted({*range(0, len(whole), step), *range(len(whole) - 20, len(whole))}):
        path.write_bytes(whole[:length])
        with pytest.raises(PerfonnxError, match=rf"image .*a\.{suffix}: ") as caught:
            _first_feed(tmp_path)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole + b"what some cameras put behind an image")
    np.testing.assert_array_equal(_first_feed(tmp_path), expected)


@pytest.mark.parametrize("kind", ["JPEG2000", "EPS", "GIF", "TIFF", "ICO", "PCX", "TGA"])
def test_images_of_formats_that_nobody_named(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EPS above all: to show it, Pillow would start Ghostscript."""
    _image().save(tmp_path / "a.png", kind)
    monkeypatch.setattr("subprocess.Popen", None)
    with pytest.raises(PerfonnxError, match=r"image .*a\.png: cannot be read: it is none of PNG, JPEG, BMP, PPM, WEBP"):
        _first_feed(tmp_path)


def test_a_jpeg_may_be_called_png(tmp_path: Path) -> None:
    _image().save(tmp_path / "a.png", "JPEG")
    assert _first_feed(tmp_path).shape == (1, 3, 4, 4)


def test_images_with_more_pixels_than_any_network_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are refused before they are decoded."""
    path = tmp_path / "a.png"
    Image.new("1", (12960, 12960)).save(path)
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    with pytest.raises(PerfonnxError, match=r"a\.png: 12960x12960 are more than 64 megapixels"):
        _first_feed(tmp_path)
    monkeypatch.undo()
    Image.new("1", (100000, 1)).save(path)
    with pytest.raises(PerfonnxError, match=r"a\.png: 256x25600000 are more than 64 megapixels"):
        _first_feed(tmp_path, size=(256,))


def test_a_member_of_a_zip_file_that_has_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "_MAX_IMAGE_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", b"\0" * (1 << 24))
    with pytest.raises(PerfonnxError, match=r"a\.png: has more than 1 MB"):
        _first_feed(tmp_path / "a.zip")


def test_damaged_images_are_refused_or_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for suffix, options in FORMATS.items():
        path = tmp_path / f"a.{suffix}"
        _image().convert("L" if suffix == "pgm" else "RGB").save(path, **options)
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(60):
            broken = whole.copy()
            places = rng.integers(0, min(len(whole), 200), rng.integers(1, 6))
            broken[places] = rng.integers(0, 255, len(places), endpoint=True)
            path.write_bytes(broken.tobytes())
            with suppress(PerfonnxError):
                _first_feed(tmp_path)
        path.unlink()
