"""Writing, stopped at any moment: the old file or the new one is there, whole, and nothing else in the end."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from perfonnx import PerfonnxError
from perfonnx.model import files, streaming
from perfonnx.model.atomic import write_atomically
from perfonnx.model.tensors import to_array
from tests.model.chains import as_bytes, chain, external, listing
from tests.passes import nets

EVENTS = ("open", "os.", "shutil.", "tempfile.")
"""Of Python's audit events, those that touch files."""
DONE, KILLED = 0, 99


def _network(value: float) -> ModelProto:
    weights = {"w": np.full((8, 3, 3, 3), value, np.float32), "b": np.full(1000, value, np.float32)}
    return nets.model([nets.conv(y="y")], weights)


def _external(directory: Path, value: float) -> Path:
    """A model with its weights in another file."""
    directory.mkdir(parents=True)
    path = directory / "m.onnx"
    onnx.save_model(_network(value), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    return path


def _value(path: Path) -> float:
    """What all weights of a model are; an error where they are not all the same."""
    tensors = onnx.load(path).graph.initializer
    (value,) = {float(v) for tensor in tensors for v in np.unique(numpy_helper.to_array(tensor))}
    return value


def _data(path: Path) -> list[str]:
    return [f.name for f in path.parent.iterdir() if re.fullmatch(r"m\.onnx\.[0-9a-f]{16}\.data", f.name)]


class _CountedStream:
    """A stream whose writes are counted, and come in two halves."""

    def __init__(self, stream: Any, step: Callable[[], None]) -> None:
        self._stream, self._step = stream, step

    def write(self, data: bytes) -> int:
        half = len(data) // 2
        self._stream.write(data[:half])
        self._stream.flush()
        self._step()
        self._stream.write(data[half:])
        self._stream.flush()
        self._step()
        return len(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> _CountedStream:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()


def _killed_at(count: int, write: Callable[[], None]) -> int:
    """Run in a process that dies in front of its `count`th touch of a file; says how it ended."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = count

    def step() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os._exit(KILLED)

    real_open, real_fsync = Path.open, os.fsync

    def counted_open(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        stream = real_open(self, mode, *args, **kwargs)
        return _CountedStream(stream, step) if mode == "wb" else stream

    def counted_fsync(handle: int) -> None:
        step()
        real_fsync(handle)

    Path.open, os.fsync = counted_open, counted_fsync  # type: ignore[method-assign,assignment]
    sys.addaudithook(lambda event, _: step() if event.startswith(EVENTS) else None)
    try:
        write()
    except BaseException:
        os._exit(1)
    os._exit(DONE)


def _an_hour_later(directory: Path) -> None:
    """What was stopped before it had its lock is left for so long."""
    for left in directory.glob(".perfonnx-*"):
        if not (left / "lock").exists():
            os.utime(left, (time.time() - 3700,) * 2)


def _moments(write: Callable[[], None], prepare: Callable[[], None]) -> Iterator[None]:
    """After each moment at which a writer can be killed, until one gets to its end."""
    for count in range(1000):
        prepare()
        status = _killed_at(count, write)
        assert status in (KILLED, DONE)
        yield
        if status == DONE:
            assert count > 10  # it was killed at all
            return
    raise AssertionError("no end")


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("two files", "two files"),
        *(
            pytest.param(before, now, marks=pytest.mark.slow)
            for before, now in (
                ("nothing", "one file"),
                ("nothing", "two files"),
                ("one file", "one file"),
                ("one file", "two files"),
                ("two files", "one file"),
            )
        ),
    ],
)
def test_a_model_is_the_old_one_or_the_new_one(tmp_path: Path, before: str, now: str) -> None:
    sources = {"one file": tmp_path / "one/m.onnx", "two files": _external(tmp_path / "two", 2)}
    sources["one file"].parent.mkdir()
    sources["one file"].write_bytes(_network(2).SerializeToString())
    older = _external(tmp_path / "older", 1) if before == "two files" else _network(1).SerializeToString()
    out = tmp_path / "out/m.onnx"
    model = files.load(sources[now])

    def prepare() -> None:
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir()
        if before != "nothing":
            files.save(files.load(older), out)

    seen = set()
    for _ in _moments(lambda: files.save(model, out), prepare):
        found = _value(out) if out.exists() else 0
        seen.add(found)
        assert found in (2, 1 if before != "nothing" else 0)
        _an_hour_later(out.parent)
        files.save(files.load(_network(3)), out)  # the next writer leaves nothing but its own
        assert _value(out) == 3
        assert [f.name for f in out.parent.iterdir()] == ["m.onnx"]
    assert len(seen) == 2


@pytest.mark.parametrize("before", [None, b"old"])
def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path, before: bytes | None) -> None:
    path = tmp_path / "out" / "plan.json"

    def prepare() -> None:
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir()
        if before is not None:
            path.write_bytes(before)

    for _ in _moments(lambda: write_atomically(path, b"new" * 100), prepare):
        assert (path.read_bytes() if path.exists() else None) in (before, b"new" * 100)
        _an_hour_later(path.parent)
        write_atomically(path, b"third")
        assert [(f.name, f.read_bytes()) for f in path.parent.iterdir()] == [("plan.json", b"third")]


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename may reach the disk before what is renamed; a model before the data that it names."""
    model, log = files.load(_external(tmp_path / "in", 1)), []
    real_replace, real_fsync = os.replace, os.fsync

    def replace(source: Any, target: Any) -> None:
        log.append(("rename", os.stat(source).st_ino))
        real_replace(source, target)

    def fsync(handle: int) -> None:
        log.append(("flush", os.fstat(handle).st_ino))
        real_fsync(handle)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(os, "fsync", fsync)
    files.save(model, tmp_path / "m.onnx")
    data, made, place = (tmp_path / name for name in (_data(tmp_path / "m.onnx")[0], "m.onnx", "."))
    numbers = [file.stat().st_ino for file in (data, made, place)]
    assert log == [(what, numbers[i]) for i in (0, 1) for what, i in (("flush", i), ("rename", i), ("flush", 2))]


def test_data_go_with_the_model_they_were_written_with(tmp_path: Path) -> None:
    out = tmp_path / "out/m.onnx"
    out.parent.mkdir()
    for value in (1, 2):
        files.save(files.load(_external(tmp_path / f"in{value}", value)), out)
        assert len(_data(out)) == 1
        assert _value(out) == value
    files.save(files.load(_network(3)), out)
    assert _data(out) == []


def test_data_that_another_model_reads_stay(tmp_path: Path) -> None:
    out = tmp_path / "out/m.onnx"
    out.parent.mkdir()
    files.save(files.load(_external(tmp_path / "in1", 1)), out)
    shutil.copy(out, out.with_name("copy.onnx"))
    files.save(files.load(_external(tmp_path / "in2", 2)), out)
    out.rename(out.with_name("moved.onnx"))
    files.save(files.load(_network(3)), out)
    assert [_value(out.with_name(name)) for name in ("copy.onnx", "moved.onnx", "m.onnx")] == [1, 2, 3]
    source = files.load(out.with_name("moved.onnx"))  # whose data are called like those of m.onnx
    files.save(source, out)
    assert [_value(out.with_name(name)) for name in ("copy.onnx", "moved.onnx", "m.onnx")] == [1, 2, 2]
    files.save(files.load(_network(4)), out)
    assert [_value(out.with_name(name)) for name in ("copy.onnx", "moved.onnx", "m.onnx")] == [1, 2, 4]


def test_the_same_model_in_its_own_place(tmp_path: Path) -> None:
    """It points to its new data afterwards."""
    path = _external(tmp_path / "in", 1)
    model = files.load(path)
    for _ in range(2):
        files.save(model, path)
        assert _value(path) == 1
        assert len(_data(path)) == 1
    np.testing.assert_array_equal(to_array(model.proto.graph.initializer[0], model.directory), 1)


def test_the_weights_themselves_are_no_place_to_write_to(tmp_path: Path) -> None:
    path = _external(tmp_path / "in", 1)
    (tmp_path / "in/link.onnx").symlink_to("w.bin")
    for name in ("w.bin", "link.onnx"):
        with pytest.raises(PerfonnxError, match=r"holds the weights of m\.onnx; choose another name"):
            files.save(files.load(path), tmp_path / "in" / name)
    assert _value(path) == 1


def test_directories_that_others_write_in_are_left_alone(tmp_path: Path) -> None:
    busy, new, old, strange = (tmp_path / f".perfonnx-{name}" for name in ("busy", "new", "old", "strange"))
    for directory in (busy, new, old, strange):
        directory.mkdir()
    (strange / "lock").touch()
    (strange / "doubtful").write_text("precious.txt\n../precious.0123456789abcdef.data\n")
    (tmp_path / "precious.txt").touch()
    os.utime(old, (time.time() - 7200,) * 2)
    with (busy / "lock").open("wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        write_atomically(tmp_path / "a.txt", "a")
        assert sorted(p.name for p in tmp_path.iterdir()) == [busy.name, new.name, "a.txt", "precious.txt"]


class DiskFullError(OSError):
    def __init__(self) -> None:
        super().__init__(28, "No space left on device")


@pytest.mark.parametrize(
    ("data", "failing"),
    [*((False, i) for i in range(2)), *((True, i) for i in range(7))],  # all that is put on disk, in turn
)
def test_a_failure_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bool, failing: int
) -> None:
    path = external(tmp_path / "in")[0] if data else tmp_path / "in.onnx"
    if not data:
        path.write_bytes(as_bytes(chain()))
    out = tmp_path / "out"
    out.mkdir()
    old = "m.onnx.0123456789abcdef.data"
    (out / "m.onnx").write_bytes(b"old model of " + old.encode())
    (out / old).write_bytes(b"old")
    before = listing(tmp_path)
    result = nets.rewrite(path, rate=0.5)
    calls = 0

    def fails(real: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == failing + 1:
                raise DiskFullError
            return real(*args, **kwargs)

        return wrapped

    monkeypatch.setattr(Path, "write_bytes", fails(Path.write_bytes))
    monkeypatch.setattr(os, "replace", fails(os.replace))
    monkeypatch.setattr(streaming, "_copy_data", fails(streaming._copy_data))
    monkeypatch.setattr(files, "write_message", fails(files.write_message))
    with pytest.raises(PerfonnxError, match=r"m\.onnx: cannot be written: No space left on device"):
        result.save(out / "m.onnx")
    monkeypatch.undo()
    assert listing(tmp_path) == before


@pytest.mark.parametrize("existed", [True, False])
def test_data_are_put_back_when_the_model_cannot_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existed: bool
) -> None:
    path, _ = external(tmp_path / "in")
    out = tmp_path / "out"
    out.mkdir()
    if existed:
        old = "m.onnx.0123456789abcdef.data"
        (out / "m.onnx").write_bytes(b"old model of " + old.encode())
        (out / old).write_bytes(b"old data")
    before = listing(out)
    result = nets.rewrite(path, rate=0.5)
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        if Path(target).name == "m.onnx":
            raise DiskFullError
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(PerfonnxError, match="No space left"):
        result.save(out / "m.onnx")
    assert listing(out) == before


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    result = nets.rewrite(chain(), rate=0.5)
    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        result.save(tmp_path / "m.onnx")
    assert listing(tmp_path) == {}


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are refused before any work: the model is not even read."""
    (tmp_path / "dir").mkdir()
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(p.name for p in tmp_path.iterdir())
    for place, match in (
        ("dir", "is a directory"),
        ("pipe", "is not a regular file"),
        ("none/m.onnx", "there is no directory"),
        ("file/m.onnx", "there is no directory|Not a directory"),
        ("x" * 300, "cannot be written: File name too long"),
        ("a\0b", "has a NUL in it"),
    ):
        with pytest.raises(PerfonnxError, match=match):
            nets.rewrite("not there.onnx" if place != "file" else "x", tmp_path / place)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(PerfonnxError, match="no permission to write"):
        nets.rewrite("not there.onnx", tmp_path / "m.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_modes(tmp_path: Path) -> None:
    """A new file gets the mode that the process gives new files; a replaced one keeps its own."""
    mask = os.umask(0o027)
    try:
        nets.rewrite(chain(), tmp_path / "new.onnx")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "new.onnx").stat().st_mode) == 0o640
    (tmp_path / "new.onnx").chmod(0o604)
    nets.rewrite(chain(), tmp_path / "new.onnx")
    assert stat.S_IMODE((tmp_path / "new.onnx").stat().st_mode) == 0o604


def test_relative_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nets.rewrite(chain(), "out.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["out.onnx"]
