"""Images: what becomes of their pixels, and files that are hostile or damaged."""

from __future__ import annotations

import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from perfonnx.data import images
from perfonnx.data.formats import ImageFormat
from perfonnx.data.inputs import InputSpec
from perfonnx.data.samples import Samples
from perfonnx.errors import PerfonnxError
from tests.data.cases import IMAGE, input_of, load_feeds


def test_images_keep_their_pixels_at_their_own_size(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 8, 3), dtype=np.uint8)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    feeds = load_feeds(tmp_path, [input_of([2, 3, 6, 8], np.float16)], image_format=ImageFormat(scale=1.0))
    (feed,) = feeds
    assert feed["x"].dtype == np.float16
    np.testing.assert_array_equal(feed["x"], pixels.transpose(0, 3, 1, 2))


def test_images_are_scaled_on_the_short_side_and_cropped_at_the_centre(tmp_path: Path) -> None:
    # Three vertical bands of 40 columns; the middle one is a square of 40 x 40.
    bands = np.repeat(np.array([10, 100, 200], np.uint8), 40)[None, :].repeat(40, axis=0)
    Image.fromarray(bands).save(tmp_path / "a.png")
    feed = next(load_feeds(tmp_path, [input_of(["N", 1, 20, 20])], image_format=ImageFormat(scale=1.0)))
    # Only the smoothing of the scaling reaches into the neighbouring bands.
    np.testing.assert_array_equal(feed["x"][..., 1:-1], np.full((1, 1, 20, 18), 100))
    wide = next(load_feeds(tmp_path, [input_of(["N", 1, 20, 60])], image_format=ImageFormat(scale=1.0)))
    np.testing.assert_array_equal(wide["x"][0, 0, :, [0, 18, 21, 38, 41, 59]].T[0], [10, 10, 100, 100, 200, 200])


def test_crop_keeps_the_share_of_the_short_side(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    feed = next(load_feeds(tmp_path, [input_of([1, 1, 4, 4])], image_format=ImageFormat(scale=1.0, crop=0.5)))
    np.testing.assert_array_equal(feed["x"][0, 0], pixels[2:6, 2:6])


def test_gray_files_feed_colour_models_and_the_other_way(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 51).save(tmp_path / "gray.bmp")
    feed = next(load_feeds(tmp_path, [input_of([1, 3, 4, 4])]))
    np.testing.assert_allclose(feed["x"], np.full((1, 3, 4, 4), 0.2), rtol=1e-6)
    (tmp_path / "gray.bmp").unlink()
    Image.new("RGBA", (4, 4), (255, 255, 255, 0)).save(tmp_path / "colour.png")
    feed = next(load_feeds(tmp_path, [input_of([1, 1, 4, 4])]))
    np.testing.assert_allclose(feed["x"], np.ones((1, 1, 4, 4)), rtol=1e-6)


def test_deep_images_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(PerfonnxError, match=r"deep.png: has more than 8 bits"):
        next(load_feeds(tmp_path, [input_of([1, 1, 4, 4])]))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (input_of(["N", 3, "H", "W"]), "--input-shape x:1,3,224,224"),
        (input_of([1, 4, 8, 8]), "images need a floating-point input"),
        (input_of([1, 8, 8, 4]), "images need a floating-point input"),
        (input_of([1, 3, 8, 8], np.int64), "images need a floating-point input"),
        (input_of([1, 10]), "images need a floating-point input"),
    ],
)
def test_models_that_take_no_images(spec: InputSpec, message: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(PerfonnxError, match=message):
        load_feeds(tmp_path, [spec])


def test_resizing_and_cropping(tmp_path: Path) -> None:
    ramp = np.zeros((40, 60, 3), np.uint8)
    ramp[..., 0] = np.arange(60) * 4
    Image.fromarray(ramp).save(tmp_path / "a.png")

    def row(**fields: Any) -> np.ndarray:
        (batch,) = Samples.load(tmp_path, [IMAGE], image_format=ImageFormat(scale=0.25, **fields))
        return batch.feeds["x"][0, 0, 4]

    np.testing.assert_array_equal(row(size=(40,)), np.arange(26, 34))
    np.testing.assert_allclose(row(size=(20,)), np.arange(26, 34) * 2 - 29.5, atol=0.5)
    np.testing.assert_allclose(row(size=(8, 8))[1:-1], np.arange(1, 7) * 7.5 + 3.25, atol=0.5)
    with pytest.raises(PerfonnxError, match=r"a\.png: is 6x9 after resizing, too small for 8x8; give a larger --size"):
        row(size=(6,))
    open_size = [input_of(["N", 3, "H", "W"])]
    (batch,) = Samples.load(tmp_path, open_size, image_format=ImageFormat(size=(40,), window=(10, 12)))
    assert batch.feeds["x"].shape == (1, 3, 10, 12)
    with pytest.raises(PerfonnxError, match="has another size"):
        Samples.load(tmp_path, [IMAGE], image_format=ImageFormat(window=(10, 12)))
    with pytest.raises(PerfonnxError, match="add --input-shape x:1,3,224,224"):
        Samples.load(tmp_path, open_size)


def test_channels(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (255, 0, 51)).save(tmp_path / "a.png")

    def first(**fields: Any) -> list[float]:
        (batch,) = Samples.load(tmp_path, [IMAGE], image_format=ImageFormat(**fields))
        return batch.feeds["x"][0, :, 0, 0].round(3).tolist()

    assert first() == pytest.approx([1, 0, 0.2])
    assert first(bgr=True, mean=(0.1, 0, 0)) == pytest.approx([0.1, 0, 1])
    assert len(set(first(gray=True))) == 1


FORMATS = {"png": {}, "jpg": {}, "bmp": {}, "ppm": {}, "pgm": {}, "webp": {"lossless": True}}


def _first_feed(directory: Path, **options: Any) -> np.ndarray:
    return next(load_feeds(directory, [input_of([1, 3, 4, 4])], image_format=ImageFormat(**options)))["x"]


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
    monkeypatch.setattr(images, "_MAX_IMAGE_BYTES", 1 << 20)
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
