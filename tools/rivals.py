"""What benchmarks put beside our kernels: onnxruntime's int8, a layer of stride 2 with Resize, our own AVX2 kernels."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import perfonnx
from perfonnx import _engine
from perfonnx.data.inputs import Feed
from perfonnx.runtime import timed_options

CAP = "avx2"
"""The instruction set that processors with AVX-512 are capped to."""


class _Feeds(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """What quantization sees of the data."""

    def __init__(self, feeds: list[Feed]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Feed | None:
        """The next feed, until there is none."""
        return next(self._feeds, None)


def has_vnni() -> bool:
    """Whether products of 8 bits are summed without overflow; elsewhere weights keep to 7 bits."""
    path = Path("/proc/cpuinfo")
    return path.is_file() and "vnni" in path.read_text()


def int8(model: onnx.ModelProto, feed: Feed) -> onnx.ModelProto:
    """The model as onnxruntime quantizes it: static, U8S8, per channel, its ranges from one feed."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, name) for name in ("float.onnx", "ready.onnx", "int8.onnx")]
        onnx.save(model, paths[0])
        quant_pre_process(paths[0], paths[1], skip_symbolic_shape=True)
        quantize_static(
            paths[1],
            paths[2],
            _Feeds([feed]),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=not has_vnni(),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(paths[2])


def strided(
    x: np.ndarray, constants: Mapping[str, np.ndarray], geometry: Mapping[str, Any], size: tuple[int, int]
) -> onnx.ModelProto:
    """A layer of stride 1 computed at every second row and column, and the map filled by Resize (nearest).

    Args:
        x: [N, C, H, W].
        constants: `W` and `B` of the layer.
        geometry: Attributes of its Conv.
        size: Height and width of its output.
    """
    nodes = [
        helper.make_node("Conv", ["X", "W", "B"], ["C"], **{**geometry, "strides": [2, 2]}),
        helper.make_node("Resize", ["C", "", "", "sizes"], ["Y"], mode="nearest"),
    ]
    sizes = np.array([len(x), len(constants["W"]), *size], np.int64)
    graph = helper.make_graph(
        nodes,
        "strided",
        [helper.make_tensor_value_info("X", onnx.TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("Y", onnx.TensorProto.FLOAT, sizes.tolist())],
        [numpy_helper.from_array(v, k) for k, v in {**constants, "sizes": sizes}.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def is_capped_here() -> bool:
    """Whether the processor has more than `CAP`."""
    return _engine.default_isa() != CAP and CAP in _engine.available_isas()


class Capped:
    """A model in a process of its own, whose kernels may use no more than `CAP`; calling it runs it."""

    def __init__(self, model: onnx.ModelProto, feed: Feed, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        with _environment("PERFONNX_ISA", CAP):  # the library reads it when it is loaded
            self._process = context.Process(target=_serve, args=(other, model, feed, threads), daemon=True)
            self._process.start()
        other.close()
        self._pipe.recv()  # it is ready

    def __call__(self) -> float:
        """Run once; milliseconds that the run took there."""
        self._pipe.send(True)
        return float(self._pipe.recv())

    def close(self) -> None:
        """End the process."""
        self._pipe.send(False)
        self._process.join()


def _serve(pipe: Any, model: onnx.ModelProto, feed: Feed, threads: int) -> None:
    session = perfonnx.session(model, threads=threads, options=timed_options())
    session.run(None, feed)
    pipe.send(None)
    while pipe.recv():
        start = time.perf_counter()
        session.run(None, feed)
        pipe.send((time.perf_counter() - start) * 1e3)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
