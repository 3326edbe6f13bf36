"""The operators inside onnxruntime, against onnxruntime's own Conv and numpy."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from perfonnx import _engine
from perfonnx.runtime import get_library_path, session
from tests.engine.reference import NO_ACTIVATION, Geometry, activate, interpolate, nearest_source, radius_adaptive
from tests.processes import run_python
from tests.runtime.nodes import model

ACT: dict[str, Any] = {"negative_slope": 0.1, "clip_min": -0.5, "clip_max": 3.0}
BOUNDS = (0.1, -0.5, 3.0)
ROOT = str(Path(__file__).resolve().parents[2])


class Layer:
    """A random convolution with its constants, its attributes and stock onnxruntime's dense result."""

    def __init__(
        self,
        seed: int = 0,
        *,
        geometry: Geometry | None = None,
        group: int = 1,
        size: tuple[int, int] = (13, 10),
        keep: float = 0.4,
        channels: tuple[int, int] = (8, 40),
    ) -> None:
        rng = np.random.default_rng(seed)
        self.geometry = geometry or Geometry()
        self.group = group
        self.size = size
        self.rng = rng
        self.channels = channels[0] * group
        self.w = (rng.standard_normal((channels[1] * group, channels[0], *self.geometry.kernel)) / 6).astype(np.float32)
        self.b = rng.standard_normal(len(self.w)).astype(np.float32)
        self.mask = rng.random(self.geometry.output_size(*size)) < keep
        self.source = nearest_source(self.mask)
        self.attributes: dict[str, Any] = {
            "kernel_shape": self.geometry.kernel,
            "strides": self.geometry.strides,
            "pads": self.geometry.pads,
            "dilations": self.geometry.dilations,
            "group": group,
        }

    def images(self, count: int) -> np.ndarray:
        return self.rng.standard_normal((count, self.channels, *self.size)).astype(np.float32)

    def dense(self, x: np.ndarray) -> np.ndarray:
        if len(x) == 0:
            return np.zeros((0, len(self.w), *self.mask.shape))
        stock = session(model("Conv", {"W": self.w, "B": self.b}, domain="", **self.attributes), library=False)
        result: np.ndarray = stock.run(None, {"X": x})[0]
        return result.astype(np.float64)

    def perforated(self, **changes: Any) -> onnx.ModelProto:
        constants = {"W": self.w, "B": self.b, "mask": self.mask, "source": self.source}
        return model("PerforatedConv", constants, **{**self.attributes, **changes})


GEOMETRIES = [
    (Geometry(), 1),
    (Geometry(kernel=(5, 3), strides=(2, 1), pads=(0, 2, 1, 1)), 2),
    (Geometry(kernel=(1, 1), pads=(0, 0, 0, 0)), 1),
    (Geometry(dilations=(2, 3), pads=(2, 3, 2, 3)), 1),
]


def _close(got: np.ndarray, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    assert got.shape == expected.shape
    np.testing.assert_allclose(got.astype(np.float64), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("geometry", "group"), GEOMETRIES)
@pytest.mark.parametrize("batch", [0, 1, 5])
def test_perforated_conv_is_conv_interpolated(geometry: Geometry, group: int, batch: int) -> None:
    layer = Layer(geometry=geometry, group=group)
    x = layer.images(batch)
    got = session(layer.perforated(**ACT)).run(None, {"X": x})[0]
    _close(got, activate(interpolate(layer.dense(x), layer.source), BOUNDS))


def test_weights_mix_sites_and_a_missing_source_counts_as_zero() -> None:
    layer = Layer()
    sites = np.append(np.flatnonzero(layer.mask), -1)
    source = layer.rng.choice(sites, (layer.mask.size, 3)).astype(np.int32)
    weight = layer.rng.random(source.shape).astype(np.float32)
    constants = {"W": layer.w, "B": layer.b, "mask": layer.mask, "source": source, "weight": weight}
    x = layer.images(2)
    got = session(model("PerforatedConv", constants, **layer.attributes)).run(None, {"X": x})[0]
    _close(got, interpolate(layer.dense(x), source, weight))


def test_mask_without_a_site_is_the_activated_zero() -> None:
    layer = Layer(keep=0.0)
    got = session(layer.perforated(clip_min=0.25)).run(None, {"X": layer.images(2)})[0]
    assert got.shape == (2, 40, 13, 10)
    assert (got == 0.25).all()


def test_all_sites_are_the_plain_convolution_at_the_original_s_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer(keep=1.1, channels=(64, 64))
    x = layer.images(2)
    monkeypatch.setenv("PERFONNX_EXACTNESS", "strict")
    _close(session(layer.perforated()).run(None, {"X": x})[0], layer.dense(x), 1e-5)


def test_all_sites_by_tiles_are_the_plain_convolution_but_for_rounding() -> None:
    """Winograd's sums round in proportion to the largest of a tile, not to each output."""
    layer = Layer(keep=1.1, channels=(64, 64))
    x = layer.images(2)
    got, dense = session(layer.perforated()).run(None, {"X": x})[0], layer.dense(x)
    assert 0 < np.abs(got - dense).max() < 1e-5 * np.abs(dense).max()


def test_verbose_names_the_node_and_what_runs() -> None:
    code = """
from tests.runtime.test_library import Layer, session
layer = Layer(keep=1.1, channels=(64, 64))
run = session(layer.perforated())
for _ in range(2):
    run.run(None, {"X": layer.images(1)})
"""
    done = run_python(code, check=True, PERFONNX_VERBOSE="1", PYTHONPATH=ROOT)
    said = [line for line in done.stderr.splitlines() if line.startswith("perfonnx: ")]
    assert len(said) == 1
    assert re.match(r"perfonnx: PerforatedConv node '\w+': winograd4 \(not depthwise: ", said[0])


@pytest.mark.parametrize(("edge", "chosen"), [(4, "winograd4"), (2, "winograd2"), (0, "direct")])
def test_a_node_says_which_tiles_may_be_used(edge: int, chosen: str) -> None:
    code = f"""
from tests.runtime.test_library import Layer, session
layer = Layer(keep=1.1, channels=(64, 64))
session(layer.perforated(largest_tile={edge})).run(None, {{"X": layer.images(1)}})
"""
    done = run_python(code, check=True, PERFONNX_VERBOSE="1", PYTHONPATH=ROOT)
    assert re.search(r"'\w+': (\w+)", done.stderr)[1] == chosen  # type: ignore[index]


@pytest.mark.parametrize(("geometry", "group"), GEOMETRIES)
@pytest.mark.parametrize("batch", [0, 1, 5])
@pytest.mark.parametrize("with_fill", [False, True])
def test_sparse_conv(geometry: Geometry, group: int, batch: int, with_fill: bool) -> None:
    layer = Layer(geometry=geometry, group=group)
    fill = layer.rng.standard_normal(len(layer.w)).astype(np.float32) if with_fill else None
    constants = {"W": layer.w, "B": layer.b, "mask": layer.mask, "fill": fill}
    x = layer.images(batch)
    got = session(model("SparseConv", constants, **layer.attributes, **ACT)).run(None, {"X": x})[0]
    elsewhere = np.zeros(len(layer.w)) if fill is None else fill
    _close(got, np.where(layer.mask, activate(layer.dense(x), BOUNDS), elsewhere[:, None, None]))


@pytest.mark.parametrize(
    ("geometry", "group"),
    [
        (Geometry(), 1),
        (Geometry(strides=(2, 1), pads=(0, 2, 1, 0)), 2),
        (Geometry(dilations=(2, 2), pads=(3, 3, 3, 3)), 1),
    ],
)
@pytest.mark.parametrize("batch", [0, 1, 5])
@pytest.mark.parametrize("center_gain", [0.0, 1.0])
def test_radius_adaptive_conv(geometry: Geometry, group: int, batch: int, center_gain: float) -> None:
    layer = Layer(geometry=geometry, group=group)
    alpha = layer.rng.standard_normal((1, layer.channels, 1, 1)).astype(np.float32)
    b_alpha, b_ring = np.array([0.1], np.float32), layer.rng.standard_normal(len(layer.w)).astype(np.float32)
    constants = {"W": layer.w, "B": layer.b, "W_alpha": alpha, "B_alpha": b_alpha, "B_ring": b_ring}
    x = layer.images(batch)
    rewritten = model("RadiusAdaptiveConv", constants, center_gain=center_gain, **layer.attributes, **ACT)
    got = session(rewritten).run(None, {"X": x})[0]
    expected = radius_adaptive(x, layer.w, layer.b, alpha, 0.1, b_ring, geometry, group=group, center_gain=center_gain)
    _close(got, activate(expected, BOUNDS))


def test_omitted_inputs_in_the_middle_and_at_the_end() -> None:
    layer = Layer()
    layer.b = np.zeros_like(layer.b)
    x = layer.images(2)
    dense = layer.dense(x)
    constants = {"W": layer.w, "B": None, "mask": layer.mask, "source": layer.source, "weight": None}
    got = session(model("PerforatedConv", constants, **layer.attributes)).run(None, {"X": x})[0]
    _close(got, interpolate(dense, layer.source))
    constants = {"W": layer.w, "B": None, "mask": layer.mask, "fill": None}
    got = session(model("SparseConv", constants, **layer.attributes)).run(None, {"X": x})[0]
    _close(got, np.where(layer.mask, dense, 0))
    alpha = layer.rng.standard_normal((1, 8, 1, 1)).astype(np.float32)
    ring = np.ones(40, np.float32)
    for b_ring in (None, ring):
        constants = {"W": layer.w, "B": None, "W_alpha": alpha, "B_alpha": None, "B_ring": b_ring}
        got = session(model("RadiusAdaptiveConv", constants, **layer.attributes)).run(None, {"X": x})[0]
        bias = np.zeros(40) if b_ring is None else b_ring
        _close(got, radius_adaptive(x, layer.w, layer.b, alpha, 0.0, bias, layer.geometry))


def test_omitted_attributes_have_conv_s_defaults() -> None:
    layer = Layer(geometry=Geometry(pads=(0, 0, 0, 0)))
    x = layer.images(2)
    constants = {"W": layer.w, "B": layer.b, "mask": layer.mask, "source": layer.source}
    got = session(model("PerforatedConv", constants)).run(None, {"X": x})[0]
    _close(got, activate(interpolate(layer.dense(x), layer.source), NO_ACTIVATION))


@pytest.mark.parametrize("op", ["PerforatedConv", "SparseConv", "RadiusAdaptiveConv"])
def test_float16(op: str) -> None:
    layer = Layer()
    half = np.float16
    layer.w, layer.b = (v.astype(half).astype(np.float32) for v in (layer.w, layer.b))
    x = layer.images(3).astype(half)
    alpha = layer.rng.standard_normal((1, 8, 1, 1)).astype(half)
    w, b = layer.w.astype(half), layer.b.astype(half)
    single = x.astype(np.float32)
    if op == "PerforatedConv":
        constants = {"W": w, "B": b, "mask": layer.mask, "source": layer.source}
        expected = interpolate(layer.dense(single), layer.source)
    elif op == "SparseConv":
        constants = {"W": w, "B": b, "mask": layer.mask, "fill": b}
        expected = np.where(layer.mask, layer.dense(single), layer.b[:, None, None])
    else:
        constants = {"W": w, "B": b, "W_alpha": alpha, "B_alpha": b[:1], "B_ring": b}
        expected = radius_adaptive(x, layer.w, layer.b, alpha, float(b[0]), b, layer.geometry)
    got = session(model(op, constants, element=TensorProto.FLOAT16, **layer.attributes)).run(None, {"X": x})[0]
    assert got.dtype == half
    _close(got, expected, 1e-3)


def test_eight_threads_in_one_session_get_the_same_bits() -> None:
    layer = Layer(channels=(32, 96), size=(28, 28))
    running = session(layer.perforated(), threads=2)
    inputs = [layer.images(count) for count in (1, 2, 3, 1)]
    expected = [running.run(None, {"X": x})[0] for x in inputs]
    wrong: list[int] = []

    def work(number: int) -> None:
        for i in range(12):
            k = (number + i) % len(inputs)
            if not np.array_equal(running.run(None, {"X": inputs[k]})[0], expected[k]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_eight_threads_meet_new_image_sizes_at_once() -> None:
    layer = Layer(geometry=Geometry(strides=(3, 3)), size=(13, 13))
    running = session(layer.perforated())
    sizes = [(13, 13), (14, 13), (15, 14), (13, 15)]
    inputs = [layer.rng.standard_normal((1, 8, *size)).astype(np.float32) for size in sizes]
    results: dict[int, np.ndarray] = {}

    def work(number: int) -> None:
        results[number] = running.run(None, {"X": inputs[number % len(inputs)]})[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fresh = session(layer.perforated())
    for number, got in results.items():
        np.testing.assert_array_equal(got, fresh.run(None, {"X": inputs[number % len(inputs)]})[0])
    assert len(results) == 8


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    ("channels", "size", "keep"), [((32, 96), (28, 28), 0.4), ((256, 256), (9, 8), 1.1), ((64, 16), (30, 60), 0.7)]
)
def test_number_of_threads_does_not_change_a_bit(
    channels: tuple[int, int], size: tuple[int, int], keep: float, threads: int
) -> None:
    layer = Layer(channels=channels, size=size, keep=keep)
    x = layer.images(2)
    one = session(layer.perforated(), threads=1).run(None, {"X": x})[0]
    np.testing.assert_array_equal(session(layer.perforated(), threads=threads).run(None, {"X": x})[0], one)


def _run_with_isa(isa: str) -> subprocess.CompletedProcess[str]:
    code = (
        "from tests.runtime.test_library import Layer; from perfonnx.runtime import session\n"
        "layer = Layer(); x = layer.images(2)\n"
        "from tests.engine.reference import interpolate; import numpy as np\n"
        "got = session(layer.perforated()).run(None, {'X': x})[0]\n"
        "print(np.abs(got - interpolate(layer.dense(x), layer.source)).max() < 1e-4)"
    )
    return run_python(code, PERFONNX_ISA=isa, PYTHONPATH=ROOT)


@pytest.mark.parametrize("isa", _engine.available_isas())
def test_every_instruction_set_inside_onnxruntime(isa: str) -> None:
    done = _run_with_isa(isa)
    assert done.stdout.strip() == "True", done.stderr


def test_unknown_instruction_set_names_the_variable() -> None:
    done = _run_with_isa("sse9")
    assert done.returncode != 0
    assert "PERFONNX_ISA=sse9" in done.stderr


@pytest.mark.skipif(shutil.which("nm") is None, reason="binutils is not installed")
def test_library_exports_one_function_and_knows_nothing_of_python() -> None:
    listing = subprocess.run(["nm", "-D", get_library_path()], capture_output=True, text=True, check=True).stdout
    symbols = [line.split() for line in listing.splitlines()]
    assert [parts[-1] for parts in symbols if parts[-2] == "T"] == ["RegisterCustomOps"]
    undefined = [parts[-1] for parts in symbols if parts[-2] == "U"]
    assert undefined
    assert not [name for name in undefined if name.startswith(("Py", "_Py", "_ZNSt", "_ZSt"))]


def test_session_options_of_several_sessions_share_the_library() -> None:
    layer = Layer()
    x = layer.images(1)
    sessions = [session(layer.perforated()) for _ in range(4)]
    results = [running.run(None, {"X": x})[0] for running in sessions]
    del sessions
    for got in results:
        np.testing.assert_array_equal(got, results[0])


def test_the_unwinder_is_onnxruntime_s() -> None:
    """An exception of an allocator of onnxruntime passes frames of the library: two unwinders on one stack abort."""
    library = Path(get_library_path()).read_bytes()
    assert b"\0libgcc_s.so.1\0" in library  # a library that the linker looks for
    assert b"\0libstdc++.so.6\0" not in library
