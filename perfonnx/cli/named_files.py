"""The files that a command line names, looked at before anything is done.

A flag that names one has `Read` or `Written` as its type, or one of their kinds. What is read must be a regular file or
a folder: a device has no end, and a pipe may have no writer. Nothing that will be written may be anything that is read,
or another thing that is written.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias, TypeVar

from perfonnx.data.formats import IMAGE_SUFFIXES
from perfonnx.errors import PerfonnxError
from perfonnx.model.atomic import check_target, mentions

Named: TypeAlias = "tuple[str, Path]"
"""What a file is called in messages, and where it is."""

_POSITIONAL = {"output": "OUT", "model": "IN", "a": "A", "b": "B", "models": "MODEL"}
"""Names of arguments that are no flags."""

_IN_A_FOLDER = (*IMAGE_SUFFIXES, ".npy", ".txt", ".csv", ".tsv")
"""What a folder of data is read for."""


class Read(str):
    """A file or folder to read; or a word of the flag's own, which is the name of no file."""

    def paths(self) -> list[Path]:
        """Where it is."""
        return [Path(self)]

    def with_it(self) -> Iterator[Named]:
        """What is read with it."""
        return iter(())


class ReadList(Read):
    """Several of them, with commas between."""

    def paths(self) -> list[Path]:
        """Where they are."""
        return [Path(part) for part in self.split(",")]


class ReadModel(Read):
    """A model; what is wrong with it is said when it is opened."""

    def with_it(self) -> Iterator[Named]:
        """The files of its external data."""
        model = Path(self)
        key = "location"  # under which a model names such a file
        if not _exists(model) or not model.is_file() or not mentions(model, key):
            return

        import onnx

        from perfonnx.model.tensors import all_tensors

        try:
            proto = onnx.load(model, load_external_data=False)
        except Exception:  # protobuf raises many kinds
            return
        locations = {e.value for t in all_tensors(proto) for e in t.external_data if e.key == key}
        yield from ((f"the external data of {model}", model.parent / location) for location in locations)


class ReadPlan(Read):
    """A plan."""

    def with_it(self) -> Iterator[Named]:
        """The files that it names."""
        from perfonnx.plan import FILES

        plan = Path(self)
        try:
            data = json.loads(plan.read_text(encoding="utf-8"))
            names = [data[key] for key in FILES if isinstance(data.get(key), str)]
        except (OSError, ValueError, AttributeError, RecursionError):
            return
        yield from ((f"what {plan} names", plan.parent / name) for name in names)


class Written(str):
    """A file to write."""

    def files(self, name: str, options: argparse.Namespace) -> Iterator[Named]:
        """It, and what is written with it.

        Args:
            name: What it is called.
            options: All that was parsed.
        """
        yield name, Path(self)


class WrittenPlan(Written):
    """A plan, with files of its arrays beside it."""

    def files(self, name: str, options: argparse.Namespace) -> Iterator[Named]:
        """It and the arrays' files."""
        from perfonnx.plan import FILES

        yield from super().files(name, options)
        yield from ((f"what goes with {name},", Path(self).with_suffix(suffix)) for suffix in FILES.values())


def check_files(options: argparse.Namespace) -> None:
    """Check the files that a command line names.

    Args:
        options: Parsed flags of any command.

    Raises:
        PerfonnxError: One of the files to read is a device or a pipe. One of those to write cannot be written; is a
            file to read, by whatever name or link; is the external data of a model to read, or a file of the folder of
            data; or two of them are one.
    """
    read = list(_given(options, Read))
    for name, value in read:
        for path in value.paths():
            if _exists(path) and not (path.is_file() or path.is_dir()):
                raise PerfonnxError(f"{name} {path}: is not a regular file")
    written: list[Named] = []
    for name, path in _all_that_is_written(options):
        check_target(path)
        for other, known in written:
            if _same(path, known):
                raise PerfonnxError(f"{name} {path}: that is {other}; give another name")
        written.append((name, path))
    there = [(name, path) for name, path in written if _exists(path)]
    if not there:  # what is not there is destroyed by nothing
        return
    for other, known in _all_that_is_read(read):
        for name, path in there:
            if _same(path, known) or (_exists(known) and known.is_dir() and _is_data_of(path, known)):
                raise PerfonnxError(f"{name} {path}: that is {other}, which would be lost; give another name")


_Kind = TypeVar("_Kind", Read, Written)


def _given(options: argparse.Namespace, kind: type[_Kind]) -> Iterator[tuple[str, _Kind]]:
    for flag, given in vars(options).items():
        for value in given if isinstance(given, list) else [given]:
            if isinstance(value, kind):
                yield _POSITIONAL.get(flag, f"--{flag.replace('_', '-')}"), value


def _all_that_is_read(read: list[tuple[str, Read]]) -> Iterator[Named]:
    for name, value in read:
        yield from ((name, path) for path in value.paths())
        yield from value.with_it()


def _all_that_is_written(options: argparse.Namespace) -> Iterator[Named]:
    for name, value in _given(options, Written):
        yield from value.files(name, options)


def _is_data_of(path: Path, folder: Path) -> bool:
    return path.suffix.lower() in _IN_A_FOLDER and path.resolve().is_relative_to(folder.resolve())


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _same(a: Path, b: Path) -> bool:
    try:
        return a.resolve() == b.resolve() or a.samefile(b)
    except (OSError, ValueError):  # one is not there; a name that no file can have
        return False
