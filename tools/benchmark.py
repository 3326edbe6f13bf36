"""Benchmarks against stock onnxruntime: single layers, kernels and whole networks, as ratios beside what theory gives.

Both sides are timed in turn in one process, with the same threads and all of onnxruntime's optimizations, and the
medians are divided: a ratio holds where absolute times drift. Theory is the ratio of multiplies. Memory is what the
activations need at the peak of a run, measured in a process for each model (see perfonnx/running/memory.py).
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import rivals
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table
from scipy.ndimage import gaussian_filter

import models
import perfonnx
from perfonnx import ops
from perfonnx.data.feeds import random_feeds
from perfonnx.data.inputs import Feed, parse_input_shapes
from perfonnx.masks import MaskRequest, make_mask
from perfonnx.methods.sublattice import LATTICES
from perfonnx.model import files
from perfonnx.model.atomic import write_atomically
from perfonnx.model.layers import Layer, conv_layers
from perfonnx.model.proto import value_type
from perfonnx.model.shapes import infer_types
from perfonnx.model.signature import fix_input_shapes
from perfonnx.model.workspace import Workspace
from perfonnx.ops.common import Activation
from perfonnx.running import memory
from perfonnx.runtime import timed_options
from perfonnx.sampling import interpolate

Runner = Callable[[], float]
"""Runs a model once and says how many milliseconds that took."""

RATES = {
    "perforate": [0.0, 0.25, 0.5, 0.75],
    "sparse": [0.1, 0.2, 0.3],
    "radius-adaptive": [0.0, 0.25, 0.5, 1.0],
}
"""What `layers` measures unless told: rates, or shares of open gates."""

MATCH = "dncnn|waifu2x|style_candy|squeezenet.*fp32|resnet20$"
"""The models of a folder that `networks` measures unless told."""

LEAST_RUNS = 3

_LAYERS_EXAMPLES = """examples:
  python tools/benchmark.py layers
        all rates on the layers of VGG-16, AlexNet and NIN, one thread
  python tools/benchmark.py layers --rates 0 0.75 --threads 1 2 --batch 8 --networks nin
  python tools/benchmark.py layers --networks vgg16 --only 'conv[45]_2' --rates 0.75 --mask grid --beside int8 resize
  python tools/benchmark.py layers --method sparse --json sparse.json
  python tools/benchmark.py layers --method radius-adaptive
"""

KERNELS = {
    "first 1->16": (1, 16, 1, 3, 1, 256, 256),
    "first 1->32": (1, 32, 1, 3, 1, 256, 256),
    "first 1->64": (1, 64, 1, 3, 1, 256, 256),
    "first 1->32, 5x5": (1, 32, 1, 5, 1, 256, 256),
    "first 1->32, stride 2": (1, 32, 1, 3, 2, 512, 512),
    "first 3->16, stride 2": (3, 16, 1, 3, 2, 960, 1280),
    "first 3->16": (3, 16, 1, 3, 1, 256, 256),
    "first 3->32, stride 2": (3, 32, 1, 3, 2, 512, 512),
    "first 3->64": (3, 64, 1, 3, 1, 256, 256),
    "first 3->32, 9x9": (3, 32, 1, 9, 1, 256, 256),
    "depthwise 16": (16, 16, 16, 3, 1, 480, 640),
    "depthwise 32, stride 2": (32, 32, 32, 3, 2, 480, 640),
    "depthwise 32": (32, 32, 32, 3, 1, 240, 320),
    "depthwise 64": (64, 64, 64, 3, 1, 120, 160),
    "depthwise 128": (128, 128, 128, 3, 1, 60, 80),
    "depthwise 256": (256, 256, 256, 3, 1, 30, 40),
    "depthwise 24": (24, 24, 24, 3, 1, 256, 256),
    "depthwise 96, 5x5": (96, 96, 96, 5, 1, 80, 80),
    "depthwise 128, large": (128, 128, 128, 3, 1, 180, 180),
    "1x1 16->32": (16, 32, 1, 1, 1, 480, 640),
    "1x1 32->32": (32, 32, 1, 1, 1, 240, 320),
    "1x1 32->64": (32, 64, 1, 1, 1, 120, 160),
    "1x1 64->64": (64, 64, 1, 1, 1, 120, 160),
    "1x1 64->12": (64, 12, 1, 1, 1, 120, 160),
    "1x1 64->8": (64, 8, 1, 1, 1, 120, 160),
    "1x1 128->128": (128, 128, 1, 1, 1, 60, 80),
    "1x1 12->96": (12, 96, 1, 1, 1, 160, 160),
    "1x1 96->24": (96, 24, 1, 1, 1, 80, 80),
    "1x1 64->128, large": (64, 128, 1, 1, 1, 128, 128),
    "1x1 128->128, large": (128, 128, 1, 1, 1, 128, 128),
    "8->16": (8, 16, 1, 3, 1, 120, 160),
    "12->16": (12, 16, 1, 3, 1, 120, 160),
    "16->16": (16, 16, 1, 3, 1, 256, 256),
    "64->64": (64, 64, 1, 3, 1, 112, 112),
    "64->64, large": (64, 64, 1, 3, 1, 224, 224),
    "64->64, small": (64, 64, 1, 3, 1, 13, 13),
    "128->128": (128, 128, 1, 3, 1, 28, 28),
    "128->128, large": (128, 128, 1, 3, 1, 112, 112),
    "256->256": (256, 256, 1, 3, 1, 14, 14),
    "256->256, large": (256, 256, 1, 3, 1, 56, 56),
    "512->512, large": (512, 512, 1, 3, 1, 28, 28),
    "512->512": (512, 512, 1, 3, 1, 14, 14),
    "512->512, small": (512, 512, 1, 3, 1, 7, 7),
}
"""What `kernels` measures: input and output channels, group, kernel, stride, height and width."""

_KERNELS_EXAMPLES = """examples:
  python tools/benchmark.py kernels
  python tools/benchmark.py kernels --only 'depthwise|1x1' --threads 1 2
  PERFONNX_ISA=avx2 python tools/benchmark.py kernels
"""

CHAINS = ((64, 112), (64, 56), (128, 28), (256, 14))
"""What `chains` measures: channels, and height and width."""

_CHAINS_EXAMPLES = """examples:
  python tools/benchmark.py chains --threads 1 2
        grids of a quarter of the positions beside stock Conv of stride 2 and Resize, sublattices, and decoders, exact
  python tools/benchmark.py chains --shapes 64,224 32,128 --beside avx2
"""

_NETWORKS_EXAMPLES = """examples:
  python tools/benchmark.py networks --json networks.json
        AlexNet, VGG-16, NIN and ResNet-50 with seeded weights, exact and at rates 0.5 and 0.75, one thread
  python tools/benchmark.py networks --models vgg16 --rates 0.75 --threads 1 2 --batch 1 8 --beside int8 avx2
  python tools/benchmark.py networks --models --folder DIR --size 256
        DnCNN, waifu2x, style transfer and SqueezeNet, as far as DIR has them
  python tools/benchmark.py networks --models --files model.onnx --input-shape input:1,1,256,256
"""


def main() -> int:
    """Parse, run, print."""
    options = _parser().parse_args()
    rows: list[dict[str, Any]] = []
    status = 0
    begun = time.perf_counter()
    try:
        for row in options.run(options):
            rows.append(row)
            cells = ", ".join(f"{key} {_cell(value)}" for key, value in row.items())
            print(f"[{time.perf_counter() - begun:5.0f} s] {cells}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("interrupted; what was measured until here:", file=sys.stderr)
        status = 130
    except perfonnx.PerfonnxError as error:
        print(f"benchmark.py: {error}", file=sys.stderr)
        status = 2
    if rows:
        columns = list(dict.fromkeys(itertools.chain.from_iterable(rows)))
        table = Table(*columns, title=_machine(), title_justify="left")
        for row in rows:
            table.add_row(*(_cell(row.get(column, "")) for column in columns))
        Console(width=200).print(table)
        if options.json:
            write_atomically(options.json, json.dumps({"machine": _machine(), "rows": rows}, indent=2) + "\n")
    elif status == 0:
        print("benchmark.py: nothing to measure; see --help", file=sys.stderr)
        status = 2
    return status


def _parser() -> argparse.ArgumentParser:
    shown = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shown)
    commands = parser.add_subparsers(required=True)
    layers = commands.add_parser("layers", help="single convolutions", epilog=_LAYERS_EXAMPLES, formatter_class=shown)
    layers.add_argument("--networks", nargs="+", default=["vgg16", "alexnet", "nin"], choices=models.NAMES)
    layers.add_argument("--only", default="", metavar="RE", help="layers whose name this finds")
    layers.add_argument("--method", default="perforate", choices=list(RATES))
    layers.add_argument("--rates", nargs="+", type=float, default=None, help="for radius-adaptive: share of open gates")
    layers.add_argument("--mask", default="uniform")
    layers.add_argument(
        "--gates", nargs="+", default=["random", "blobs"], choices=["random", "blobs"], help="where gates are open"
    )
    layers.set_defaults(run=run_layers)
    kernels = commands.add_parser(
        "kernels",
        help="dense layers on rows, by onnxruntime's own profile",
        epilog=_KERNELS_EXAMPLES,
        formatter_class=shown,
    )
    kernels.add_argument("--only", default="", metavar="RE", help="layers whose name this finds")
    kernels.set_defaults(run=run_kernels)
    chains = commands.add_parser(
        "chains",
        help="a few equal layers: on grids of a quarter of the positions, on sublattices, and behind resizes",
        epilog=_CHAINS_EXAMPLES,
        formatter_class=shown,
    )
    chains.add_argument(
        "--shapes", nargs="+", default=[f"{c},{size}" for c, size in CHAINS], metavar="C,SIZE", help="channels and size"
    )
    chains.add_argument("--layers", type=int, default=4, metavar="N", help="so many layers (default 4)")
    chains.set_defaults(run=run_chains)
    networks = commands.add_parser("networks", help="whole networks", epilog=_NETWORKS_EXAMPLES, formatter_class=shown)
    networks.add_argument(
        "--models", nargs="*", default=list(models.NAMES), choices=models.NAMES, help="networks to build (default: all)"
    )
    networks.add_argument("--folder", type=Path, metavar="DIR", help="also the models in this folder")
    networks.add_argument("--match", default=MATCH, metavar="RE", help=f"which of them (default: {MATCH})")
    networks.add_argument("--files", nargs="*", default=[], type=Path, help="also these models")
    networks.add_argument("--input-shape", action="append", default=[], metavar="NAME:D,D,...")
    networks.add_argument(
        "--size", type=int, default=256, metavar="N", help="height and width where a model leaves them open"
    )
    networks.add_argument("--rates", nargs="+", type=float, default=[0.0, 0.5, 0.75], help="0: exact")
    networks.add_argument("--mask", default=None)
    networks.add_argument("--no-memory", action="store_true", help="times only")
    networks.set_defaults(run=run_networks)
    beside = ("int8", rivals.CAP)
    for command, known in ((layers, (*beside, "resize")), (chains, beside), (networks, beside)):
        command.add_argument(
            "--beside",
            nargs="*",
            default=[],
            choices=known,
            help="more columns, as times faster than onnxruntime's float: int8, quantized by onnxruntime; "
            f"{rivals.CAP}, our kernels without AVX-512"
            + ("; resize, stock Conv of stride 2 and Resize, at rates from 0.7 up" if "resize" in known else ""),
        )
    for command in (layers, kernels, chains, networks):
        command.add_argument("--threads", nargs="+", type=int, default=[1], metavar="N")
        command.add_argument("--batch", nargs="+", type=int, default=[1], metavar="N")
        command.add_argument("--runs", type=int, default=15, metavar="N", help="timed runs of each model (default 15)")
        command.add_argument(
            "--seconds",
            type=float,
            default=20,
            metavar="S",
            help=f"stop timing a case after this, but not before {LEAST_RUNS} runs (default 20)",
        )
        command.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    return parser


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _machine() -> str:
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, onnxruntime {ort.__version__}"


def median_times(runners: Sequence[Runner], options: argparse.Namespace) -> list[float]:
    """Median milliseconds of each, run in turn, the order rotated; the first two rounds do not count."""
    times: list[list[float]] = [[] for _ in runners]
    begun = time.perf_counter()
    for turn in range(options.runs + 2):
        if turn >= LEAST_RUNS + 2 and time.perf_counter() - begun > options.seconds:
            break
        for step in range(len(runners)):
            index = (turn + step) % len(runners)
            milliseconds = runners[index]()
            if turn >= 2:
                times[index].append(milliseconds)
    return [statistics.median(series) for series in times]


def runner(model: onnx.ModelProto | bytes | str, feed: Feed, threads: int, *, library: bool) -> Runner:
    """A session as a function without arguments."""
    return timed(perfonnx.session(model, threads=threads, library=library, options=timed_options()), feed)


def timed(session: ort.InferenceSession, feed: Feed) -> Runner:
    """A run of a session."""

    def run() -> float:
        start = time.perf_counter()
        session.run(None, feed)
        return (time.perf_counter() - start) * 1e3

    return run


class Beside:
    """What else is timed with a layer or a network, by the name of its column."""

    def __init__(self, names: Collection[str]) -> None:
        self.names = names
        self.runners: dict[str, Runner] = {}

    def int8(self, dense: onnx.ModelProto, feed: Feed, threads: int) -> None:
        """The dense model in int8, by onnxruntime."""
        if "int8" in self.names:
            self.runners["int8"] = runner(rivals.int8(dense, feed), feed, threads, library=False)

    def capped(self, model: onnx.ModelProto, feed: Feed, threads: int) -> None:
        """Our model by the kernels of a smaller instruction set, where the processor has a larger one."""
        if rivals.CAP in self.names and rivals.is_capped_here():
            self.runners[f"rows, {rivals.CAP}"] = rivals.Capped(model, feed, threads)

    def columns(self, dense: float, times: Sequence[float]) -> dict[str, float]:
        """Times faster than the dense model, each; ends what runs in processes of its own."""
        for found in self.runners.values():
            if isinstance(found, rivals.Capped):
                found.close()
        return {name: dense / time for name, time in zip(self.runners, times, strict=True)}


# --- layers ----------------------------------------------------------------------------------------------------------


def run_layers(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row per layer and rate, for all threads and batch sizes."""
    options.rates = options.rates or RATES[options.method]
    for threads, batch in itertools.product(options.threads, options.batch):
        for row in _layers(argparse.Namespace(**{**vars(options), "threads": threads, "batch": batch})):
            yield {"threads": threads, "batch": batch, **row}


def _layers(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for network in options.networks:
        workspace = Workspace.open(files.load(models.build(network, weights=False)))
        infer_types(workspace)
        for layer in conv_layers(workspace):
            if layer.attributes is None or layer.attributes.kernel_shape == (1, 1):
                continue
            if not re.search(options.only, layer.name):
                continue
            if options.method == "radius-adaptive" and layer.attributes.kernel_shape != (3, 3):
                continue
            for rate in options.rates:
                if options.method == "radius-adaptive":
                    yield from (_radius_layer(network, layer, rate, gates, options) for gates in options.gates)
                else:
                    yield _layer(network, layer, rate, options)


def _layer(network: str, layer: Layer, rate: float, options: argparse.Namespace) -> dict[str, Any]:
    assert layer.attributes is not None
    assert layer.input_shape is not None
    assert layer.output_shape is not None
    rng = np.random.default_rng(0)
    channels, height, width = (int(d) for d in layer.input_shape[1:] if isinstance(d, int))
    x = rng.standard_normal((options.batch, channels, height, width), dtype=np.float32)
    w = rng.standard_normal(layer.w_shape, dtype=np.float32) / np.float32(np.sqrt(np.prod(layer.w_shape[1:])))
    b = rng.standard_normal(layer.w_shape[0], dtype=np.float32)
    geometry = layer.attributes.attributes()
    dense = _model("Conv", "", {"X": x}, {"W": w, "B": b}, geometry, 4)
    attributes = {**geometry, **Activation().attributes()}
    runners = [runner(dense, {"X": x}, options.threads, library=False)]
    mask = make_mask(options.mask, MaskRequest(layer.output_shape, rate, rng))
    sampling = interpolate(mask, "nearest" if options.method == "perforate" else "zero")
    if options.method == "perforate":
        constants = {"W": w, "B": b, "mask": mask, "source": sampling.source}
        canonical = _model("PerforatedConv", ops.DOMAIN, {"X": x}, constants, attributes, 4)
    else:
        constants = {"W": w, "B": b, "mask": mask, "fill": np.zeros_like(b)}
        canonical = _model("SparseConv", ops.DOMAIN, {"X": x}, constants, attributes, 4)
    runners.append(runner(canonical, {"X": x}, options.threads, library=True))
    s = np.ascontiguousarray(x.reshape(options.batch, channels, -1).transpose(0, 2, 1))
    tables = {
        "W": w,
        "B": b,
        "in_source": np.arange(height * width, dtype=np.int32),
        "in_shape": np.array([height, width], np.int64),
        "sites": sampling.sites,
    }
    rows = _model("SampledConv", ops.DOMAIN, {"S": s}, tables, attributes, 3)
    runners.append(runner(rows, {"S": s}, options.threads, library=True))
    beside = Beside(options.beside)
    beside.int8(dense, {"X": x}, options.threads)
    beside.capped(rows, {"S": s}, options.threads)
    if "resize" in options.beside and sampling.rate >= 0.7 and {*geometry["strides"]} == {1}:
        stock = rivals.strided(x, {"W": w, "B": b}, geometry, layer.output_shape)
        beside.runners["stride 2 + Resize"] = runner(stock, {"X": x}, options.threads, library=False)
    times = median_times([*runners, *beside.runners.values()], options)
    theory = 1 / (1 - sampling.rate)
    return {
        "network": network,
        "layer": layer.name,
        "rate": sampling.rate,
        "onnxruntime ms": times[0],
        "theory": theory,
        "rows": times[0] / times[2],
        "NCHW": times[0] / times[1],
        "rows / theory": times[0] / times[2] / theory,
        **beside.columns(times[0], times[3:]),
    }


def _radius_layer(network: str, layer: Layer, share: float, gates: str, options: argparse.Namespace) -> dict[str, Any]:
    """One radius-adaptive layer whose gates are open at a share of the positions: single ones, or blobs of them."""
    assert layer.attributes is not None
    assert layer.input_shape is not None
    rng = np.random.default_rng(0)
    channels, height, width = (int(d) for d in layer.input_shape[1:] if isinstance(d, int))
    x = rng.standard_normal((options.batch, channels, height, width), dtype=np.float32)
    if gates == "blobs":
        x[:, 0] = gaussian_filter(x[:, 0], (0, height / 14, width / 14), mode="wrap")
        x[:, 0] /= x[:, 0].std()
    w = rng.standard_normal(layer.w_shape, dtype=np.float32) / np.float32(np.sqrt(np.prod(layer.w_shape[1:])))
    b = rng.standard_normal(layer.w_shape[0], dtype=np.float32)
    gate = np.zeros((1, channels, 1, 1), np.float32)
    bias = np.full(1, 1 if share >= 1 else -1, np.float32)
    if 0 < share < 1:
        gate[0, 0] = 10
        top, left = layer.attributes.pads[:2]
        (down, along), rows, columns = layer.attributes.strides, *(layer.output_shape or (0, 0))
        scores = 10 * x[:, 0, 1 - top :: down, 1 - left :: along][:, :rows, :columns]  # under the centre tap
        bias[0] = -np.quantile(scores, 1 - share)
    geometry = layer.attributes.attributes()
    attributes = {**geometry, **Activation().attributes(), "center_gain": 0.0}
    constants = {"W": w, "B": b, "W_alpha": gate, "B_alpha": bias, "B_ring": np.zeros_like(b)}
    tables = {
        "in_source": np.arange(height * width, dtype=np.int32),
        "in_shape": np.array([height, width], np.int64),
        "sites": np.arange(np.prod(layer.output_shape or ()), dtype=np.int32),
    }
    s = np.ascontiguousarray(x.reshape(options.batch, channels, -1).transpose(0, 2, 1))
    op = "RadiusAdaptiveConv"
    dense = _model("Conv", "", {"X": x}, {"W": w, "B": b}, geometry, 4)
    canonical = _model(op, ops.DOMAIN, {"X": x}, constants, attributes, 4)
    rows_model = _model(f"Sampled{op}", ops.DOMAIN, {"S": s}, {**constants, **tables}, attributes, 3)
    times = median_times(
        [
            runner(dense, {"X": x}, options.threads, library=False),
            runner(canonical, {"X": x}, options.threads, library=True),
            runner(rows_model, {"S": s}, options.threads, library=True),
        ],
        options,
    )
    theory = 9 / (1 + 8 * share)
    return {
        "network": network,
        "layer": layer.name,
        "open gates": share,
        "gates": gates,
        "onnxruntime ms": times[0],
        "theory": theory,
        "rows": times[0] / times[2],
        "NCHW": times[0] / times[1],
        "rows / theory": times[0] / times[2] / theory,
    }


def _model(
    op: str,
    domain: str,
    inputs: dict[str, np.ndarray],
    constants: dict[str, np.ndarray],
    attributes: dict[str, Any],
    rank: int,
) -> onnx.ModelProto:
    (name, value), *_ = inputs.items()
    node = helper.make_node(op, [name, *constants], ["Y"], name="layer", domain=domain, **attributes)
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape)],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(ops.DOMAIN, ops.VERSION)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


# --- kernels ---------------------------------------------------------------------------------------------------------


def run_kernels(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row per layer: a Conv inside onnxruntime's blocked layout, without turning to it and back, beside rows."""
    for threads, batch, (name, shape) in itertools.product(options.threads, options.batch, KERNELS.items()):
        if re.search(options.only, name):
            dense, rows = kernel_times(shape, batch, threads, options)
            yield {"threads": threads, "batch": batch, "layer": name, "onnxruntime ms": dense, "rows": dense / rows}


def kernel_times(
    shape: tuple[int, int, int, int, int, int, int], batch: int, threads: int, options: argparse.Namespace
) -> list[float]:
    """Milliseconds of the node alone, at its quickest: a Conv and a SampledConv with every position a site."""
    channels, outputs, group, kernel, stride, height, width = shape
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, channels, height, width), dtype=np.float32)
    w = rng.standard_normal((outputs, channels // group, kernel, kernel), dtype=np.float32)
    constants = {"W": w, "B": rng.standard_normal(outputs, dtype=np.float32)}
    geometry = {
        "kernel_shape": [kernel] * 2,
        "strides": [stride] * 2,
        "pads": [kernel // 2] * 4,
        "dilations": [1, 1],
        "group": group,
    }
    out_height, out_width = (-(-size // stride) for size in (height, width))
    tables = {
        "in_source": np.arange(height * width, dtype=np.int32),
        "in_shape": np.array([height, width], np.int64),
        "sites": np.arange(out_height * out_width, dtype=np.int32),
    }
    s = np.ascontiguousarray(x.reshape(batch, channels, -1).transpose(0, 2, 1))
    attributes = {**geometry, **Activation().attributes()}
    networks = [
        _model("Conv", "", {"X": x}, constants, geometry, 4),
        _model("SampledConv", ops.DOMAIN, {"S": s}, {**constants, **tables}, attributes, 3),
    ]
    for network in networks:  # the layer writes memory that every run uses again, as inside a network
        network.graph.node[0].output[0] = "inner"
        network.graph.node.append(helper.make_node("Neg", ["inner"], ["Y"]))
    with tempfile.TemporaryDirectory() as folder:
        sessions = []
        for i, network in enumerate(networks):
            settings = timed_options()
            settings.enable_profiling = True
            settings.profile_file_prefix = f"{folder}/{i}"
            sessions.append(perfonnx.session(network, threads=threads, options=settings))
        median_times([timed(sessions[0], {"X": x}), timed(sessions[1], {"S": s})], options)
        return [_profiled(Path(session.end_profiling()), "Conv") for session in sessions]


def _profiled(path: Path, operator: str) -> float:
    """Milliseconds of the quickest run of the operators whose name ends so, from a profile of onnxruntime."""
    events = json.loads(path.read_text())
    times = [
        event["dur"] / 1e3
        for event in events
        if event.get("cat") == "Node"
        and event["name"].endswith("_kernel_time")
        and event["args"]["op_name"].endswith(operator)
    ]
    return min(times)


# --- chains ----------------------------------------------------------------------------------------------------------


def run_chains(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows per shape: a chain of layers on grids, on sublattices, and one whose map doubles in front of each layer."""
    for threads, batch, shape in itertools.product(options.threads, options.batch, options.shapes):
        channels, size = map(int, shape.split(","))
        for kind in ("grid 1 of 4", "quincunx", "square", "decoder x2"):
            row = {"threads": threads, "batch": batch, "channels": channels, "size": size, "chain": kind}
            yield {**row, **_chain_times(kind, channels, size, batch, threads, options)}


def _chain_times(
    kind: str, channels: int, size: int, batch: int, threads: int, options: argparse.Namespace
) -> dict[str, float]:
    count, decodes = options.layers, kind == "decoder x2"
    dense = chain(channels, size, batch, count if not decodes else 2, doubles=decodes)
    x = np.random.default_rng(0).standard_normal((batch, channels, size, size), dtype=np.float32)
    choices: dict[str, Any] = {}
    if kind in LATTICES:  # fitted on noise, which takes as long to compute with as anything else
        choices = {"method": "sublattice", "lattice": kind, "only": ["conv"], "samples": [{"X": x}]}
    elif not decodes:
        choices = {"rate": 0.75, "mask": "grid", "only": ["conv"]}
    ours = perfonnx.rewrite(dense, **choices)
    beside = Beside(options.beside)
    beside.int8(dense, {"X": x}, threads)
    beside.capped(ours.proto, {"X": x}, threads)
    if "rate" in choices:
        stock = chain(channels, size, batch, count, stride=2)
        beside.runners["stride 2 + Resize"] = runner(stock, {"X": x}, threads, library=False)
    runners = [runner(dense, {"X": x}, threads, library=False), runner(ours.proto, {"X": x}, threads, library=True)]
    times = median_times([*runners, *beside.runners.values()], options)
    columns = beside.columns(times[0], times[2:])
    row = {"onnxruntime ms": times[0], "multiplies": ours.report.reduction, "rows": times[0] / times[1], **columns}
    if "rate" in choices:
        row["rows / stride 2 + Resize"] = row["rows"] / row["stride 2 + Resize"]
    return row


def chain(
    channels: int, size: int, batch: int, count: int, *, stride: int = 1, doubles: bool = False
) -> onnx.ModelProto:
    """Equal 3x3 layers with Relu.

    Args:
        channels: Of every map.
        size: Height and width of the first map.
        batch: Images.
        count: Layers.
        stride: Of the layers; behind each of them Resize makes the map as large as it was.
        doubles: The first layer apart, Resize doubles the map in front of each layer.
    """
    rng = np.random.default_rng(0)
    nodes, constants, x = [], {"double": np.array([1, 1, 2, 2], np.float32)}, "X"
    constants["back"] = np.array([1, 1, stride, stride], np.float32)
    for i in range(count):
        w = rng.standard_normal((channels, channels, 3, 3), dtype=np.float32) * np.float32(np.sqrt(2 / channels) / 3)
        constants |= {f"W{i}": w, f"B{i}": rng.standard_normal(channels, dtype=np.float32)}
        if doubles and i > 0:
            nodes.append(helper.make_node("Resize", [x, "", "double"], [f"R{i}"], mode="nearest"))
            x = f"R{i}"
        attributes = {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [stride] * 2}
        nodes.append(helper.make_node("Conv", [x, f"W{i}", f"B{i}"], [f"C{i}"], name=f"conv{i}", **attributes))
        nodes.append(helper.make_node("Relu", [f"C{i}"], [f"A{i}"]))
        x = f"A{i}"
        if stride > 1:
            nodes.append(helper.make_node("Resize", [x, "", "back"], [f"F{i}"], mode="nearest"))
            x = f"F{i}"
    nodes[-1].output[0] = "Y"
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, (batch, channels, size, size))],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [None] * 4)],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


# --- networks --------------------------------------------------------------------------------------------------------


def run_networks(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row per batch size, network, rate and number of threads."""
    for batch in options.batch:
        for name, proto in _networks(options, batch):
            for rate in options.rates:
                choices = {"rate": rate, "mask": options.mask} if rate else {}  # without a rate rewriting is exact
                results = {
                    layout: perfonnx.rewrite(proto, layout=layout, freeze_weights=True, **choices)
                    for layout in ("rows", "nchw")
                }
                for threads in options.threads:
                    row = {"network": name, "rate": rate, "threads": threads, "batch": batch}
                    yield {**row, **_network(proto, results, threads, options)}


def _networks(options: argparse.Namespace, batch: int) -> Iterator[tuple[str, onnx.ModelProto]]:
    """The networks at this batch size; of models from files those that can have it."""
    for name in options.models:
        yield name, models.build(name, batch=batch)
    paths = list(options.files)
    if options.folder:
        paths += sorted(path for path in options.folder.glob("*.onnx") if re.search(options.match, path.stem))
    shapes = parse_input_shapes(options.input_shape)
    for path in paths:
        loaded = files.load(path)
        weights = {tensor.name for tensor in loaded.proto.graph.initializer}
        inputs = [info for info in loaded.proto.graph.input if info.name not in weights]
        fix_input_shapes(loaded, {k: v for k, v in shapes.items() if k in {info.name for info in inputs}})
        fixed = {}
        for info in inputs:
            known = value_type(info)
            if known is not None and known.shape is not None:
                sizes = [options.size] * len(known.shape)
                sizes[:1] = [batch]
                fixed[info.name] = [d if isinstance(d, int) else s for d, s in zip(known.shape, sizes, strict=True)]
        if any(shape and shape[0] != batch for shape in fixed.values()):
            print(f"{path.name}: has another batch size than {batch}, left out", file=sys.stderr)
            continue
        fix_input_shapes(loaded, fixed)
        yield path.stem, loaded.proto


def _network(
    proto: onnx.ModelProto,
    results: dict[str, perfonnx.Rewritten],
    threads: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    first = perfonnx.session(proto, threads=threads, library=False)
    feed = next(random_feeds(first, n=1))
    del first
    runners = [runner(proto, feed, threads, library=False)]
    runners += [runner(result.proto, feed, threads, library=True) for result in results.values()]
    beside = Beside(options.beside)
    beside.int8(proto, feed, threads)
    beside.capped(results["rows"].proto, feed, threads)
    times = median_times([*runners, *beside.runners.values()], options)
    columns = beside.columns(times[0], times[3:])
    del beside
    runners.clear()  # before memory is measured, which loads the models again
    reduction = results["rows"].report.reduction
    row: dict[str, Any] = {
        "onnxruntime ms": times[0],
        "multiplies": reduction,
        "rows": times[0] / times[1],
        "NCHW": times[0] / times[2],
        "rows / multiplies": times[0] / times[1] / reduction,
        **columns,
    }
    if not options.no_memory:
        before, *after = (
            memory.activation_memory(model, feed, threads=threads)
            for model in (proto, *(result.proto for result in results.values()))
        )
        row["onnxruntime MB"] = before.peak / 1e6
        for layout, needs in zip(("rows", "NCHW"), after, strict=True):
            row[f"{layout} MB"] = needs.peak / 1e6
            row[f"{layout}, memory"] = before.peak / needs.peak
        row["rows, memory by graph"] = before.live / after[0].live
    return row


if __name__ == "__main__":
    sys.exit(main())
