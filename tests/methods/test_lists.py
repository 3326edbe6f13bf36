"""Lists of the methods say what there is."""

from __future__ import annotations

from pathlib import Path

from perfonnx.methods import DEFAULT, METHODS, markdown_list

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_lists_every_method() -> None:
    assert markdown_list() in README.read_text(encoding="utf-8")
    assert DEFAULT in METHODS
    assert [line.split("`")[1] for line in markdown_list().splitlines()] == list(METHODS)
