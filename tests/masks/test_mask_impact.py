"""The impact mask: the top positions of a map, and files of maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from perfonnx.errors import PerfonnxError
from perfonnx.impact import save_impact_maps
from perfonnx.masks import MaskRequest, load_impact_maps, make_mask


def request(impact: np.ndarray | None, rate: float = 0.5, seed: int = 0) -> MaskRequest:
    return MaskRequest((4, 6), rate, np.random.default_rng(seed), impact=impact)


def test_the_highest_impacts_are_the_sites() -> None:
    impact = np.random.default_rng(1).permutation(24).reshape(4, 6).astype(np.float64)
    mask = make_mask("impact", request(impact, 0.75))
    np.testing.assert_array_equal(mask, impact >= 18)


def test_ties_are_broken_by_the_seed() -> None:
    impact = np.zeros((4, 6))
    impact[0] = 1
    masks = [make_mask("impact", request(impact, 0.5, seed)) for seed in (0, 0, 1)]
    assert all(mask[0].all() and mask.sum() == 12 for mask in masks)
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0] != masks[2]).any()


@pytest.mark.parametrize(
    ("impact", "match"),
    [
        (None, "no map of impacts; compute them"),
        (np.zeros((6, 4)), "is 6x4, the layer's output 4x6"),
        (np.full((4, 6), np.nan), "not finite"),
        (np.full((4, 6), -1.0), "negative"),
        (np.zeros((4, 6), np.int64), "int64"),
        (np.zeros((1, 4, 6)), r"\[1, 4, 6\]"),
    ],
)
def test_maps_that_are_none(impact: np.ndarray | None, match: str) -> None:
    with pytest.raises(PerfonnxError, match=match):
        make_mask("impact", request(impact))


def test_maps_come_back_from_a_file(tmp_path: Path) -> None:
    maps = {name: np.random.default_rng(0).random((3, 4)) for name in ("conv", "a/b:0", "file", "x.npy", "ü")}
    save_impact_maps(tmp_path / "maps.npz", maps)
    loaded = load_impact_maps(tmp_path / "maps.npz")
    assert loaded.keys() == maps.keys()
    for name, values in maps.items():
        np.testing.assert_array_equal(loaded[name], values)


def test_files_that_hold_no_maps(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.zeros((2, 2)))
    np.savez(tmp_path / "masks.npz", conv=np.ones((2, 2), bool))
    (tmp_path / "text.npz").write_text("maps")
    for name, match in (
        ("one.npy", "single array"),
        ("masks.npz", "bool"),
        ("text.npz", "not a readable"),
        ("no", "No"),
    ):
        with pytest.raises(PerfonnxError, match=match):
            load_impact_maps(tmp_path / name)
    with pytest.raises(PerfonnxError, match="no map of impacts to write"):
        save_impact_maps(tmp_path / "empty.npz", {})
    assert not (tmp_path / "empty.npz").exists()
