"""Records: what is known is not measured again, and files of another search are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from perfonnx.errors import PerfonnxError
from perfonnx.search.state import Records, digest

SEARCH = {"model": "m", "seed": 0}


def test_numbers_are_measured_once_and_survive(tmp_path: Path) -> None:
    calls: list[str] = []

    def measure() -> dict[str, float]:
        calls.append("x")
        return {"drop": 0.5}

    path = tmp_path / "state"
    records = Records.open(path, SEARCH)
    assert records.ask("a", measure) == {"drop": 0.5}
    assert records.ask("a", measure) == {"drop": 0.5}
    again = Records.open(path, SEARCH)
    assert again.ask("a", measure) == {"drop": 0.5}
    assert calls == ["x"]


def test_the_clock_counts_what_this_run_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "state"
    records = Records.open(path, SEARCH)
    records.put("a", 1, 10.0)
    records.put("b", 2, 20.0)
    assert records.clock == 0
    again = Records.open(path, SEARCH)
    again.read("b")
    again.read("b")
    assert again.clock == 20
    again.read("a")
    assert again.clock == 30


def test_a_line_that_was_cut_short_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "state"
    records = Records.open(path, SEARCH)
    records.put("a", 1, 1.0)
    records.put("b", 2, 1.0)
    path.write_text(path.read_text()[:-9])
    again = Records.open(path, SEARCH)
    assert list(again.known) == ["a"]
    again.put("b", 3, 1.0)
    assert Records.open(path, SEARCH).read("b") == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps({"perfonnx_search": 1, "model": "other", "seed": 0}) + "\n", "state of another search .model"),
        ("{}\n", "not the state of a search"),
        ("hello", "cannot be read as the state of a search"),
        ("", "not the state of a search"),
    ],
)
def test_other_files_are_refused_and_kept(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "state"
    path.write_text(content)
    with pytest.raises(PerfonnxError, match=message):
        Records.open(path, SEARCH)
    assert path.read_text() == content


def test_a_file_that_cannot_be_written_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(PerfonnxError, match="there is no directory"):
        Records.open(tmp_path / "no" / "state", SEARCH)


def test_digests_keep_parts_apart() -> None:
    assert digest("ab", "c") != digest("a", "bc")
    assert digest("a") == digest(b"a")
