"""perfonnx.runtime: the library's path, registration, sessions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import perfonnx
from perfonnx import runtime
from perfonnx.errors import PerfonnxError
from tests.engine.reference import nearest_source
from tests.runtime.nodes import model

MASK = np.eye(4, dtype=bool)
X = np.arange(32, dtype=np.float32).reshape(1, 2, 4, 4)


def _model() -> onnx.ModelProto:
    w = np.ones((3, 2, 1, 1), np.float32)
    return model("PerforatedConv", {"W": w, "B": None, "mask": MASK, "source": nearest_source(MASK)})


def _expected() -> np.ndarray:
    sums = X.sum(axis=1).reshape(1, 16)[:, nearest_source(MASK)[:, 0]]
    return np.repeat(sums.reshape(1, 1, 4, 4), 3, axis=1)


def test_library_path_is_an_absolute_file() -> None:
    path = Path(runtime.get_library_path())
    assert path.is_absolute()
    assert path.name == "libperfonnx.so"
    assert path.is_file()


def test_missing_library_says_how_to_build_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(perfonnx, "__path__", [str(tmp_path)])
    with pytest.raises(PerfonnxError, match="pip install"):
        runtime.get_library_path()


def test_library_that_cannot_be_loaded_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "libperfonnx.so").write_bytes(b"no library")
    monkeypatch.setattr(perfonnx, "__path__", [str(tmp_path)])
    with pytest.raises(PerfonnxError, match=f"onnxruntime {ort.__version__} cannot load"):
        runtime.register(ort.SessionOptions())


@pytest.mark.parametrize("form", ["proto", "bytes", "path", "string"])
def test_session_takes_every_form_of_a_model(form: str, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    onnx.save(_model(), file)
    forms: dict[str, runtime.Model] = {
        "proto": _model(),
        "bytes": file.read_bytes(),
        "path": file,
        "string": str(file),
    }
    np.testing.assert_array_equal(runtime.session(forms[form]).run(None, {"X": X})[0], _expected())


def test_model_too_large_for_one_message_goes_through_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_LARGEST_MESSAGE", 10)
    given = _model()
    before = given.SerializeToString()
    np.testing.assert_array_equal(runtime.session(given).run(None, {"X": X})[0], _expected())
    assert given.SerializeToString() == before


def test_library_false_leaves_the_domain_unknown() -> None:
    with pytest.raises(PerfonnxError, match=r"ai\.perfonnx"):
        runtime.session(_model(), library=False)


def test_options_and_threads_are_taken() -> None:
    options = ort.SessionOptions()
    running = runtime.session(_model(), threads=2, options=options, providers=["CPUExecutionProvider"])
    assert options.intra_op_num_threads == 2
    assert running.get_providers() == ["CPUExecutionProvider"]
    np.testing.assert_array_equal(running.run(None, {"X": X})[0], _expected())


def test_zero_threads_are_refused() -> None:
    with pytest.raises(PerfonnxError, match="threads=0"):
        runtime.session(_model(), threads=0)


def test_missing_and_broken_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(PerfonnxError, match="no such file"):
        runtime.session(tmp_path / "absent.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\x00\x01\x02 not a model")
    with pytest.raises(PerfonnxError, match=r"broken\.onnx") as caught:
        runtime.session(broken)
    assert "\n" not in str(caught.value)
