"""What a model's activations need in memory: measured in a process of its own, and counted from the graph.

Measured is what the process really holds at the peak of a run beyond what it holds between runs, which is the weights,
onnxruntime and Python. onnxruntime's arena and memory pattern are off and the allocator gives back what is freed, so
that a tensor that is no longer needed does not count. With them on, a process needs more: the arena grows by doubling
and keeps what it has. Scratch memory of kernels is in the figure, and so are the outputs; the inputs are not.

Counted is the largest sum of tensors that are alive at one node, in the order of the nodes in the file, where an
elementwise operator writes into an input that nobody reads after it. It knows nothing of scratch memory, and should
be a little below what is measured.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfonnx import runtime
from perfonnx.errors import PerfonnxError
from perfonnx.model import files
from perfonnx.model.files import ModelSource
from perfonnx.model.proto import is_standard, used_names
from perfonnx.model.shapes import infer_types
from perfonnx.model.signature import fix_input_shapes
from perfonnx.model.workspace import Workspace
from perfonnx.running.opened import open_model

RUNS = 3
"""Runs that are measured; their median counts."""

TIMEOUT = 600
"""Seconds that a model may take to load and run in the measuring process."""

_ALLOCATOR = {  # glibc: every tensor is mapped on its own and unmapped when freed
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_MMAP_MAX_": "1048576",
    "MALLOC_TRIM_THRESHOLD_": "0",
    "MALLOC_TOP_PAD_": "0",
}

_IN_PLACE = frozenset(
    "Add BatchNormalization Clip Div Dropout Elu Flatten HardSigmoid HardSwish Identity LeakyRelu Mul PRelu Relu "  # noqa: SIM905
    "Reshape Sigmoid Softplus Squeeze Sub Sum Tanh Unsqueeze".split()
)
"""Operators that onnxruntime lets write over an input, gives as a view of it, or fuses into the one before."""


@dataclass(frozen=True)
class ActivationMemory:
    """Bytes that the activations of one model need.

    Attributes:
        peak: Most that is resident in a run, over what is between runs; measured.
        live: Largest sum of tensors that are alive at once; counted.
    """

    peak: int
    live: int


def activation_memory(
    model: ModelSource,
    feed: Mapping[str, NDArray[Any]],
    *,
    threads: int | None = None,
) -> ActivationMemory:
    """Measure and count what a model's activations need.

    Args:
        model: See `perfonnx.model.files.load`.
        feed: The inputs, by name.
        threads: Intra-op threads, None for onnxruntime's default.

    Raises:
        PerfonnxError: The model does not load or run, or the system does not tell what a process holds.
    """
    return ActivationMemory(
        measured_peak(model, feed, threads=threads),
        live_bytes(model, {name: array.shape for name, array in feed.items()}),
    )


# --- measured --------------------------------------------------------------------------------------------------------


def measured_peak(
    model: ModelSource,
    feed: Mapping[str, NDArray[Any]],
    *,
    threads: int | None = None,
) -> int:
    """The measured figure alone; see `activation_memory`."""
    with tempfile.TemporaryDirectory(prefix="perfonnx-memory-") as directory:
        path = Path(directory) / "model.onnx"
        if isinstance(model, (str, os.PathLike)):
            path = Path(model).absolute()  # links stay: data are looked for beside them
        else:
            files.save(files.load(model), path)
        arrays = Path(directory) / "feed.npz"
        # By number: a name may be one that no file in an archive can have.
        np.savez(arrays, **{str(index): array for index, array in enumerate(feed.values())})  # type: ignore[arg-type]
        task = {
            "model": str(path),
            "names": list(feed),
            "feed": str(arrays),
            "threads": threads,
            "libraries": runtime.other_libraries(),
        }
        try:
            done = subprocess.run(
                [sys.executable, "-m", "perfonnx.running.memory"],
                input=json.dumps(task),
                env={**os.environ, **_ALLOCATOR},
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise PerfonnxError(f"measuring memory took longer than {TIMEOUT} s and was stopped") from error
    lines = done.stdout.splitlines()
    try:
        answer = json.loads(lines[-1])
        if "error" in answer:
            raise PerfonnxError(answer["error"])
        return int(answer["peak"])
    except (IndexError, KeyError, ValueError) as error:
        why = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise PerfonnxError(f"memory cannot be measured: the measuring process failed: {why}") from error


def _measure(task: Mapping[str, Any]) -> int:
    """In the measuring process: load, warm up, and watch the runs."""
    options = runtime.quiet_options()
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    with runtime.with_libraries(task["libraries"]):
        opened = open_model(task["model"], threads=task["threads"], options=options)
    with np.load(task["feed"]) as arrays:
        feed = {name: arrays[str(index)] for index, name in enumerate(task["names"])}
    opened.run(feed)  # tables and threads that the first run makes stay
    return int(statistics.median(_peak_of_run(opened.session, feed) for _ in range(RUNS)))


def _peak_of_run(session: Any, feed: Mapping[str, NDArray[Any]]) -> int:
    try:
        Path("/proc/self/clear_refs").write_text("5")  # from here on, VmHWM is the most that is resident
        before = _status("VmRSS")
        session.run(None, feed)
        return max(_status("VmHWM") - before, 0)
    except OSError as error:
        raise PerfonnxError("memory cannot be measured here: it needs Linux's /proc/self/clear_refs") from error


def _status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


# --- counted ---------------------------------------------------------------------------------------------------------


def live_bytes(model: ModelSource, shapes: Mapping[str, tuple[int, ...]] | None = None) -> int:
    """The largest sum of tensors that nodes of the main graph produce and that are alive at one node.

    Args:
        model: See `perfonnx.model.files.load`.
        shapes: Sizes of the inputs by name; a symbolic batch size that is left counts as 1.
    """
    loaded = files.load(model)
    inputs = {info.name for info in loaded.proto.graph.input}
    fix_input_shapes(loaded, {name: shape for name, shape in (shapes or {}).items() if name in inputs})
    workspace = Workspace.open(loaded)
    infer_types(workspace)

    nodes = [node for node in workspace.node_protos() if node.op_type != "Constant"]
    last: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in used_names([node]):
            last[name] = index
    for output in loaded.proto.graph.output:
        last[output.name] = len(nodes)

    alive: dict[str, int] = {}
    peak = 0
    for index, node in enumerate(nodes):
        made = {name: _size(workspace, name) for name in node.output if name}
        reused = 0
        if node.op_type in _IN_PLACE and is_standard(node) and made:
            first = next(iter(made.values()))
            reused = next((alive[n] for n in node.input if last.get(n) == index and alive.get(n) == first), 0)
        peak = max(peak, sum(alive.values()) + sum(made.values()) - reused)
        alive.update(made)
        alive = {name: size for name, size in alive.items() if last.get(name, -1) > index}
    return peak


def _size(workspace: Workspace, name: str) -> int:
    known = workspace.types.get(name)
    return (known.byte_size or 0) if known is not None else 0


def main() -> int:
    """The measuring process: a task as JSON on standard input, its answer on standard output."""
    try:
        answer: dict[str, Any] = {"peak": _measure(json.load(sys.stdin))}
    except PerfonnxError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
