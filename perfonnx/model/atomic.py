"""Files put in place whole: whatever stops the program, a name holds the old content or the new one.

What is written goes into a directory of its own beside the target, reaches the disk, and is renamed. A program that is
killed leaves that directory; the next one that writes there takes it away. A model and its data are two files, and no
file system renames two at once: the data file is named after its content, so that the old model keeps its old data
until the one rename that replaces it.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from perfonnx.errors import PerfonnxError

_PREFIX = ".perfonnx-"
_LOCK, _DOUBTFUL = "lock", "doubtful"
_ABANDONED = 3600  # seconds after which a directory without a lock belongs to nobody


def digest(content: bytes | str) -> str:
    """What tells a file of ours that has been damaged: 16 hexadecimal digits."""
    return hashlib.blake2b(content.encode() if isinstance(content, str) else content, digest_size=8).hexdigest()


def check_target(path: str | os.PathLike[str]) -> None:
    """Raise `PerfonnxError` where a file can certainly not be written, before any work is done for it."""
    target = Path(path)
    try:
        if "\0" in str(target):
            raise PerfonnxError(f"{str(target)!r} is no file name: it has a NUL in it")
        if target.is_dir():
            raise PerfonnxError(f"{target} is a directory; give the name of a file")
        if target.exists() and not target.is_file():  # replacing a device or a pipe would destroy it
            raise PerfonnxError(f"{target} is not a regular file; give the name of a file")
        if not target.parent.is_dir():
            raise PerfonnxError(f"{target}: cannot be written: there is no directory {target.parent}")
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise PerfonnxError(f"{target}: cannot be written: no permission to write in {target.parent}")
    except OSError as error:
        raise unwritable(target, error) from error


def unwritable(target: Path, error: OSError) -> PerfonnxError:
    """What is raised where a file turns out not to be writable."""
    return PerfonnxError(f"{target}: cannot be written: {error.strerror or error}")


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file, text in UTF-8, so that it is the old one or the new one, never a part.

    Raises:
        PerfonnxError: The place cannot be written.
    """
    target = Path(path)
    check_target(target)
    try:
        with drafts(target) as directory:
            draft = directory / "content"
            draft.write_bytes(content.encode() if isinstance(content, str) else content)
            publish(draft, target)
    except OSError as error:
        raise unwritable(target, error) from error


@contextmanager
def drafts(target: Path) -> Iterator[Path]:
    """A directory beside `target` for what is being written; it goes at the end."""
    _sweep(target.parent)
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=target.parent))
    try:
        with _locked(directory):
            yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def publish(draft: Path, target: Path, like: Path | None = None) -> None:
    """Give a draft its name. It gets the mode of the file it replaces, or of `like`, or what new files get."""
    model = next((file for file in (target, like) if file is not None and file.exists()), None)
    if model is not None:
        shutil.copymode(model, draft)  # the file changes, who may read it does not
    else:
        mask = os.umask(0)
        os.umask(mask)
        draft.chmod(0o666 & ~mask)
    _flush(draft)
    os.replace(draft, target)
    _flush(target.parent)


def _flush(path: Path) -> None:
    """Wait until a file, or a directory's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # some file systems cannot flush a directory
            raise
    finally:
        os.close(handle)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the lock by which others know that a directory is in use; the file has its name only while it is held."""
    made = directory / f"{_LOCK}.new"
    with made.open("wb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX)
            made.rename(directory / _LOCK)
        except OSError:  # a file system without locks: the directory's age decides
            pass
        yield


def _sweep(parent: Path) -> None:
    """Take away what programs that were killed have left."""
    for directory in parent.glob(f"{_PREFIX}*"):
        try:
            if directory.lstat().st_uid != os.getuid():
                continue
            with (directory / _LOCK).open("rb") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                doubtful = directory / _DOUBTFUL
                if doubtful.exists():
                    _drop_unread(parent, doubtful.read_text().splitlines())
                shutil.rmtree(directory, ignore_errors=True)
        except FileNotFoundError:
            if directory.is_dir() and time.time() - directory.stat().st_mtime > _ABANDONED:
                shutil.rmtree(directory, ignore_errors=True)
        except (OSError, ValueError):
            continue  # in use, or not ours


# --- a model and its data --------------------------------------------------------------------------------------------


class Digested:
    """A stream that is written to, and the digest of what was."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._digest = hashlib.blake2b(digest_size=8)

    def write(self, data: bytes) -> int:
        """As of a stream."""
        self._digest.update(data)
        return self._stream.write(data)

    def tell(self) -> int:
        """As of a stream."""
        return self._stream.tell()

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits."""
        return self._digest.hexdigest()


def data_name(model: Path, digest: str) -> str:
    """Name of the data file of a model: `NAME.DIGEST.data`."""
    return f"{model.name}.{digest}.data"


def publish_model(draft: Path, target: Path, data: Path | None, name: str, keep: Iterable[Path]) -> None:
    """Put a model in place, and in front of it the data file that it names; take away that of the model it replaces.

    Args:
        draft: The model, in a directory of `drafts`.
        target: Its place.
        data: Its data, or None.
        name: Name of the data file, by `data_name`.
        keep: Data files that stay, whatever they are called.
    """
    kept = {file.resolve() for file in keep}
    doubtful = [file.name for file in _own_data(target) if file.resolve() not in kept]
    if data is not None and not target.with_name(name).exists():
        doubtful.append(name)
    if doubtful:  # for who comes after us, if we do not get to the end
        (draft.parent / _DOUBTFUL).write_bytes("\n".join(doubtful).encode())
    try:
        if data is not None:
            publish(data, target.with_name(name), like=target)
        publish(draft, target)
    finally:
        _drop_unread(target.parent, doubtful)


def _own_data(target: Path) -> list[Path]:
    """Data files that the model at `target` reads and that were written with it."""
    if not target.is_file():
        return []
    named = [file for file in target.parent.iterdir() if file.is_file() and _model_of(file.name) == target.name]
    return [file for file in named if mentions(target, file.name)]


def _model_of(name: str) -> str | None:
    """Name of the model that a data file was written with; None where it is no name by `data_name`."""
    found = re.fullmatch(r"([^/]+)\.[0-9a-f]{16}\.data", name, re.DOTALL)
    return found.group(1) if found else None


def _drop_unread(directory: Path, names: Iterable[str]) -> None:
    """Delete data files that no model beside them reads."""
    for name in names:
        model = _model_of(name)
        if model is None:
            continue
        if not any(mentions(reader, name) for reader in {directory / model, *directory.glob("*.onnx")}):
            (directory / name).unlink(missing_ok=True)


def mentions(model: Path, name: str) -> bool:
    """Whether a file has a name in it, found without reading the file into memory; True where it cannot be read."""
    try:
        if not model.is_file() or not model.stat().st_size:
            return False
        with model.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(name.encode()) >= 0
    except OSError:
        return True
