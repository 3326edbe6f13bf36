"""Runs rewritten networks on onnxruntime's CUDA provider, against the same library on the CPU, and times them.

    python tools/gpu_networks.py check --library libperfonnx.so --json results.json folder/*.onnx
    python tools/gpu_networks.py time --library libperfonnx.so --json results.json folder/*.onnx
    python tools/gpu_networks.py empty model.onnx skeleton.onnx     # without the numbers of its large weights

Needs an onnxruntime with its CUDA provider and a GPU (`empty`: neither), but not perfonnx. Weights that a model lacks
are filled in, seeded: what they are does not matter to the time.

check: which provider ran each operator, the largest difference from the CPU's outputs relative to their size, with and
without TF32, by several threads at once and from a CUDA graph.

time: milliseconds of a run whose inputs and outputs are on the GPU, run by run and from a CUDA graph, with TF32 and in
float16. Files are named NETWORK_VARIANT.onnx; the variant `dense` is the original, which is also timed in the layout
NHWC, and which the others of its network are compared with.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

STRICT, TF32 = 1e-5, 1e-3
"""Of the error's norm relative to the result's."""


LARGE = 4096
"""Numbers of a weight that `empty` leaves out."""


def has_numbers(tensor: onnx.TensorProto) -> bool:
    """Whether it is not one that `empty` emptied."""
    return bool(tensor.raw_data or tensor.float_data) or math.prod(tensor.dims) == 0


def empty(model: onnx.ModelProto) -> None:
    """Leaves out the numbers of large weights."""
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and math.prod(tensor.dims) > LARGE:
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")


@functools.cache
def loaded(path: Path, half: bool = False) -> bytes:
    """A model with numbers for weights that have none, the same for the same shape; in float16 if `half`."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and not has_numbers(tensor):
            dims = list(tensor.dims)
            numbers = np.random.default_rng(dims).standard_normal(dims, np.float32)
            tensor.raw_data = (numbers * np.float32(math.sqrt(2 / math.prod(dims[1:])))).tobytes()
    if half:
        factors = {name for node in model.graph.node if node.op_type == "Resize" for name in node.input[1:]}
        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT and tensor.name not in factors:
                numbers = numpy_helper.to_array(tensor).astype(np.float16)
                tensor.CopyFrom(numpy_helper.from_array(numbers, tensor.name))
        for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
            if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
                value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    return model.SerializeToString()


def options(library: str) -> ort.SessionOptions:
    """With the operators registered."""
    made = ort.SessionOptions()
    made.log_severity_level = 3
    made.register_custom_ops_library(library)
    return made


def session(model: bytes, library: str, cuda: bool, tf32: bool = False, **provider: Any) -> ort.InferenceSession:
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


def placed(model: bytes, library: str, feed: dict[str, np.ndarray]) -> dict[str, str]:
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
    return median(lambda: made.run_with_iobinding(binding), seconds)


def graph_replay(model: bytes, library: str, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
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
    name = loaded(model)
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


def replayed(made: ort.InferenceSession, feed: dict[str, np.ndarray], outputs: list[Any], seconds: float) -> float:
    """The median milliseconds of runs of a session that replays a CUDA graph."""
    binding = made.io_binding()
    for name, value in feed.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value, "cuda", 0))
    values = [ort.OrtValue.ortvalue_from_numpy(value, "cuda", 0) for value in outputs]
    for output, value in zip(made.get_outputs(), values, strict=True):
        binding.bind_ortvalue_output(output.name, value)
    return median(lambda: made.run_with_iobinding(binding), seconds)


def median(run: Callable[[], Any], seconds: float) -> float:
    """Milliseconds of a run."""
    for _ in range(5):
        run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def time_one(model: Path, library: str, batch: int, half: bool, seconds: float, nhwc: bool) -> dict[str, Any]:
    """A model's times in one mode."""
    data = loaded(model, half)
    settings = {"prefer_nhwc": "1"} if nhwc else {}
    plain = session(data, library, cuda=True, tf32=True, **settings)
    feed = inputs(plain, batch)
    network, _, variant = model.stem.partition("_")
    found = {"network": network, "variant": variant + (" nhwc" if nhwc else ""), "batch": batch}
    found["mode"] = "fp16" if half else "tf32"
    found["ms"] = milliseconds(plain, feed, seconds)
    outputs = plain.run(None, feed)
    del plain
    graph = session(data, library, cuda=True, tf32=True, enable_cuda_graph="1", **settings)
    found["ms_graph"] = replayed(graph, feed, outputs, seconds)
    return found


def report(results: list[dict[str, Any]]) -> None:
    """Writes how much faster each is than the faster of the originals, and prints it."""
    for one in results:
        same = [r for r in results if all(r[key] == one[key] for key in ("network", "batch", "mode"))]
        for key in ("ms", "ms_graph"):
            dense = [r[key] for r in same if r["variant"].startswith("dense")]
            one["speedup" + key[2:]] = min(dense) / one[key] if dense else None
        print(
            f"{one['network']:10} {one['mode']} batch {one['batch']:3} {one['variant']:12} "
            f"{one['ms']:8.3f} ms {one['speedup'] or 0:5.2f}x, as a graph {one['ms_graph']:8.3f} ms "
            f"{one['speedup_graph'] or 0:5.2f}x"
        )


def run_time(args: argparse.Namespace) -> dict[str, Any]:
    """Times all models; those for which there is no time left are counted."""
    end = time.perf_counter() + args.budget
    results: list[dict[str, Any]] = []
    problems: list[str] = []
    left = 0
    networks: dict[str, list[Path]] = {}
    for model in args.models:
        networks.setdefault(model.stem.partition("_")[0], []).append(model)
    for batch, network, half in product(args.batches, networks, (False, True)):
        for model in networks[network]:
            for nhwc in (False, True) if model.stem.endswith("_dense") else (False,):
                if time.perf_counter() > end:
                    left += 1
                    continue
                try:
                    results.append(time_one(model, args.library, batch, half, args.seconds, nhwc))
                    print(json.dumps(results[-1]), flush=True)
                except Exception as problem:  # the others go on
                    traceback.print_exc()
                    problems.append(f"{model.stem} batch {batch}: {problem}")
    report(results)
    print(f"{len(problems)} failed, {left} left out for want of time")
    return {"times": results, "problems": problems, "left_out": left, "passed": not problems}


def run_check(args: argparse.Namespace) -> dict[str, Any]:
    """Checks all models."""
    results = []
    for model in args.models:
        try:
            results.append(look_at(model, args.library, args.batch, args.seconds))
        except Exception as problem:  # the others go on
            traceback.print_exc()
            results.append({"model": model.stem, "passed": False, "problem": str(problem)})
        print(json.dumps(results[-1]), flush=True)
    return {"networks": results, "passed": all(result["passed"] for result in results)}


def run_empty(args: argparse.Namespace) -> dict[str, Any]:
    """Writes the skeleton of a model."""
    model = onnx.load(args.source)
    empty(model)
    args.target.write_bytes(model.SerializeToString())
    return {"passed": True}


def main() -> int:
    """Exit status 1 where a model disagrees, fails, or has one of our operators on the CPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, run in (("check", run_check), ("time", run_time)):
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        command.add_argument("models", nargs="+", type=Path)
        command.add_argument("--library", required=True)
        command.add_argument("--seconds", type=float, default=0.2, help="for each time")
        command.add_argument("--json", type=Path)
        if name == "check":
            command.add_argument("--batch", type=int, default=8)
        else:
            command.add_argument("--batches", type=int, nargs="+", default=[32, 1])
            command.add_argument("--budget", type=float, default=120, help="seconds for all")
    command = commands.add_parser("empty")
    command.set_defaults(run=run_empty, json=None)
    command.add_argument("source", type=Path)
    command.add_argument("target", type=Path)
    args = parser.parse_args()
    result = {"onnxruntime": ort.__version__, **args.run(args)}
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1))
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
