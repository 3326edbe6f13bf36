"""Records: what is known is not measured again, and files of another search are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from perfonnx.errors import PerfonnxError, PerfonnxWarning
from perfonnx.search.state import Records, fingerprint, fits_of, trim

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
    with pytest.warns(PerfonnxWarning, match="has 1 damaged lines"):
        again = Records.open(path, SEARCH)
    assert list(again.known) == ["a"]
    again.put("b", 3, 1.0)
    assert Records.open(path, SEARCH).read("b") == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}\n", "not the state of a search"),
        ("hello", "not the state of a search"),
        ("\udcff\udcfe", "not the state of a search"),
        ("", "not the state of a search"),
    ],
)
def test_other_files_are_refused_and_kept(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "state"
    path.write_text(content, errors="surrogateescape")
    with pytest.raises(PerfonnxError, match=message):
        Records.open(path, SEARCH)
    assert path.read_text(errors="surrogateescape") == content


def test_the_state_of_another_search_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "state"
    Records.open(path, {**SEARCH, "model": "other"}).put("a", 1, 1.0)
    before = path.read_bytes()
    with pytest.raises(PerfonnxError, match=r"state of another search \(model"):
        Records.open(path, SEARCH)
    assert path.read_bytes() == before


def test_nothing_damaged_is_believed(tmp_path: Path) -> None:
    """Whatever bit is turned or byte is missing: each number is the one that was written, or is measured again."""
    path = tmp_path / "state"
    records = Records.open(path, SEARCH)
    for key, value in {"a": 1.25, "b": {"drop": -0.5}, "c": [1, 2, 3]}.items():
        records.put(key, value, 2.0)
    whole, known = path.read_bytes(), dict(records.known)
    for place in range(0, len(whole), 3):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.warns(PerfonnxWarning) if b"perfonnx_search" in flipped else pytest.raises(PerfonnxError):
            found = Records.open(path, SEARCH)
            assert found.known.items() <= known.items()
            found.put("d", 4, 1.0)
            assert Records.open(path, SEARCH).read("d") == 4


def test_a_file_that_cannot_be_written_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(PerfonnxError, match="there is no directory"):
        Records.open(tmp_path / "no" / "state", SEARCH)


def test_what_was_used_longest_ago_goes(tmp_path: Path) -> None:
    for number, name in enumerate(("old", "used", "new")):
        path = tmp_path / f"{name}.state"
        Records.open(path, SEARCH).put("a", 1, 1.0)
        fits_of(path).mkdir()
        (fits_of(path) / "1.npz").write_bytes(bytes(10_000))
        os.utime(path, (number, number))
    (tmp_path / "other").write_bytes(bytes(50_000))
    Records.open(tmp_path / "used.state", SEARCH)
    trim(tmp_path, 40_000)
    assert len(list(tmp_path.glob("*.state"))) == 3, "they fit"
    trim(tmp_path, 25_000)
    assert {path.name for path in tmp_path.iterdir()} == {
        "used.state",
        "used.state.fits",
        "new.state",
        "new.state.fits",
        "other",
    }
    trim(tmp_path, 0)
    assert {path.name for path in tmp_path.iterdir()} == {"used.state", "used.state.fits", "other"}


def test_fingerprints_keep_parts_apart() -> None:
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
    assert fingerprint("a") == fingerprint(b"a")
