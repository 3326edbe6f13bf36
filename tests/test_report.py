"""The HTML report: all there, in one file, and no foreign text in it that a browser would take for more than text."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from perfonnx.report import MASK_WINDOW, _ticks, heat_image, html_report, mask_image
from perfonnx.search import Space, Tuned, tune
from perfonnx.search.pictures import Picture, as_pixels
from tests.cli.running import FAST, run
from tests.passes import nets
from tests.search.arrays import Arrays
from tests.search.test_tune import Invented, invented, network, samples

VOID = {"meta", "img", "br", "line"}
EVIL = '<script>alert("1")</script>&amp;'


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def images(self) -> list[np.ndarray]:
        found = [value for name, value in self.attributes if name == "src"]
        assert all(value.startswith("data:image/png;base64,") for value in found)
        return [np.asarray(Image.open(io.BytesIO(base64.b64decode(v.partition(",")[2])))) for v in found]


@pytest.fixture(scope="module")
def tuned() -> Tuned:
    return invented(Invented(), max_drop=0.03)


def test_everything_that_was_found_is_there(tuned: Tuned) -> None:
    page = Page(html_report(tuned))
    text = " ".join(page.texts)
    assert tuned.best is not None
    for expected in (tuned.message, f"{tuned.best.speed.ratio:.2f}x", "agreement", "standard error", "3.00 points"):
        assert expected in text
    assert all(layer.name in text for layer in tuned.result.report.layers)
    left = [name for name in ("conv1", "conv2", "conv3", "conv4", "head") if name not in tuned.plan.layers]
    assert left
    assert all(name in page.texts[page.texts.index(f"Layers left alone ({len(left)})") :] for name in left)
    assert page.tags.count("circle") == len(tuned.trials) + 1  # and the original
    assert page.tags.count("title") == len(tuned.trials) + 2
    assert sum(name == "class" and value == "taken" for name, value in page.attributes) == 2  # the point, and its line


def test_the_masks_are_drawn_as_they_are(tuned: Tuned) -> None:
    images = Page(html_report(tuned)).images()
    masks = [tuned.result.masks[layer.name] for layer in tuned.result.report.layers]
    assert len(images) == 2 * len(masks) > 0
    for image, mask in zip(images[::2], masks, strict=True):
        factor = image.shape[0] // mask.shape[0]
        assert factor > 1
        np.testing.assert_array_equal(image.astype(bool), mask.repeat(factor, 0).repeat(factor, 1))
    assert 1 - masks[0].mean() == pytest.approx(tuned.result.report.layers[0].rate)


def test_a_large_mask_is_cut_and_not_scaled() -> None:
    mask = np.random.default_rng(0).random((MASK_WINDOW + 11, 40)) < 0.5
    np.testing.assert_array_equal(np.asarray(mask_image(mask)), mask[5 : 5 + MASK_WINDOW])


def test_beside_each_mask_is_where_the_error_lies(tuned: Tuned) -> None:
    page = Page(html_report(tuned))
    errors = {each.name: each for each in tuned.error_maps}
    for image, layer in zip(page.images()[1::2], tuned.result.report.layers, strict=True):
        np.testing.assert_array_equal(image, heat_image(errors[layer.name].error))
        assert f"error {errors[layer.name].relative:.2%} of the response" in " ".join(page.texts)


def test_where_nothing_differs_no_error_is_drawn(tuned: Tuned) -> None:
    exact = [replace(each, relative=1e-7) for each in tuned.error_maps]
    page = Page(html_report(replace(tuned, error_maps=exact)))
    assert len(page.images()) == len(tuned.result.report.layers)
    assert "of the response" not in " ".join(page.texts)


def test_where_every_position_is_computed_only_the_error_is_drawn(tuned: Tuned) -> None:
    masks = {name: np.ones_like(mask) for name, mask in tuned.result.masks.items()}
    page = Page(html_report(replace(tuned, result=replace(tuned.result, masks=masks))))
    assert [image.ndim for image in page.images()] == [3] * len(masks)


def test_an_error_is_brightest_where_it_is_largest() -> None:
    error = np.zeros((20, 30))
    error[3, 7], error[11, 2], error[5, 5] = 2.0, 1.0, np.nan
    picture = np.asarray(heat_image(error))
    assert picture.shape == (60, 90, 3)
    np.testing.assert_array_equal(picture, picture[::3, ::3].repeat(3, 0).repeat(3, 1))
    light = picture[::3, ::3].astype(int).sum(axis=2)
    assert np.unravel_index(light.argmax(), light.shape) == (3, 7)
    np.testing.assert_array_equal(picture[15, 15], [128] * 3)
    light[5, 5] = 0
    assert np.argwhere(light > light[0, 0]).tolist() == [[3, 7], [11, 2]]
    assert light[0, 0] < light[11, 2] < light[3, 7]


def test_a_large_map_of_errors_is_averaged_and_not_cut() -> None:
    error = np.zeros((2 * MASK_WINDOW + 1, 40))
    error[-1, -1] = 1.0
    error[0:3] = np.nan
    picture = np.asarray(heat_image(error)).astype(int)
    assert picture.shape == (-(-error.shape[0] // 3), 14, 3)
    assert (picture[0] == 128).all()
    light = picture[1:].sum(axis=2)
    assert np.argwhere(light == light.max()).tolist() == [[len(light) - 1, 13]]


def test_nothing_to_see_is_black() -> None:
    assert np.asarray(heat_image(np.zeros((4, 4)))).max() <= 4


def test_the_page_needs_nothing_else_and_runs_nothing(tuned: Tuned) -> None:
    text = re.sub(r"data:image/png;base64,[\w+/=]+", "", html_report(tuned))
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<script|<link|<iframe", text)
    assert "default-src 'none'" in text


def test_foreign_names_are_text(tmp_path: Path) -> None:
    model = network()
    for node in model.graph.node:
        if node.op_type == "Conv":
            node.name = EVIL + node.name
    model.graph.node[-1].output[0] = model.graph.output[0].name = f"y{EVIL}"
    file = tmp_path / "<script>'\".onnx"
    onnx.save(model, file)
    space = Space(masks=("uniform",), rates=(0.75,), repairs=("none",))
    tuned = tune(file, None, samples(), max_drop=1.0, space=space, max_time=10, threads=1, timer=_Evil())
    assert tuned.best is not None
    page = Page(html_report(tuned))
    assert "script" not in page.tags
    text = " ".join(page.texts)
    assert f"{EVIL}conv1" in text
    assert f"y{EVIL}" in text
    assert file.name in text
    tuned.best.why = EVIL
    tuned.warnings = (EVIL,)
    assert "script" not in Page(html_report(tuned)).tags


class _Evil(Invented):
    """Times layers whatever their names."""

    def layers(self, plan: Any) -> dict[str, float]:
        names = [f"{EVIL}conv{i}" for i in (1, 2, 3, 4)]
        return dict.fromkeys(names, 2.0) | {n: 2.0 * (1 - c.saving) for n, c in plan.layers.items()} | {"(other)": 2.0}


def test_where_nothing_was_found_the_page_says_so() -> None:
    tuned = invented(Invented(scale=100.0), max_drop=0.01)
    assert tuned.best is None
    text = " ".join(Page(html_report(tuned)).texts)
    assert "the model is left alone" in text
    assert "nothing that was tried met the target" in text


def _filter(size: int = 24) -> onnx.ModelProto:
    """Two convolutions that make an image from an image."""
    nodes = [
        nets.conv("x", "a", "w0", name="one"),
        nets.node("Relu", ["a"], ["b"]),
        nets.conv("b", "y", "w1", name="two"),
    ]
    weights = {"w0": nets.values(8, 3, 3, 3), "w1": nets.values(3, 8, 3, 3, seed=1)}
    shapes = {"x": ("N", 3, size, size)}
    return nets.model(nodes, weights, inputs=shapes, outputs={"y": ("N", 3, size, size)})


@pytest.mark.parametrize(("metric", "bound", "batch"), [("ssim", "1", 8), ("psnr", "1dB", 1)])
def test_images_are_shown_side_by_side(metric: str, bound: str, batch: int) -> None:
    class Timer(Invented):
        def layers(self, plan: Any) -> dict[str, float]:
            found = {"one": 2.0, "two": 2.0}
            return found | dict.fromkeys(plan.layers, 1.0) | {"(other)": 2.0}

    data = Arrays("x", np.random.default_rng(0).random((16, 3, 24, 24), dtype=np.float32), batch=batch)
    space = Space(masks=("uniform",), rates=(0.25,), repairs=("none",))
    arguments: dict[str, Any] = {"space": space, "max_time": 10, "threads": 1, "timer": Timer(), "metric": metric}
    tuned = tune(_filter(), None, data, max_drop=bound, **arguments)
    assert tuned.best is not None
    assert len(tuned.pictures) == 3
    assert len({picture.name for picture in tuned.pictures}) == 3
    page = Page(html_report(tuned))
    assert sum(": rewritten, " in text for text in page.texts) == 3
    images = page.images()[-7:]  # behind those of layers
    np.testing.assert_array_equal(images[6], heat_image(next(e for e in tuned.error_maps if e.is_output).error))
    for picture, before, after in zip(tuned.pictures, images[:6:2], images[1:6:2], strict=True):
        np.testing.assert_array_equal((before, after), as_pixels(picture))
        assert (before != after).any()
    values = [picture.value for picture in tuned.pictures]
    assert all(v < (1 if metric == "ssim" else 100) for v in values)


def test_pixels_keep_a_known_scale() -> None:
    ramp = np.linspace(0, 1, 300, dtype=np.float32).reshape(1, 10, 30)
    before, after = as_pixels(Picture("", ramp, ramp / 2, 0.0))
    np.testing.assert_array_equal(before, np.rint(ramp[0] * np.float64(255)))
    assert abs(int(after.max()) - 128) <= 1
    np.testing.assert_array_equal(as_pixels(Picture("", ramp * 255, ramp, 0.0))[0], before)
    broken = np.full_like(ramp, np.nan)
    assert as_pixels(Picture("", broken, broken, 0.0))[0].shape == (10, 30)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 0), (0, 1), (1, 1.0371), (-3, 17), (0, 1e-7), (34.2, 34.2), (0, 1e30), (0.013, 99.7)]
)
def test_ticks_are_few_even_and_enclose(low: float, high: float) -> None:
    ticks = _ticks(low, high)
    assert 2 <= len(ticks) <= 9
    assert ticks[0] <= low + 1e-9 * abs(low)
    assert ticks[-1] >= high * (1 - 1e-9)
    assert np.diff(ticks) == pytest.approx(ticks[1] - ticks[0])


def test_the_command_writes_a_report_and_its_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(network(), "m.onnx")
    np.savez("data.npz", x=samples(24).images)
    arguments = ("tune", "m.onnx", "out.onnx", "--data", "data.npz", "--max-drop", "50%", *FAST, "-q")
    assert run(*arguments, "--report", "r.html", "--plan-out", "r.json") == 2
    assert "--report-json r.json: that is --plan-out" in capsys.readouterr().err
    assert run(*arguments, "--report", "no/r.html") == 2
    assert run(*arguments, "--report", "r.html") == 0
    page = Page(Path("r.html").read_text(encoding="utf-8"))
    assert "m.onnx" in page.texts
    numbers = json.loads(Path("r.json").read_text(encoding="utf-8"))
    assert numbers["perfonnx_tune"]
    assert {each["name"] for each in numbers["errors"]} == numbers["plan"]["layers"].keys()
