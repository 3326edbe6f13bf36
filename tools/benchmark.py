"""Benchmarks against stock onnxruntime: single layers and whole networks, as ratios beside what theory gives.

Both sides are timed in turn in one process, with the same threads and all of onnxruntime's optimizations, and the
medians are divided: a ratio holds where absolute times drift. Theory is the ratio of multiplies.

    python tools/benchmark.py layers                      # VGG-16, AlexNet and NIN, rate 0.75, one thread
    python tools/benchmark.py layers --rates 0 0.5 --threads 2 --batch 8 --networks nin
    python tools/benchmark.py layers --method sparse --rates 0.1 0.2 0.3
    python tools/benchmark.py layers --method radius-adaptive --rates 0 0.5 1
    python tools/benchmark.py networks --models vgg16 alexnet nin --rates 0.75
    python tools/benchmark.py networks --files model.onnx --input-shape input:1,1,256,256 --json out.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table
from scipy.ndimage import gaussian_filter

import models
import perfonnx
from perfonnx import feeds, io, ops
from perfonnx.graph import ConvSite, conv_sites
from perfonnx.inference import infer_types
from perfonnx.masks import MaskRequest, make_mask
from perfonnx.ops.common import Activation
from perfonnx.sampling import interpolate

Runner = Callable[[], Any]


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    layers = commands.add_parser("layers", help="single convolutions")
    layers.add_argument("--networks", nargs="+", default=["vgg16", "alexnet", "nin"], choices=models.NAMES)
    layers.add_argument("--method", default="perforate", choices=["perforate", "sparse", "radius-adaptive"])
    layers.add_argument(
        "--rates", nargs="+", type=float, default=[0.75], help="for radius-adaptive: share of open gates"
    )
    layers.add_argument("--mask", default="uniform")
    layers.add_argument(
        "--gates", nargs="+", default=["random", "blobs"], choices=["random", "blobs"], help="where gates are open"
    )
    layers.set_defaults(run=run_layers)
    networks = commands.add_parser("networks", help="whole networks")
    networks.add_argument("--models", nargs="*", default=[], choices=models.NAMES)
    networks.add_argument("--files", nargs="*", default=[], type=Path)
    networks.add_argument("--input-shape", action="append", default=[])
    networks.add_argument("--rates", nargs="+", type=float, default=[0.5, 0.75])
    networks.add_argument("--mask", default=None)
    networks.set_defaults(run=run_networks)
    for command in (layers, networks):
        command.add_argument("--threads", type=int, default=1)
        command.add_argument("--batch", type=int, default=1)
        command.add_argument("--runs", type=int, default=15)
        command.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    rows = []
    table = None
    console = Console(width=150)
    for row in options.run(options):
        rows.append(row)
        if table is None:
            table = Table(*row, title=_machine(options), title_justify="left")
        table.add_row(*(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()))
        print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    if table is not None:
        console.print(table)
    if options.json:
        options.json.write_text(json.dumps({"machine": _machine(options), "rows": rows}, indent=2) + "\n")
    return 0


def _machine(options: argparse.Namespace) -> str:
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {options.threads} threads, batch {options.batch}, onnxruntime {ort.__version__}"


def median_times(runners: Sequence[Runner], runs: int) -> list[float]:
    """Median milliseconds of each, run in turn, the order rotated."""
    times: list[list[float]] = [[] for _ in runners]
    for turn in range(runs + 2):
        for step in range(len(runners)):
            index = (turn + step) % len(runners)
            start = time.perf_counter()
            runners[index]()
            if turn >= 2:
                times[index].append((time.perf_counter() - start) * 1e3)
    return [statistics.median(series) for series in times]


def runner(model: onnx.ModelProto | bytes | str, feed: feeds.Feed, threads: int, *, library: bool) -> Runner:
    """A session as a function without arguments."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = perfonnx.session(model, threads=threads, library=library, options=options)
    return lambda: session.run(None, feed)


# --- layers ----------------------------------------------------------------------------------------------------------


def run_layers(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row per layer and rate."""
    for network in options.networks:
        workspace = io.Workspace.open(io.load(models.build(network, weights=False)))
        infer_types(workspace)
        for site in conv_sites(workspace):
            if site.attributes is None or site.attributes.kernel_shape == (1, 1):
                continue
            if options.method == "radius-adaptive" and site.attributes.kernel_shape != (3, 3):
                continue
            for rate in options.rates:
                if options.method == "radius-adaptive":
                    yield from (_radius_layer(network, site, rate, gates, options) for gates in options.gates)
                else:
                    yield _layer(network, site, rate, options)


def _layer(network: str, site: ConvSite, rate: float, options: argparse.Namespace) -> dict[str, Any]:
    assert site.attributes is not None
    assert site.input_shape is not None
    assert site.output_shape is not None
    rng = np.random.default_rng(0)
    channels, height, width = (int(d) for d in site.input_shape[1:] if isinstance(d, int))
    x = rng.standard_normal((options.batch, channels, height, width), dtype=np.float32)
    w = rng.standard_normal(site.w_shape, dtype=np.float32) / np.float32(np.sqrt(np.prod(site.w_shape[1:])))
    b = rng.standard_normal(site.w_shape[0], dtype=np.float32)
    geometry = site.attributes.attributes()
    dense = _model("Conv", "", {"X": x}, {"W": w, "B": b}, geometry, 4)
    attributes = {**geometry, **Activation().attributes()}
    runners = [runner(dense, {"X": x}, options.threads, library=False)]
    mask = make_mask(options.mask, MaskRequest(site.output_shape, rate, rng))
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
    times = median_times(runners, options.runs)
    theory = 1 / (1 - sampling.rate)
    return {
        "network": network,
        "layer": site.name,
        "rate": sampling.rate,
        "onnxruntime ms": times[0],
        "theory": theory,
        "rows": times[0] / times[2],
        "NCHW": times[0] / times[1],
        "rows / theory": times[0] / times[2] / theory,
    }


def _radius_layer(
    network: str, site: ConvSite, share: float, gates: str, options: argparse.Namespace
) -> dict[str, Any]:
    """One radius-adaptive layer whose gates are open at a share of the positions: single ones, or blobs of them."""
    assert site.attributes is not None
    assert site.input_shape is not None
    rng = np.random.default_rng(0)
    channels, height, width = (int(d) for d in site.input_shape[1:] if isinstance(d, int))
    x = rng.standard_normal((options.batch, channels, height, width), dtype=np.float32)
    if gates == "blobs":
        x[:, 0] = gaussian_filter(x[:, 0], (0, height / 14, width / 14), mode="wrap")
        x[:, 0] /= x[:, 0].std()
    w = rng.standard_normal(site.w_shape, dtype=np.float32) / np.float32(np.sqrt(np.prod(site.w_shape[1:])))
    b = rng.standard_normal(site.w_shape[0], dtype=np.float32)
    gate = np.zeros((1, channels, 1, 1), np.float32)
    bias = np.full(1, 1 if share >= 1 else -1, np.float32)
    if 0 < share < 1:
        gate[0, 0] = 10
        top, left = site.attributes.pads[:2]
        (down, along), rows, columns = site.attributes.strides, *(site.output_shape or (0, 0))
        scores = 10 * x[:, 0, 1 - top :: down, 1 - left :: along][:, :rows, :columns]  # under the centre tap
        bias[0] = -np.quantile(scores, 1 - share)
    geometry = site.attributes.attributes()
    attributes = {**geometry, **Activation().attributes(), "center_gain": 0.0}
    constants = {"W": w, "B": b, "W_alpha": gate, "B_alpha": bias, "B_ring": np.zeros_like(b)}
    tables = {
        "in_source": np.arange(height * width, dtype=np.int32),
        "in_shape": np.array([height, width], np.int64),
        "sites": np.arange(np.prod(site.output_shape or ()), dtype=np.int32),
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
        options.runs,
    )
    theory = 9 / (1 + 8 * share)
    return {
        "network": network,
        "layer": site.name,
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


# --- networks --------------------------------------------------------------------------------------------------------


def run_networks(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row per network and rate: multiplies, time and the size of activations, before over after."""
    shapes = feeds.parse_input_shapes(options.input_shape)
    sources: list[tuple[str, onnx.ModelProto]] = []
    for name in options.models:
        sources.append((name, models.build(name, batch=options.batch)))
    for path in options.files:
        loaded = io.load(path)
        specs = {i.name for i in loaded.proto.graph.input}
        io.fix_input_shapes(loaded, {k: v for k, v in shapes.items() if k in specs})
        sources.append((path.stem, loaded.proto))
    for name, proto in sources:
        for rate in options.rates:
            yield _network(name, proto, rate, options)


def _network(name: str, proto: onnx.ModelProto, rate: float, options: argparse.Namespace) -> dict[str, Any]:
    results = {
        layout: perfonnx.rewrite(proto, rate=rate, mask=options.mask, layout=layout, freeze_weights=True)
        for layout in ("rows", "nchw")
    }
    first = perfonnx.session(proto, threads=options.threads, library=False)
    feed = next(feeds.random_feeds(first, n=options.batch))
    runners = [runner(proto, feed, options.threads, library=False)]
    runners += [runner(result.proto, feed, options.threads, library=True) for result in results.values()]
    times = median_times(runners, options.runs)
    report = results["rows"].report
    return {
        "network": name,
        "rate": rate,
        "onnxruntime ms": times[0],
        "multiplies": report.reduction,
        "rows": times[0] / times[1],
        "NCHW": times[0] / times[2],
        "rows / multiplies": times[0] / times[1] / report.reduction,
        "activations": report.activations[0] / max(report.activations[1], 1),
    }


if __name__ == "__main__":
    sys.exit(main())
