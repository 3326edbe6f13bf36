"""Which execution provider models are compared and timed on."""

from __future__ import annotations

from typing import Any

import onnxruntime as ort
import pytest

from perfonnx import runtime
from perfonnx.cli import ExitStatus, main
from perfonnx.comparing.check import compare
from perfonnx.data.feeds import random_feeds
from perfonnx.errors import PerfonnxError
from perfonnx.running.opened import open_model
from tests.models.small import dense, sampled

HERE = "CUDAExecutionProvider" in ort.get_available_providers()


def test_models_run_on_the_cpu_unless_something_else_is_said() -> None:
    assert runtime.chosen_provider() == "cpu"
    opened = open_model(dense())
    assert opened.provider == "cpu"
    assert opened.session.get_providers() == ["CPUExecutionProvider"]  # type: ignore[attr-defined]


def test_what_a_provider_lacks_runs_on_the_cpu() -> None:
    assert runtime.provider_list("cpu") == ["CPUExecutionProvider"]
    assert runtime.provider_list("cuda") == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    exact = [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]
    assert runtime.provider_list("cuda", exact=True) == exact
    assert runtime.provider_list("cpu", exact=True) == ["CPUExecutionProvider"]


def test_an_unknown_provider_is_refused_with_the_known_ones() -> None:
    with pytest.raises(PerfonnxError, match="choose from cpu, cuda"), runtime.with_provider("abacus"):
        pass


@pytest.mark.skipif(HERE, reason="this onnxruntime has the CUDA provider")
def test_an_onnxruntime_without_the_provider_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PerfonnxError, match="install the package onnxruntime-gpu"), runtime.with_provider("cuda"):
        pass
    assert main(["bench", "--provider", "cuda", __file__]) == ExitStatus.BAD_INPUT
    assert "onnxruntime-gpu" in capsys.readouterr().err


def test_a_library_that_was_built_without_the_provider_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(runtime, "get_library_path", lambda: __file__[:-3] + "_none.py")
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda path: b"a library for the CPU alone")
    with pytest.raises(PerfonnxError, match="PERFONNX_CUDA=ON"), runtime.with_provider("cuda"):
        pass


def test_a_provider_that_does_not_work_here_is_no_silent_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnTheCpu(ort.InferenceSession):  # type: ignore[misc]
        def __init__(self, model: bytes, options: ort.SessionOptions, providers: list[str]) -> None:
            super().__init__(model, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "InferenceSession", OnTheCpu)
    with pytest.raises(PerfonnxError, match="cannot use its CUDAExecutionProvider"):
        runtime.session(dense(), library=False, providers=runtime.provider_list("cuda"))
    with pytest.raises(PerfonnxError, match="cannot use its CUDAExecutionProvider"):
        runtime.session(dense(), library=False, providers=runtime.provider_list("cuda", exact=True))


def test_models_are_checked_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def session(model: runtime.Model, **settings: Any) -> ort.InferenceSession:
        used.append(settings.pop("providers"))
        return made(model, **settings)

    made = runtime.session
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(runtime, "_serves", lambda name: True)
    monkeypatch.setattr(runtime, "session", session)
    feeds = list(random_feeds(open_model(sampled()).inputs, n=1))
    used.clear()
    with runtime.with_provider("cuda"):
        assert compare(sampled(), sampled(), feeds).kernel
    assert used == 3 * [runtime.provider_list("cuda", exact=True)]


def test_the_choice_ends_with_its_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(runtime, "_serves", lambda name: True)
    with runtime.with_provider("cuda"):
        assert runtime.chosen_provider() == "cuda"
        with runtime.with_provider("cpu"):
            assert runtime.chosen_provider() == "cpu"
        assert runtime.chosen_provider() == "cuda"
    assert runtime.chosen_provider() == "cpu"
