"""What an interrupted training goes on from, and interrupts that come between two steps."""

from __future__ import annotations

import io
import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

from perfonnx.errors import PerfonnxError, one_line
from perfonnx.model.atomic import check_target, digest, write_atomically

FORMAT = 1
_MAGIC = f"perfonnx checkpoint {FORMAT} ".encode()  # followed by the digest of what comes behind the line


@dataclass
class Checkpoint:
    """A file that holds where a training is.

    Attributes:
        path: The file; None: nothing is kept.
        resume: Go on from the file where it is there.
        about: What the training is about, plain data; the file of another one is refused.
    """

    path: str | os.PathLike[str] | None
    resume: bool = False
    about: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Before anything is done: a file that is there is not overwritten by mistake.

        Raises:
            PerfonnxError: It is there, and is not to be gone on from, or it could not be written.
        """
        if self.path is None:
            return
        check_target(self.path)
        if not self.resume and Path(self.path).exists():
            raise PerfonnxError(f"checkpoint {self.path}: is there already; resume from it, or delete it to start anew")

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a state, tensors and plain data, atomically.

        Raises:
            PerfonnxError: It cannot be written.
        """
        if self.path is None:
            return
        content = io.BytesIO()
        torch.save({"about": self.about, **state}, content)
        data = content.getvalue()
        write_atomically(self.path, _MAGIC + digest(data).encode() + b"\n" + data)

    def load(self) -> dict[str, Any] | None:
        """The state to go on from, its tensors on the CPU; None where there is none.

        Raises:
            PerfonnxError: The file cannot be read, or is the checkpoint of another training.
        """
        if self.path is None or not self.resume or not Path(self.path).exists():
            return None
        try:
            head, _, data = Path(self.path).read_bytes().partition(b"\n")
        except OSError as error:
            raise PerfonnxError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        if not head.startswith(_MAGIC):
            raise PerfonnxError(f"{self.path}: not a checkpoint of this version of perfonnx; give another file")
        if head[len(_MAGIC) :] != digest(data).encode():
            raise PerfonnxError(f"{self.path}: is damaged; delete it to start anew")
        try:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:  # written by another version of PyTorch, perhaps; it raises many kinds
            raise PerfonnxError(f"{self.path}: cannot be read as a checkpoint ({one_line(error)})") from error
        for key, wanted in self.about.items():
            if state["about"].get(key) != wanted:
                raise PerfonnxError(
                    f"{self.path}: the checkpoint of another training ({key} differs); delete it or give another file"
                )
        return state


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
