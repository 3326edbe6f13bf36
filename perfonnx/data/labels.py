"""Labels: the class of each sample, from beside the data or from within it."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from perfonnx.data.arrays import load_numpy, member
from perfonnx.data.inputs import Array
from perfonnx.errors import PerfonnxError

Labels: TypeAlias = NDArray[np.int64]

LABEL_NAMES = ("labels", "label", "y")
"""Names under which an .npz file may carry one integer class per sample."""


def find_labels(
    given: str | Path | Sequence[int] | None, path: Path, files: Sequence[Path], count: int
) -> Labels | None:
    """The class of each of a number of samples.

    Args:
        given: As for `perfonnx.data.samples.Samples.load`.
        path: The data.
        files: The samples' files, where it is a folder or .zip file.
        count: How many samples there are.

    Raises:
        PerfonnxError: They are not there, are no integers, or are not one for each sample.
    """
    if given is None:
        return load_labels(path, count)
    if not isinstance(given, (str, Path)):
        return checked_labels(given, "given", count)
    if str(given) in ("folders", *_NUMBERS) and not files:
        raise PerfonnxError(f"labels {given}: only a folder or .zip file of images has them; {path} is none")
    if str(given) == "folders":
        folders = sorted({file.parent for file in files})
        numbers = {folder: number for number, folder in enumerate(folders)}
        return np.array([numbers[file.parent] for file in files], np.int64)
    if str(given) in _NUMBERS:
        return np.array([_number_in_name(file, str(given)) for file in files], np.int64)
    if path.suffix == ".npz" and not Path(given).exists():
        return _array_labels(path, str(given), count)
    table = _table(Path(given))
    names = [file.relative_to(path).as_posix() for file in files] if files else [str(i) for i in range(count)]
    return np.array([_look_up(table, name, Path(given)) for name in names], np.int64)


def load_labels(path: str | Path, n: int) -> Labels | None:
    """The class of each of the first `n` samples, where the data carries it.

    An .npz file carries labels as an array named `labels`, `label` or `y`; a directory as a text file `labels.txt`,
    one integer per line in the order of the sample files.

    Returns:
        int64 [n], or None where there are no labels.

    Raises:
        PerfonnxError: There are labels, but no integers, or fewer than samples.
    """
    path = Path(path)
    file = path / "labels.txt"
    if path.is_dir() and file.exists():
        try:
            labels = np.array([int(word) for word in file.read_text(encoding="utf-8").split()], np.int64)
        except (OSError, ValueError) as error:
            raise PerfonnxError(f"labels {file}: must have one integer per line") from error
        return _of_samples(str(file), labels, n, more=True)
    if path.suffix == ".npz":
        archive = load_numpy(path)
        key = next((name for name in LABEL_NAMES if name in archive), None)
        return None if key is None else _of_samples(*member(archive, path, key), n, more=True)
    return None


_NUMBERS = {
    "prefix": (r"(\d{1,18})", "does not start with a number"),
    "suffix": (r".*_(\d{1,18})$", "does not end with an underscore and a number"),
}
"""Kinds of labels in the name of a file, without its extension: what to look for, and what is wrong otherwise."""


def _number_in_name(file: Path, kind: str) -> int:
    pattern, wrong = _NUMBERS[kind]
    number = re.match(pattern, file.stem, re.DOTALL)
    if number is None:
        raise PerfonnxError(f"labels {kind}: the name of {file} {wrong}")
    return int(number.group(1))


def _array_labels(path: Path, key: str, count: int) -> Labels:
    archive = load_numpy(path)
    if key not in archive.files:
        raise PerfonnxError(
            f"labels {key}: neither a file nor an array in {path}, which has {', '.join(archive.files)}"
        )
    return _of_samples(*member(archive, path, key), count)


def checked_labels(labels: Sequence[int], where: str, count: int) -> Labels:
    """Classes that somebody gives, one for each sample.

    Raises:
        PerfonnxError: They are no integers, or not as many.
    """
    return _of_samples(where, np.asarray(labels), count)


def _of_samples(where: str, labels: Array, count: int, *, more: bool = False) -> Labels:
    """`more`: there may be more labels than samples."""
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise PerfonnxError(f"labels {where}: must be one integer per sample, not {labels.dtype} {list(labels.shape)}")
    if len(labels) < count or (len(labels) > count and not more):
        raise PerfonnxError(f"labels {where}: {len(labels)} labels for {count} samples")
    return labels[:count].astype(np.int64)


def _table(path: Path) -> dict[str, int]:
    """File names and classes of a .tsv or .csv file; a first line of headings is passed over."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise PerfonnxError(f"labels {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    delimiter = "\t" if path.suffix == ".tsv" or "\t" in text.partition("\n")[0] else ","
    table = {}
    for number, row in enumerate(csv.reader(text.splitlines(), delimiter=delimiter)):
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        try:
            table[cells[0]] = int(cells[1])
        except (IndexError, ValueError) as error:
            if number == 0:
                continue
            raise PerfonnxError(f"labels {path}, line {number + 1}: needs a file name and a whole number") from error
    return table


def _look_up(table: Mapping[str, int], name: str, path: Path) -> int:
    for key in (name, name.rpartition("/")[2]):
        if key in table:
            return table[key]
    raise PerfonnxError(f"labels {path}: no label for {name}")
