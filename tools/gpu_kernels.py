"""Checks and times the CUDA kernels on a device against PyTorch: raw pointers, neither onnxruntime nor perfonnx.

    python tools/gpu_kernels.py --json results.json
    python tools/gpu_kernels.py --checks-only          # for compute-sanitizer
    python tools/gpu_kernels.py --only vgg --seconds 60

Needs nvcc, PyTorch with CUDA and a GPU. Builds the kernels into build/cuda-kernels. Each kernel is compared with
PyTorch in float64; then layers are timed at several perforation rates (the fraction of positions that is skipped)
against cuDNN, channels last, in the same math mode, and against a convolution of stride 2 followed by a nearest Resize,
which computes one position of four. Both sides run as CUDA graphs, so that launches count for neither. The convolutions
of PyTorch have neither bias nor activation; ours have both. A case that fails is reported and the others go on; cases
for which no time was left are counted.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tools import cuda_kernels
from tools.cuda_kernels import (
    STRICT,
    TENSOR_CORES,
    Act,
    CompactArgs,
    ExpandArgs,
    Kernels,
    PackArgs,
    PoolArgs,
    ProductArgs,
    RadiusArgs,
    WeightShape,
)

ROOT = Path(__file__).resolve().parents[1]
ELEMENTS = {
    torch.float32: cuda_kernels.FLOAT,
    torch.float16: cuda_kernels.HALF,
    torch.bfloat16: cuda_kernels.BFLOAT16,
}


@dataclass(frozen=True)
class Mode:
    """How products are made."""

    name: str
    dtype: torch.dtype
    math: int
    tolerance: float
    """Of the error's norm relative to the result's."""


MODES = [
    Mode("fp32", torch.float32, STRICT, 1e-5),
    Mode("tf32", torch.float32, TENSOR_CORES, 1e-3),
    Mode("fp16", torch.float16, TENSOR_CORES, 1e-2),
    Mode("bf16", torch.bfloat16, TENSOR_CORES, 1e-2),
]


@dataclass(frozen=True)
class Layer:
    """A convolution of a network."""

    network: str
    inputs: int
    outputs: int
    size: int
    kernel: int = 3
    stride: int = 1
    pad: int = 1
    group: int = 1

    @property
    def out_size(self) -> int:
        """Height and width of the output."""
        return (self.size + 2 * self.pad - self.kernel) // self.stride + 1

    @property
    def name(self) -> str:
        """For tables."""
        strided = f"/{self.stride}" if self.stride > 1 else ""
        grouped = f"g{self.group}" if self.group > 1 else ""
        return f"{self.network} {self.inputs}-{self.outputs}@{self.size} {self.kernel}x{self.kernel}{strided}{grouped}"


VGG = [(3, 64, 224), (64, 64, 224), (64, 128, 112), (128, 128, 112), (128, 256, 56), (256, 256, 56), (256, 512, 28)]
VGG += [(512, 512, 28), (512, 512, 14)]
LAYERS = [Layer("vgg16", *shape) for shape in VGG]
LAYERS += [
    Layer("alexnet", 3, 64, 224, 11, 4, 2),
    Layer("alexnet", 64, 192, 27, 5, 1, 2),
    Layer("alexnet", 192, 384, 13),
    Layer("alexnet", 384, 256, 13),
    Layer("alexnet", 256, 256, 13),
    Layer("nin", 3, 96, 227, 11, 4, 0),
    Layer("nin", 96, 96, 55, 1, 1, 0),
    Layer("nin", 96, 256, 27, 5, 1, 2),
    Layer("nin", 256, 256, 27, 1, 1, 0),
    Layer("nin", 256, 384, 13),
    Layer("nin", 384, 384, 13, 1, 1, 0),
    Layer("nin", 384, 1024, 6),
    Layer("resnet50", 3, 64, 224, 7, 2, 3),
    Layer("resnet50", 64, 64, 56),
    Layer("resnet50", 64, 256, 56, 1, 1, 0),
    Layer("resnet50", 256, 64, 56, 1, 1, 0),
    Layer("resnet50", 128, 128, 28),
    Layer("resnet50", 128, 512, 28, 1, 1, 0),
    Layer("resnet50", 256, 256, 14),
    Layer("resnet50", 1024, 256, 14, 1, 1, 0),
    Layer("resnet50", 512, 512, 7),
]
RATES = ["0", ".5", ".75", "quincunx"]
BATCHES = [32, 1, 128]


def sites_of(rate: str, size: int) -> np.ndarray:
    """Flat positions that are computed in a map of size x size."""
    y, x = np.divmod(np.arange(size * size), size)
    if rate == "0":
        kept = np.ones(size * size, bool)
    elif rate == ".75":
        kept = (y % 2 == 0) & (x % 2 == 0)
    elif rate == "quincunx":
        kept = (y + x) % 2 == 0
    else:
        kept = np.zeros(size * size, bool)
        kept[np.random.default_rng(0).permutation(size * size)[: round((1 - float(rate)) * size * size)]] = True
    return np.flatnonzero(kept).astype(np.int32)


def row_table(layer: Layer, sites: np.ndarray) -> np.ndarray:
    """int32 [sites, taps], as core's RowTable."""
    taps = np.arange(layer.kernel)
    y = (sites // layer.out_size * layer.stride - layer.pad)[:, None, None] + taps[:, None]
    x = (sites % layer.out_size * layer.stride - layer.pad)[:, None, None] + taps[None, :]
    inside = (y >= 0) & (y < layer.size) & (x >= 0) & (x < layer.size)
    return np.where(inside, y * layer.size + x, -1).reshape(len(sites), -1).astype(np.int32)


@dataclass
class Device:
    """The kernels on tensors."""

    kernels: Kernels
    kept: list[torch.Tensor] = field(default_factory=list)

    def put(self, array: np.ndarray) -> torch.Tensor:
        """A copy on the device."""
        return self.keep(torch.from_numpy(np.ascontiguousarray(array)).cuda())

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, whose memory stays until `forget`."""
        self.kept.append(tensor)
        return tensor

    def forget(self) -> None:
        """Let go of what was kept."""
        self.kept.clear()

    def empty(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """A result that is not yet there: NaN."""
        return self.keep(torch.full(shape, math.nan, dtype=dtype, device="cuda"))

    def run(self, name: str, args: ctypes.Structure) -> None:
        """On the current stream."""
        self.kernels.run(name, args, torch.cuda.current_stream().cuda_stream)

    def pack(self, w: torch.Tensor, mode: Mode, group: int, taps: list[int] | None = None) -> tuple[WeightShape, int]:
        """Weights [M, C / group, kh, kw] float32."""
        all_taps = w.shape[2] * w.shape[3]
        shape = WeightShape(w.shape[0], w.shape[1], all_taps if taps is None else len(taps), group)
        element = ELEMENTS[mode.dtype]
        size = self.kernels.packed_bytes(shape, element)
        packed = self.keep(torch.full((size,), 255, dtype=torch.uint8, device="cuda"))
        chosen = None if taps is None else self.put(np.array(taps, np.int32)).data_ptr()
        args = PackArgs(shape, element, mode.math, all_taps, chosen, self.keep(w).data_ptr(), packed.data_ptr())
        self.run("pack", args)
        return shape, packed.data_ptr()

    def product(
        self,
        rows: torch.Tensor,
        w: torch.Tensor,
        bias: torch.Tensor,
        table: np.ndarray,
        mode: Mode,
        *,
        group: int = 1,
        added: torch.Tensor | None = None,
        slope: float = 0.0,
        tile: int = 0,
    ) -> tuple[Callable[[], None], torch.Tensor]:
        """What runs it, and its result."""
        shape, packed = self.pack(w, mode, group)
        out = self.empty(rows.shape[0], len(table), w.shape[0], dtype=mode.dtype)
        args = ProductArgs(
            shape=shape,
            element=ELEMENTS[mode.dtype],
            math=mode.math,
            images=rows.shape[0],
            rows_per_image=rows.shape[1],
            sites=len(table),
            rows=self.keep(rows).data_ptr(),
            packed=packed,
            bias=self.keep(bias).data_ptr(),
            table=self.put(table).data_ptr(),
            added=None if added is None else self.keep(added).data_ptr(),
            added_images=0 if added is None else added.shape[0],
            rows_added=0 if added is None else added.shape[1],
            act=Act(slope, -math.inf, math.inf, None),
            out=out.data_ptr(),
            tile=tile,
        )
        return lambda: self.run("product", args), out


def random_tensor(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> torch.Tensor:
    """Normal numbers of a type."""
    return (torch.randn(shape, device="cuda") * scale).to(dtype)


def gathered(rows: torch.Tensor, table: np.ndarray) -> torch.Tensor:
    """Rows [N, R, C] by their numbers, -1 zeros, in float64: [N, *table.shape, C]."""
    padded = torch.cat([rows.double(), torch.zeros_like(rows[:, :1]).double()], dim=1)
    return padded[:, torch.from_numpy(table.astype(np.int64)).cuda()]


def expected_product(rows: torch.Tensor, w: torch.Tensor, table: np.ndarray, group: int = 1) -> torch.Tensor:
    """[N, P, M] in float64."""
    columns = gathered(rows, table)
    columns = columns.reshape(*columns.shape[:3], group, -1)
    weights = w.double().reshape(group, -1, w.shape[1], w.shape[2] * w.shape[3])
    return torch.einsum("nptgc,gmct->npgm", columns, weights).reshape(len(rows), len(table), len(w))


# --- checks ----------------------------------------------------------------------------------------------------------

SIZE = 23
"""Of the maps of checks."""


def error_of(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference relative to that of what is expected; infinite where anything is no number."""
    torch.cuda.synchronize()
    if not bool(torch.isfinite(got).all()):
        return math.inf
    return float((got.double() - expected).norm() / expected.norm())


def relu(x: torch.Tensor) -> torch.Tensor:
    """NaN stays."""
    return torch.clamp(x, min=0)


def check_product(device: Device, mode: Mode, tile: int, inputs: int, outputs: int, group: int, kernel: int) -> float:
    """Everything that a product does but slopes. The relative error."""
    layer = Layer("check", inputs, outputs, SIZE, kernel, 1, kernel // 2, group)
    table = row_table(layer, sites_of(".5", SIZE))
    rows = random_tensor(5, SIZE**2, inputs, dtype=mode.dtype)
    w = random_tensor(outputs, inputs // group, kernel, kernel, scale=(inputs / group) ** -0.5 / kernel)
    w = w.to(mode.dtype).float()
    bias = random_tensor(outputs)
    added = random_tensor(5, len(table), outputs, dtype=mode.dtype)
    run, out = device.product(rows, w, bias, table, mode, group=group, added=added, tile=tile)
    run()
    return error_of(out, relu(expected_product(rows, w, table, group) + bias.double() + added.double()))


def check_radius(device: Device, mode: Mode, share: float) -> float:
    """With a share of the gates open. The relative error."""
    layer = Layer("check", 64, 96, SIZE)
    table = row_table(layer, sites_of("0", SIZE))
    rows = random_tensor(3, SIZE**2, 64, dtype=mode.dtype)
    w = random_tensor(96, 64, 3, 3, scale=1 / 24).to(mode.dtype).float()
    bias, ring_bias, alpha_weights = random_tensor(96), random_tensor(96), random_tensor(64)
    gates = gathered(rows, table[:, 4]) @ alpha_weights.double()
    alpha_bias = -float(gates.flatten().kthvalue(max(1, round((1 - share) * gates.numel()))).values)
    ring = [0, 1, 2, 3, 5, 6, 7, 8]
    _, packed_ring = device.pack(w, mode, 1, ring)
    _, packed_centre = device.pack(w, mode, 1, [4])
    out = device.empty(3, len(table), 96, dtype=mode.dtype)
    args = RadiusArgs(
        shape=WeightShape(96, 64, 9, 1),
        element=ELEMENTS[mode.dtype],
        math=mode.math,
        images=3,
        rows_per_image=SIZE**2,
        sites=len(table),
        rows=rows.data_ptr(),
        packed_centre=packed_centre,
        packed_ring=packed_ring,
        bias=bias.data_ptr(),
        ring_bias=ring_bias.data_ptr(),
        alpha_weights=alpha_weights.data_ptr(),
        centre=device.put(table[:, 4]).data_ptr(),
        ring=device.put(table[:, ring]).data_ptr(),
        alpha_bias=alpha_bias,
        center_gain=1.0,
        act=Act(0.0, -math.inf, math.inf, None),
        out=out.data_ptr(),
        tile=2,
    )
    scratch = torch.full((device.kernels.radius_scratch(args),), 255, dtype=torch.uint8, device="cuda")
    args.scratch = scratch.data_ptr()
    device.run("radius", args)
    alpha = torch.clamp(gates + alpha_bias, 0, 1)[..., None]
    inner = torch.zeros(3, 3, device="cuda")
    inner[1, 1] = 1
    centre = expected_product(rows, w * inner, table)
    rest = expected_product(rows, w * (1 - inner), table) + ring_bias.double()
    return error_of(out, relu((1 + alpha) * centre + bias.double() + alpha * rest))


def check_compact(device: Device, mode: Mode) -> float:
    """Some rows of maps. The relative error."""
    x = random_tensor(3, 70, SIZE, SIZE, dtype=mode.dtype)
    sites = sites_of(".5", SIZE)
    out = device.empty(3, len(sites), 70, dtype=mode.dtype)
    site_pointer = device.put(sites).data_ptr()
    args = CompactArgs(ELEMENTS[mode.dtype], 3, 70, SIZE**2, len(sites), site_pointer, x.data_ptr(), out.data_ptr())
    device.run("compact", args)
    expected = x.flatten(2)[:, :, torch.from_numpy(sites.astype(np.int64)).cuda()].transpose(1, 2)
    return error_of(out, expected.double())


def check_expand(device: Device, mode: Mode) -> float:
    """Three weighted sources for a position. The relative error."""
    rows = random_tensor(3, 100, 70, dtype=mode.dtype)
    source = np.random.default_rng(0).integers(-1, 100, (SIZE**2, 3)).astype(np.int32)
    weight = random_tensor(SIZE**2, 3)
    out = device.empty(3, 70, SIZE**2, dtype=mode.dtype)
    args = ExpandArgs(
        element=ELEMENTS[mode.dtype],
        images=3,
        rows_per_image=100,
        channels=70,
        positions=SIZE**2,
        per_position=3,
        source=device.put(source).data_ptr(),
        weight=weight.data_ptr(),
        act=Act(0.0, -math.inf, math.inf, None),
        rows=rows.data_ptr(),
        y=out.data_ptr(),
    )
    device.run("expand", args)
    return error_of(out, relu((gathered(rows, source) * weight.double()[..., None]).sum(2)).transpose(1, 2))


def check_pool(device: Device, mode: Mode, average: bool) -> float:
    """Windows of nine. The relative error."""
    rows = random_tensor(3, SIZE**2, 70, dtype=mode.dtype)
    layer = Layer("check", 1, 1, SIZE, 3, 2, 0)
    table = row_table(layer, sites_of("0", layer.out_size))
    begin = device.put(np.arange(0, table.size + 1, 9, dtype=np.int64))
    divisors = torch.full((len(table),), 9.0, device="cuda")
    out = device.empty(3, len(table), 70, dtype=mode.dtype)
    args = PoolArgs(
        element=ELEMENTS[mode.dtype],
        average=int(average),
        images=3,
        rows_per_image=SIZE**2,
        channels=70,
        sites=len(table),
        begin=begin.data_ptr(),
        entries=device.put(table).data_ptr(),
        divisors=divisors.data_ptr() if average else None,
        rows=rows.data_ptr(),
        out=out.data_ptr(),
    )
    device.run("pool", args)
    values = gathered(rows, table)
    return error_of(out, values.mean(2) if average else values.amax(2))


TILES = {
    "any device": range(1, 5),
    "warpgroups": range(5, 10),
    "chosen": range(1),
}
"""Numbers of the tiles of products, by the kind of kernel. The first alone take few channels; 0 lets the kernels choose
among all of them."""


def tiles_of(mode: Mode, kinds: Collection[str]) -> list[int]:
    """Numbers of the tiles of some kinds that run here."""
    hopper = torch.cuda.get_device_capability() == (9, 0)
    tiles = [tile for kind in kinds if hopper or not kind.startswith("warp") for tile in TILES[kind]]
    return [tile for tile in sorted(tiles) if mode.math != STRICT or tile <= 2]


def takes(layer: Layer, tile: int) -> bool:
    """Whether the tile is made for layers of so many channels."""
    return layer.inputs >= 8 or tile % 100 < 5


def variants_of(tiles: Sequence[int]) -> list[int]:
    """Tiles, and how many blocks share the sums of each."""
    result = []
    for tile in tiles:
        result += [tile + 100 * splits for splits in ([0] if tile == 0 else [1] if tile < 5 else [1, 2, 4])]
    return result


def checks(device: Device, kinds: Collection[str]) -> Iterator[tuple[str, Mode, Callable[[], float]]]:
    """Name, mode and what computes the error."""
    for mode in MODES:
        for tile in tiles_of(mode, kinds):
            for inputs, outputs, group, kernel in [(64, 192, 1, 3), (96, 40, 1, 1), (3, 64, 1, 7), (64, 128, 2, 3)]:
                if not takes(Layer("check", inputs, outputs, SIZE), tile):
                    continue
                for splits in (0, 2):
                    name = f"product {inputs}-{outputs} {kernel}x{kernel} groups {group} tile {tile} splits {splits}"
                    yield (
                        name,
                        mode,
                        lambda m=mode, t=tile + 100 * splits, s=(inputs, outputs, group, kernel): check_product(
                            device, m, t, *s
                        ),
                    )
        if "any device" not in kinds:
            continue
        yield "depthwise 64", mode, lambda m=mode: check_product(device, m, 0, 64, 64, 64, 3)
        yield "depthwise 30 x 2", mode, lambda m=mode: check_product(device, m, 0, 30, 60, 30, 5)
        for share in (0.0, 0.4, 1.0):
            yield f"radius {share}", mode, lambda m=mode, s=share: check_radius(device, m, s)
        yield "compact", mode, lambda m=mode: check_compact(device, m)
        yield "expand", mode, lambda m=mode: check_expand(device, m)
        yield "max pool", mode, lambda m=mode: check_pool(device, m, average=False)
        yield "average pool", mode, lambda m=mode: check_pool(device, m, average=True)


def run_checks(device: Device, kinds: Collection[str]) -> list[dict[str, Any]]:
    """All of them, those that fail too."""
    results = []
    for name, mode, check in checks(device, kinds):
        result: dict[str, Any] = {"check": name, "mode": mode.name}
        try:
            result["error"] = check()
            result["passed"] = result["error"] <= mode.tolerance
        except Exception as error:
            result |= {"passed": False, "failure": repr(error)[:300]}
        device.forget()
        results.append(result)
        if not result["passed"]:
            print("FAILED", result, flush=True)
    return results


# --- timings ---------------------------------------------------------------------------------------------------------


def seconds_of(run: Callable[[], Any], repeats: int = 5) -> float:
    """Median time of a call, as part of a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
        run()
    side.synchronize()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    with torch.cuda.stream(side):
        start.record()
        run()
        end.record()
    side.synchronize()
    count = max(1, min(20, round(2.0 / max(start.elapsed_time(end), 1e-3))))  # some 2 ms
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        for _ in range(count):
            run()
    times = []
    graph.replay()
    for _ in range(repeats):
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / count / 1e3)
    return statistics.median(times)


def measure_ceilings() -> dict[str, float]:
    """Bytes moved and multiply-adds done at best: a large copy, large matrix products."""
    result = {}
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_(0, 255)
    target = torch.empty_like(source)
    result["copy GB/s"] = 2 * source.numel() / seconds_of(lambda: target.copy_(source)) / 1e9
    for mode in MODES:
        torch.backends.cuda.matmul.allow_tf32 = mode.math == TENSOR_CORES
        size = 4096 if mode.name == "fp32" else 8192
        a, b = random_tensor(size, size, dtype=mode.dtype), random_tensor(size, size, dtype=mode.dtype)
        out = torch.empty_like(a)
        seconds = seconds_of(lambda a=a, b=b, out=out: torch.mm(a, b, out=out))
        result[f"{mode.name} TFLOP/s"] = 2 * size**3 / seconds / 1e12
    return result


class Timing:
    """Times of layers, as long as there is time."""

    def __init__(self, device: Device, kinds: Collection[str], deadline: float, write: Callable[[], None]) -> None:
        self.device = device
        self.kinds = kinds
        self.deadline = deadline
        self.write = write
        self.results: list[dict[str, Any]] = []
        self.left_out = 0

    def case(self, label: dict[str, Any], run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """One timing or what it failed of."""
        if time.monotonic() > self.deadline:
            self.left_out += 1
            return {}
        result = dict(label)
        try:
            result |= run()
        except Exception as error:
            result["failure"] = repr(error)[:300]
            if "tile" not in result["what"]:  # not every tile takes every layer
                print("FAILED", result, flush=True)
        self.results.append(result)
        return result

    def layer(self, layer: Layer, mode: Mode, batch: int, rates: list[str], tiles: bool = False) -> None:
        """Dense by cuDNN, then ours at each rate."""
        label = {"layer": layer.name, "mode": mode.name, "batch": batch}
        torch.backends.cudnn.allow_tf32 = mode.math == TENSOR_CORES
        x = w = None
        try:
            x = random_tensor(batch, layer.inputs, layer.size, layer.size, dtype=mode.dtype)
            x = x.contiguous(memory_format=torch.channels_last)
            w = random_tensor(layer.outputs, layer.inputs // layer.group, layer.kernel, layer.kernel, scale=0.05)
        except torch.OutOfMemoryError as error:
            self.results.append({**label, "failure": repr(error)[:200]})
            return
        rows = x.permute(0, 2, 3, 1).reshape(batch, layer.size**2, layer.inputs)
        bias = random_tensor(layer.outputs)
        dense_w = w.to(mode.dtype).contiguous(memory_format=torch.channels_last)

        def dense(stride: int = layer.stride) -> torch.Tensor:
            return functional.conv2d(x, dense_w, None, stride, layer.pad, 1, layer.group)

        def rate_of(positions: float, seconds: float) -> dict[str, float]:
            multiplies = batch * positions * layer.outputs * layer.inputs // layer.group * layer.kernel**2
            moved = x.numel() + w.numel() + batch * positions * layer.outputs
            return {
                "seconds": seconds,
                "TFLOP/s": 2 * multiplies / seconds / 1e12,
                "GB/s": moved * x.element_size() / seconds / 1e9,
            }

        found = self.case({**label, "what": "cudnn"}, lambda: rate_of(layer.out_size**2, seconds_of(dense)))
        cudnn = found.get("seconds")
        if layer.stride == 1 and layer.kernel > 1:

            def strided() -> dict[str, float]:
                run = lambda: functional.interpolate(dense(2), size=layer.out_size, mode="nearest")  # noqa: E731
                return {"seconds": seconds_of(run)}

            self.case({**label, "what": "stride 2 + resize"}, strided)
        for rate in rates:
            table = row_table(layer, sites_of(rate, layer.out_size))
            variants = [tile for tile in tiles_of(mode, self.kinds) if tiles or tile == 0]
            for tile in variants_of(variants) if rate != "0" else variants:
                if not takes(layer, tile):
                    continue

                def ours(table: np.ndarray = table, tile: int = tile) -> dict[str, float]:
                    run, _ = self.device.product(rows, w, bias, table, mode, group=layer.group, tile=tile)
                    result = rate_of(len(table), seconds_of(run))
                    return {**result, "speedup": cudnn / result["seconds"]} if cudnn else result

                what = "ours" if tile == 0 else f"ours, tile {tile}"
                self.case({**label, "what": what, "rate": rate}, ours)
                self.device.forget()
        self.write()


def layout_timings(device: Device, timing: Timing) -> None:
    """What moves memory alone, 32 images of 256 channels, 56 x 56; GB/s of what must be read and written."""
    images, channels, size = 32, 256, 56
    pixels = size**2
    sites = sites_of(".75", size)
    y, x = np.divmod(np.arange(pixels), size)
    nearest = (y // 2 * (size // 2) + x // 2).astype(np.int32)
    windows = row_table(Layer("pool", 1, 1, size, 2, 2, 0), np.arange(pixels // 4, dtype=np.int32))
    act = Act(1.0, -math.inf, math.inf, None)
    for mode in (MODES[0], MODES[2]):
        element, dtype = ELEMENTS[mode.dtype], mode.dtype
        maps = random_tensor(images, channels, size, size, dtype=dtype)
        rows = random_tensor(images, pixels, channels, dtype=dtype)
        few = random_tensor(images, len(sites), channels, dtype=dtype)
        begin = device.put(np.arange(0, windows.size + 1, 4, dtype=np.int64)).data_ptr()
        entries, source = device.put(windows).data_ptr(), device.put(nearest).data_ptr()
        site_list = device.put(sites).data_ptr()
        compact = CompactArgs(element, images, channels, pixels, pixels, None, maps.data_ptr(), rows.data_ptr())
        some = CompactArgs(element, images, channels, pixels, len(sites), site_list, maps.data_ptr(), few.data_ptr())
        expand = ExpandArgs(
            element, images, len(sites), channels, pixels, 1, source, None, None, act, few.data_ptr(), maps.data_ptr()
        )
        pool = PoolArgs(
            element=element,
            images=images,
            rows_per_image=pixels,
            channels=channels,
            sites=len(sites),
            begin=begin,
            entries=entries,
            rows=rows.data_ptr(),
            out=few.data_ptr(),
        )
        all_bytes, few_bytes = (tensor.numel() * tensor.element_size() for tensor in (maps, few))
        for name, what, args, moved in [
            ("compact", "compact", compact, 2 * all_bytes),
            ("compact .75", "compact", some, 2 * few_bytes),
            ("expand .75", "expand", expand, all_bytes + few_bytes),
            ("max pool", "pool", pool, all_bytes + few_bytes),
        ]:

            def run(what: str = what, args: ctypes.Structure = args, moved: int = moved) -> dict[str, float]:
                seconds = seconds_of(lambda: device.run(what, args))
                return {"seconds": seconds, "GB/s": moved / seconds / 1e9}

            print(timing.case({"layer": name, "mode": mode.name, "batch": images, "what": "layout"}, run), flush=True)
        device.forget()


def summary(results: list[dict[str, Any]]) -> str:
    """Speedups of ours over cuDNN, a line for each layer, batch and mode; the best tile where others were tried."""
    lines: dict[str, str] = {}
    for result in results:
        if "seconds" not in result:
            continue
        key = f"{result['layer']:30} {result['mode']} n{result['batch']}"
        if result["what"] == "cudnn":
            lines.setdefault(key, f"cudnn {result['seconds'] * 1e6:.0f}us {result['TFLOP/s']:.0f}TF")
        elif result["what"].startswith("stride") and " s2 " not in lines.get(key, " s2 "):
            lines[key] += f" s2 {result['seconds'] * 1e6:.0f}us"
        elif result["what"] == "ours":
            lines[key] = lines.get(key, "") + f" | {result['rate']}: {result.get('speedup', 0):.2f}x"
            lines[key] += f" {result['TFLOP/s']:.0f}TF {result['GB/s']:.0f}GB/s"
            same = ("layer", "mode", "batch", "rate")
            others = [
                other
                for other in results
                if "seconds" in other and "tile" in other["what"] and all(other.get(k) == result[k] for k in same)
            ]
            if others:
                best = min(others, key=lambda other: other["seconds"])
                lines[key] += f" (#{best['what'].split()[-1]} {best.get('speedup', 0):.2f}x)"
    return "\n".join(f"{key} {line}" for key, line in lines.items())


def compiler(defines: list[str]) -> list[str]:
    """For the GPU that is here."""
    major, minor = torch.cuda.get_device_capability()
    name = f"{major}{minor}" + ("a" if (major, minor) == (9, 0) else "")
    return [*cuda_kernels.nvcc_command([(name, f"sm_{name}")]), *(f"-D{define}" for define in defines)]


def check_apart(library: Path, place: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Check each kind of kernel in a process of its own: one that hangs or breaks its context must not take the others.

    Returns:
        What was checked, and the kinds that can be timed.
    """
    running = {}
    for number, kind in enumerate(TILES):
        found = place / f"checks-{number}.json"
        found.unlink(missing_ok=True)
        command = [sys.executable, __file__, "--library", str(library), "--kind", kind, "--json", str(found)]
        running[kind] = (subprocess.Popen(command), found)
    results, sound = [], []
    limit = time.monotonic() + 40
    for kind, (process, found) in running.items():
        try:
            process.wait(max(1.0, limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            print(f"the checks of {kind} hang", flush=True)
            process.kill()
        if found.exists():
            results += json.loads(found.read_text())["checks"]
        if process.returncode == 0:
            sound.append(kind)
    return results, sound


def main() -> int:
    """Exit status 1 where a check fails or nothing could be built."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--checks-only", action="store_true", help="no timings")
    parser.add_argument("--only", default="", help="layers whose name contains this")
    parser.add_argument("--seconds", type=float, default=150, help="for the timings")
    parser.add_argument("--library", type=Path, help="check this one and do nothing else")
    parser.add_argument("--kind", action="append", default=[], choices=list(TILES), help="of the kernels to check")
    parser.add_argument("--one", default="", help="run one layer alone, for a profiler: LAYER,MODE,RATE,TILE")
    parser.add_argument("--define", action="append", default=[], help="for the compiler, to compare variants")
    options = parser.parse_args()
    report: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    status = 0

    def write() -> None:
        if options.json:
            options.json.write_text(json.dumps(report, indent=1))

    begin = time.monotonic()
    place = ROOT / "build" / "-".join(["cuda-kernels", *options.define])
    if options.library:
        library = options.library
    else:
        library = cuda_kernels.build(compiler(options.define), place)
        report["build seconds"] = time.monotonic() - begin
        print(f"{report['device']}: built in {report['build seconds']:.0f} s", flush=True)
    device = Device(Kernels(library))
    torch.manual_seed(0)
    if options.one:
        name, mode_name, rate, tile = options.one.split(",")
        layer = next(layer for layer in LAYERS if name in layer.name)
        mode = next(mode for mode in MODES if mode.name == mode_name)
        rows = random_tensor(32, layer.size**2, layer.inputs, dtype=mode.dtype)
        w = random_tensor(layer.outputs, layer.inputs // layer.group, layer.kernel, layer.kernel, scale=0.05)
        table = row_table(layer, sites_of(rate, layer.out_size))
        run, _ = device.product(rows, w, random_tensor(layer.outputs), table, mode, group=layer.group, tile=int(tile))
        for _ in range(5):
            run()
        torch.cuda.synchronize()
        return 0
    if options.library:
        report["checks"] = run_checks(device, options.kind)
        write()
        return 0 if all(result["passed"] for result in report["checks"]) else 1
    report["checks"], sound = check_apart(library, place)
    failed = [result for result in report["checks"] if not result["passed"]]
    print(f"checks: {len(report['checks']) - len(failed)} passed, {len(failed)} failed; sound: {sound}", flush=True)
    status = 1 if failed or len(sound) < len(TILES) else 0
    write()
    if options.checks_only:
        return status

    torch.backends.cudnn.benchmark = True
    timing = Timing(device, sound, time.monotonic() + options.seconds, write)
    try:
        report["ceilings"] = measure_ceilings()
        print(report["ceilings"], flush=True)
        report["timings"] = timing.results
        modes = {mode.name: mode for mode in MODES}
        layers = [layer for layer in LAYERS if options.only in layer.name]
        vgg = [layer for layer in layers if layer.network == "vgg16"]
        others = [layer for layer in layers if layer.network != "vgg16"]
        # What matters most comes first.
        for rate in (".75", "0"):
            for name in ("tf32", "fp16"):
                for layer in vgg:
                    timing.layer(layer, modes[name], 32, [rate], tiles=True)
        for name in ("tf32", "fp16"):
            for layer in vgg:
                timing.layer(layer, modes[name], 32, [".5", "quincunx"])
        for batch in BATCHES:
            for name in ("tf32", "fp16"):
                for layer in others if batch == 32 else layers:
                    timing.layer(layer, modes[name], batch, RATES)
        layout_timings(device, timing)
        for name in ("fp32", "bf16"):
            for layer in layers:
                timing.layer(layer, modes[name], 32, ["0", ".75"])
    except Exception:
        report["failure"] = traceback.format_exc()
        print(report["failure"], flush=True)
        status = 1
    report["left out for want of time"] = timing.left_out
    write()
    print(summary(timing.results))
    print(f"{timing.left_out} cases left out for want of time; {time.monotonic() - begin:.0f} s in all")
    subprocess.run(["nvidia-smi", "--query-gpu=clocks.sm,power.draw,temperature.gpu", "--format=csv"], check=False)
    return status


if __name__ == "__main__":
    sys.exit(main())
