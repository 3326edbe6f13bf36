"""What an interrupted training goes on from, and interrupts that come between two steps."""

from __future__ import annotations

import io
import os
import pickle
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

from perfonnx.errors import PerfonnxError
from perfonnx.io import one_line, write_atomically

FORMAT = 1


def save(path: str | os.PathLike[str], about: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write a state, atomically.

    Args:
        path: The file.
        about: What training it belongs to, plain data.
        state: Tensors and plain data.

    Raises:
        PerfonnxError: It cannot be written.
    """
    content = io.BytesIO()
    torch.save({"perfonnx_checkpoint": FORMAT, "about": dict(about), **state}, content)
    write_atomically(path, content.getvalue())


def load(path: str | os.PathLike[str], about: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read a state; tensors come to the CPU.

    Raises:
        PerfonnxError: It cannot be read, or belongs to another training than the one described.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise PerfonnxError(f"{path}: cannot be read as a checkpoint ({one_line(error)})") from error
    if not isinstance(state, dict) or state.get("perfonnx_checkpoint") != FORMAT:
        raise PerfonnxError(f"{path}: not a checkpoint of perfonnx; give another file")
    for key, wanted in (about or {}).items():
        if state["about"].get(key) != wanted:
            raise PerfonnxError(
                f"{path}: the checkpoint of another training ({key} differs); delete it or give another file"
            )
    return state


def check_target(path: str | os.PathLike[str], *, resume: bool) -> None:
    """Before anything is done: a checkpoint that is there is not overwritten by mistake.

    Raises:
        PerfonnxError: It is there, and is not to be gone on from.
    """
    if Path(path).exists() and not resume:
        raise PerfonnxError(f"checkpoint {path}: is there already; resume from it, or delete it to start anew")


class Interrupts:
    """Context: Ctrl-C sets `pending` instead of stopping in the middle of a step; a second one stops at once."""

    def __init__(self) -> None:
        self.pending = False
        self._previous: Any = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.pending:
            raise KeyboardInterrupt
        self.pending = True
