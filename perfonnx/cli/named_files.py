"""The files that a command line names, looked at before anything is done.

What is read must be a regular file or a folder: a device has no end, and a pipe may have no writer. Nothing that will
be written may be anything that is read, or another thing that is written.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from perfonnx.data.formats import IMAGE_SUFFIXES
from perfonnx.errors import PerfonnxError
from perfonnx.model.atomic import check_target, mentions

_WRITTEN = ("output", "save_plan", "plan_out", "report", "report_json", "state", "checkpoint", "images")
_MODELS = ("model", "a", "b", "models")
_READ = (*_MODELS, "plan", "mask", "masks", "impact_maps", "data", "labels", "preset", "library")
_NAMES = {"output": "OUT", "model": "IN", "a": "A", "b": "B", "models": "MODEL"}

_BESIDE_A_PLAN = {
    "save_plan": (".corrections.npz", ".masks.npz"),
    "plan_out": (".corrections.npz", ".masks.npz", ".impact.npz"),
}
_IN_A_FOLDER = (*IMAGE_SUFFIXES, ".npy", ".txt", ".csv", ".tsv")
"""What a folder of data is read for."""


def check_files(options: argparse.Namespace) -> None:
    """Check the files that a command line names.

    Args:
        options: Parsed flags of any command, by the names that they have everywhere.

    Raises:
        PerfonnxError: One of the files to read is a device or a pipe. One of those to write cannot be written; is a
            file to read, by whatever name or link; is the external data of a model to read, or a file of the folder of
            data; or two of them are one.
    """
    for name, path in _named(options):
        if _exists(path) and not (path.is_file() or path.is_dir()):
            raise PerfonnxError(f"{name} {path}: is not a regular file")
    written = []
    for name, path in _written(options):
        check_target(path)
        written.append((name, path))
    for i, (name, path) in enumerate(written):
        for other, known in written[:i]:
            if _same(path, known):
                raise PerfonnxError(f"{name} {path}: that is {other}; give another name")
    there = [(name, path) for name, path in written if _exists(path)]
    if not there:  # what is not there is destroyed by nothing
        return
    for other, known in _read(options):
        for name, path in there:
            if _same(path, known) or (known.is_dir() and _is_data_of(path, known)):
                raise PerfonnxError(f"{name} {path}: that is {other}, which would be lost; give another name")


def _name(flag: str) -> str:
    return _NAMES.get(flag, f"--{flag.replace('_', '-')}")


def _written(options: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    for flag in _WRITTEN:
        value = getattr(options, flag, None)
        if value is None or (flag == "output" and getattr(options, "dry_run", False)):
            continue
        yield _name(flag), Path(value)
        for suffix in _BESIDE_A_PLAN.get(flag, ()):
            yield f"what goes with {_name(flag)},", Path(value).with_suffix(suffix)
        if flag == "report" and not options.report_json:
            yield "--report-json", Path(value).with_suffix(".json")


def _named(options: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    for flag in _READ:
        value = getattr(options, flag, None)
        values = value if isinstance(value, list) else [] if value is None else [str(value)]
        for text in values:
            for part in text.split(",") if flag == "masks" else [text]:
                yield _name(flag), Path(part)


def _read(options: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    models = {_name(flag) for flag in _MODELS}
    for name, path in _named(options):
        yield name, path
        if name in models:
            yield from ((f"the external data of {path}", file) for file in _data_of(path))
        if name == "--plan":
            yield from ((f"what {path} names", file) for file in _beside(path))


def _data_of(model: Path) -> Iterator[Path]:
    """The files of a model's external data; what is wrong with it is said when it is opened."""
    if not model.is_file() or not mentions(model, "location"):  # the key of every such file's name
        return

    import onnx

    from perfonnx.model.tensors import all_tensors

    try:
        proto = onnx.load(model, load_external_data=False)
    except Exception:  # protobuf raises many kinds
        return
    locations = {e.value for t in all_tensors(proto) for e in t.external_data if e.key == "location"}
    yield from (model.parent / location for location in locations)


def _beside(plan: Path) -> Iterator[Path]:
    try:
        data = json.loads(plan.read_text(encoding="utf-8"))
        yield from (plan.parent / data[key] for key in ("corrections", "masks") if isinstance(data.get(key), str))
    except (OSError, ValueError, AttributeError):
        return


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
