"""What a search has measured so far, in a file: an interrupted search goes on where it was, to the same end.

A search is a fixed sequence of decisions on measured numbers. Each number is asked for under a key; the first time it
is measured and written down, after that it is read. A search that is run again therefore decides the same, whatever the
machine's noise, and reaches new ground only behind the last number that is known. Its clock is the sum of the seconds
that the numbers asked for so far took, then or now, so that decisions that depend on time come out the same too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perfonnx.errors import PerfonnxError, PerfonnxWarning
from perfonnx.model.atomic import check_target, digest, unwritable, write_atomically

FORMAT = 2

SUFFIX = ".state"
"""Of the files in a directory of states."""


@dataclass
class Records:
    """Measured numbers by key.

    Attributes:
        path: The file, JSON lines; None keeps them in memory only.
        known: Values, with the seconds that each took.
        clock: Seconds that the numbers asked for by this run took.
        measured: How many were measured by this run.
    """

    path: Path | None = None
    known: dict[str, tuple[Any, float]] = field(default_factory=dict)
    clock: float = 0.0
    measured: int = 0
    _asked: set[str] = field(default_factory=set)

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None, search: Mapping[str, Any]) -> Records:
        """Reads a file of records, or starts one.

        Args:
            path: The file; None for none.
            search: What the numbers are about: model, data, settings. Another search's file is refused.

        Raises:
            PerfonnxError: The file is no such file, belongs to another search, or cannot be written. One that was
                damaged is not believed, from its head on or line by line; what is missing is measured again.
        """
        if path is None:
            return cls()
        target = Path(path)
        check_target(target)
        header = _checked({"perfonnx_search": FORMAT, **search})
        records = cls(target)
        if target.exists():
            records._read(header)
            with contextlib.suppress(OSError):  # a file that is only read may be another user's
                os.utime(target)
        else:
            records._write([header])
        return records

    def _read(self, header: str) -> None:
        assert self.path is not None
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise PerfonnxError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        lines = content.decode(errors="replace").splitlines()
        if not lines or _MARK not in lines[0]:
            raise PerfonnxError(f"{self.path}: not the state of a search; give another file")
        first = _read_checked(lines[0])
        if first is None:
            self._say("is damaged; the search starts anew")
            self._write([header])
            return
        wanted = _read_checked(header)
        assert wanted is not None
        if first != wanted:
            other = next((key for key in wanted if wanted[key] != first.get(key)), "what it is about")
            raise PerfonnxError(
                f"{self.path}: the state of another search ({other} differs); delete it or give another file"
            )
        kept = [header]
        for line in lines[1:]:
            record = _read_checked(line)
            if record is None or not record.keys() >= {"key", "value", "seconds"}:
                continue  # cut short, or damaged: that number is measured again
            kept.append(line)
            self.known[record["key"]] = record["value"], float(record["seconds"])
        if len(kept) != len(lines):
            self._say(f"has {len(lines) - len(kept)} damaged lines; what they held is measured again")
            self._write(kept)

    def _say(self, what: str) -> None:
        warnings.warn(f"{self.path}: {what}", PerfonnxWarning, stacklevel=4)

    def ask(self, key: str, measure: Callable[[], Any]) -> Any:
        """The number under a key, as JSON holds it; measured, and written down, if it is not known."""
        if key in self.known:
            return self.read(key)
        self.measured += 1
        start = time.perf_counter()
        value = measure()
        self.put(key, value, time.perf_counter() - start)
        return self.read(key)

    def was_asked(self, key: str) -> bool:
        """Whether this run asked for a number before; a file may know more."""
        return key in self._asked

    def read(self, key: str) -> Any:
        """A known number."""
        value, seconds = self.known[key]
        if key not in self._asked:
            self._asked.add(key)
            self.clock += seconds
        return value

    def put(self, key: str, value: Any, seconds: float) -> None:
        """Write a number down."""
        value = json.loads(json.dumps(value))
        self.known[key] = value, seconds
        if self.path is None:
            return
        line = _checked({"key": key, "value": value, "seconds": seconds})
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from error

    def _write(self, lines: list[str]) -> None:
        assert self.path is not None
        write_atomically(self.path, "\n".join(lines) + "\n")


def fits_of(state: Path) -> Path:
    """The directory, beside a state, of what its networks were fitted with."""
    return Path(f"{state}.fits")


def trim(directory: Path, most: int) -> None:
    """Remove the states that were used longest ago, with all beside them, until the others take no more bytes.

    The latest stays however large it is. What cannot be removed, or is gone already, is left to others.
    """
    used: list[tuple[float, int, Path]] = []
    for state in directory.glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError):
            sizes = [file.stat().st_size for file in (state, *fits_of(state).glob("*"))]
            used.append((state.stat().st_mtime, sum(sizes), state))
    used.sort(reverse=True)
    total = 0
    for number, (_, size, state) in enumerate(used):
        total += size
        if number and total > most:
            shutil.rmtree(fits_of(state), ignore_errors=True)
            with contextlib.suppress(OSError):
                state.unlink()


_MARK = "perfonnx_search"  # in the first line of every such file


def _checked(record: Mapping[str, Any]) -> str:
    """A line with a digest of itself."""
    return json.dumps({**record, "check": digest(json.dumps(record, sort_keys=True))}, sort_keys=True)


def _read_checked(line: str) -> dict[str, Any] | None:
    """What a line says; None where it does not say it any more."""
    try:
        record = json.loads(line)
        check = record.pop("check")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if check == digest(json.dumps(record, sort_keys=True)) else None


def fingerprint(*parts: bytes | str) -> str:
    """What some content is known by in records: 24 hexadecimal digits."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()[:24]
