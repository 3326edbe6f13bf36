"""Runs rewritten networks on onnxruntime's CUDA provider, against the same library on the CPU.

    python tools/gpu_networks.py --library libperfonnx.so --json results.json folder/*.onnx

Needs an onnxruntime with its CUDA provider and a GPU, but neither perfonnx nor PyTorch. For each model: which provider
ran each of its operators, the largest difference from the CPU's outputs relative to their size, with and without TF32,
and the time of a run, inputs and outputs on the GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

STRICT, TF32 = 1e-5, 1e-3
"""Of the error's norm relative to the result's."""


def options(library: str) -> ort.SessionOptions:
    """With the operators registered."""
    made = ort.SessionOptions()
    made.log_severity_level = 3
    made.register_custom_ops_library(library)
    return made


def session(model: str, library: str, cuda: bool, tf32: bool = False, **provider: Any) -> ort.InferenceSession:
    """On the GPU, with everything that its provider lacks on the CPU, or on the CPU alone."""
    if not cuda:
        return ort.InferenceSession(model, options(library), providers=["CPUExecutionProvider"])
    settings = {"use_tf32": "1" if tf32 else "0", **provider}
    providers = [("CUDAExecutionProvider", settings), "CPUExecutionProvider"]
    made = ort.InferenceSession(model, options(library), providers=providers)
    if made.get_providers()[0] != "CUDAExecutionProvider":
        raise RuntimeError("onnxruntime has no CUDA provider here")
    return made


def inputs(made: ort.InferenceSession, batch: int) -> dict[str, np.ndarray]:
    """Standard normal, symbolic dimensions being `batch`."""
    generator = np.random.default_rng(0)
    result = {}
    for value in made.get_inputs():
        shape = [size if isinstance(size, int) else batch for size in value.shape]
        kind = np.float16 if value.type == "tensor(float16)" else np.float32
        result[value.name] = generator.standard_normal(shape).astype(kind)
    return result


def error(result: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """The largest of the outputs' errors."""
    return max(
        float(np.linalg.norm((a.astype(np.float64) - b).ravel()) / max(np.linalg.norm(b.astype(np.float64).ravel()), 1))
        for a, b in zip(result, expected, strict=True)
    )


def placed(model: str, library: str, feed: dict[str, np.ndarray]) -> dict[str, str]:
    """The provider of each node, by a profile of one run."""
    with tempfile.TemporaryDirectory() as place:
        chosen = options(library)
        chosen.enable_profiling = True
        chosen.profile_file_prefix = str(Path(place) / "profile")
        made = ort.InferenceSession(model, chosen, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
        made.run(None, feed)
        events = json.loads(Path(made.end_profiling()).read_text())
    return {
        f"{event['args']['op_name']} {event['name']}": event["args"]["provider"]
        for event in events
        if event.get("cat") == "Node" and event["args"].get("provider")
    }


def milliseconds(made: ort.InferenceSession, feed: dict[str, np.ndarray], seconds: float) -> float:
    """The median of runs whose inputs and outputs stay on the GPU."""
    binding = made.io_binding()
    for name, value in feed.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value, "cuda", 0))
    for output in made.get_outputs():
        binding.bind_output(output.name, "cuda", 0)
    for _ in range(5):
        made.run_with_iobinding(binding)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        made.run_with_iobinding(binding)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def graph_replay(model: str, library: str, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of a run that replays a CUDA graph."""
    made = session(model, library, cuda=True, enable_cuda_graph="1")
    binding = made.io_binding()
    values = {name: ort.OrtValue.ortvalue_from_numpy(np.zeros_like(value), "cuda", 0) for name, value in feed.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    cpu = session(model, library, cuda=False)
    outputs = [ort.OrtValue.ortvalue_from_numpy(np.zeros_like(value), "cuda", 0) for value in cpu.run(None, feed)]
    for output, value in zip(made.get_outputs(), outputs, strict=True):
        binding.bind_ortvalue_output(output.name, value)
    for _ in range(4):  # the first runs fill the arena, then one is captured
        made.run_with_iobinding(binding)
    for name, value in feed.items():
        values[name].update_inplace(value)
    made.run_with_iobinding(binding)
    return [value.numpy() for value in outputs]


def at_once(made: ort.InferenceSession, feed: dict[str, np.ndarray], expected: list[np.ndarray]) -> float:
    """The largest error where several threads run one session."""
    errors: list[float] = []

    def work() -> None:
        for _ in range(8):
            errors.append(error(made.run(None, feed), expected))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return max(errors) if len(errors) == 32 else float("inf")


def look_at(model: Path, library: str, batch: int, seconds: float) -> dict[str, Any]:
    """All that is said of a model."""
    name = str(model)
    cpu = session(name, library, cuda=False)
    feed = inputs(cpu, batch)
    expected = cpu.run(None, feed)
    found: dict[str, Any] = {"model": model.stem, "batch": next(iter(feed.values())).shape[0]}
    half = any(value.dtype == np.float16 for value in feed.values())
    strict, rounded = (1e-2, 1e-2) if half else (STRICT, TF32)
    checks: dict[str, tuple[float, float]] = {}

    nodes = placed(name, library, feed)
    ours = ("Conv", "Compact", "ExpandRows", "Pool")
    found["on_cpu"] = sorted(node for node, where in nodes.items() if where == "CPUExecutionProvider")
    found["operators"] = sum(any(part in node for part in ours) for node in nodes)
    found["ours_on_cpu"] = sum(any(part in node.split()[0] for part in ours) for node in found["on_cpu"])
    plain = session(name, library, cuda=True)
    checks["strict"] = error(plain.run(None, feed), expected), strict
    checks["threads"] = at_once(plain, feed, expected), strict
    fast = session(name, library, cuda=True, tf32=True)
    checks["tf32"] = error(fast.run(None, feed), expected), 10 * rounded  # it grows from layer to layer
    found["ms"] = milliseconds(plain, feed, seconds)
    found["ms_tf32"] = milliseconds(fast, feed, seconds)
    if not found["on_cpu"]:
        checks["graph"] = error(graph_replay(name, library, feed), expected), strict
    found["errors"] = {check: value for check, (value, _) in checks.items()}
    found["passed"] = found["ours_on_cpu"] == 0 and all(value <= most for value, most in checks.values())
    return found


def main() -> int:
    """Exit status 1 where a model disagrees, fails, or has one of our operators on the CPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--library", required=True)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.5, help="of timing for each model and mode")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = []
    for model in args.models:
        try:
            results.append(look_at(model, args.library, args.batch, args.seconds))
        except Exception as problem:  # the others go on
            traceback.print_exc()
            results.append({"model": model.stem, "passed": False, "problem": str(problem)})
        print(json.dumps(results[-1]), flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps({"onnxruntime": ort.__version__, "networks": results}, indent=1))
    return 0 if all(result["passed"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
