"""The CUDA kernels on the host: compiled as plain C++, with blocks and threads as loops and fibers."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import math
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tools import cuda_kernels
from tools.cuda_kernels import (
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

ELEMENTS = {np.dtype(np.float32): cuda_kernels.FLOAT, np.dtype(np.float16): cuda_kernels.HALF}
NO_ACTIVATION = (1.0, -math.inf, math.inf)
BUILD = Path(__file__).resolve().parents[2] / "build" / "cuda-on-host"


def sanitizers() -> list[str]:
    """Flags of the compiler, where the tests run under AddressSanitizer."""
    if not hasattr(ctypes.CDLL(None), "__asan_init"):
        return []
    return ["-fsanitize=address,undefined", "-fno-omit-frame-pointer"]


@functools.cache
def kernels() -> Kernels:
    """The library, compiled where there is none of these sources yet. Under AddressSanitizer it is checked too."""
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        pytest.skip(f"the C++ compiler {compiler} is not there")
    flags = ["-std=c++17", "-O1", "-fPIC", "-g1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    command = [compiler, *flags, *sanitizers()]
    sources = sorted(path for part in ("cuda", "core") for path in (cuda_kernels.SOURCES / part).rglob("*.*"))
    key = hashlib.sha256(" ".join(command).encode())
    for source in sources:
        key.update(source.read_bytes())
    place = BUILD / key.hexdigest()[:16]
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:  # of the processes that run tests one compiles
        fcntl.flock(lock, fcntl.LOCK_EX)
        library = place / "done"
        if not library.exists():
            for old in BUILD.iterdir():
                if old.is_dir() and not hasattr(ctypes.CDLL(None), "__asan_init"):
                    shutil.rmtree(old)
            built = cuda_kernels.build(command, place, [cuda_kernels.SOURCES / "cuda" / "host" / "blocks.cpp"])
            library.symlink_to(built.name)
    return Kernels(place / "libperfonnx_cuda_kernels.so")


class Bfloat16(np.ndarray):
    """uint16 that stand for bfloat16."""


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Rounded to nearest, ties to even, as bits."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).view(Bfloat16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """As float32."""
    return (np.asarray(bits).astype(np.uint32) << 16).view(np.float32)


def element(array: np.ndarray) -> int:
    """Its Element."""
    return cuda_kernels.BFLOAT16 if isinstance(array, Bfloat16) else ELEMENTS[array.dtype]


class Memory:
    """Arrays at addresses that are aligned as a device's are; each ends where its allocation does."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def pointer(self, array: np.ndarray | None) -> int | None:
        """Of a copy of the array, or of the array where it is one that `new` gave."""
        if array is None:
            return None
        if not any(array is kept for kept in self.kept):
            source = array
            array = self.new(source.shape, source.dtype)
            array[...] = source
        return array.ctypes.data

    def new(self, shape: Iterable[int], dtype: Any) -> np.ndarray:
        """Filled with 0xFF bytes: NaN, or -1."""
        shape = tuple(shape)
        size = math.prod(shape) * np.dtype(dtype).itemsize
        raw = np.full(size + 256, 0xFF, np.uint8)
        start = -raw.ctypes.data % 256
        array = raw[start : start + size].view(dtype).reshape(shape)
        self.kept += [raw, array]
        return array


def act(memory: Memory, activation: tuple[float, float, float], slopes: np.ndarray | None = None) -> Act:
    """An activation; `slopes` are float32 [channels]."""
    return Act(*activation, memory.pointer(slopes))


def pack(
    memory: Memory, w: np.ndarray, like: np.ndarray, math_mode: int, group: int = 1, taps: np.ndarray | None = None
) -> tuple[WeightShape, int]:
    """Weights [M, C / group, taps] float32 for rows like these: their shape and where they lie packed."""
    count = w.shape[2] if taps is None else len(taps)
    shape = WeightShape(w.shape[0], w.shape[1], count, group)
    kind = element(like)
    packed = memory.new([kernels().packed_bytes(shape, kind)], np.uint8)
    pointer = packed.ctypes.data
    kernels().run(
        "pack",
        PackArgs(
            shape=shape,
            element=kind,
            math=math_mode,
            all_taps=w.shape[2],
            taps=memory.pointer(taps),
            weights=memory.pointer(w),
            packed=pointer,
        ),
    )
    return shape, pointer


def product(
    rows: np.ndarray,
    w: np.ndarray,
    table: np.ndarray,
    *,
    bias: np.ndarray | None = None,
    group: int = 1,
    added: np.ndarray | None = None,
    added_source: np.ndarray | None = None,
    activation: tuple[float, float, float] = NO_ACTIVATION,
    slopes: np.ndarray | None = None,
    math_mode: int = cuda_kernels.TENSOR_CORES,
    tile: int = 0,
) -> np.ndarray:
    """rows [N, R, C], W [M, C / group, taps], table [P, taps]: [N, P, M] of the rows' type."""
    memory = Memory()
    shape, packed = pack(memory, w, rows, math_mode, group)
    out = memory.new([rows.shape[0], table.shape[0], w.shape[0]], rows.dtype)
    kernels().run(
        "product",
        ProductArgs(
            shape=shape,
            element=element(rows),
            math=math_mode,
            images=rows.shape[0],
            rows_per_image=rows.shape[1],
            sites=table.shape[0],
            rows=memory.pointer(rows),
            packed=packed,
            bias=memory.pointer(bias),
            table=memory.pointer(table),
            added=memory.pointer(added),
            added_source=memory.pointer(added_source),
            added_images=0 if added is None else added.shape[0],
            rows_added=0 if added is None else added.shape[1],
            act=act(memory, activation, slopes),
            out=out.ctypes.data,
            tile=tile,
        ),
    )
    return out


def radius(
    rows: np.ndarray,
    w: np.ndarray,
    table: np.ndarray,
    alpha_weights: np.ndarray,
    *,
    alpha_bias: float = 0.0,
    bias: np.ndarray | None = None,
    ring_bias: np.ndarray | None = None,
    center_gain: float = 0.0,
    group: int = 1,
    activation: tuple[float, float, float] = NO_ACTIVATION,
    math_mode: int = cuda_kernels.TENSOR_CORES,
    tile: int = 0,
) -> np.ndarray:
    """rows [N, R, C], W [M, C / group, 9], table [P, 9]: [N, P, M] of the rows' type."""
    memory = Memory()
    ring_taps = np.array([0, 1, 2, 3, 5, 6, 7, 8], np.int32)
    shape, ring = pack(memory, w, rows, math_mode, group, ring_taps)
    _, centre = pack(memory, w, rows, math_mode, group, np.array([4], np.int32))
    out = memory.new([rows.shape[0], table.shape[0], w.shape[0]], rows.dtype)
    args = RadiusArgs(
        shape=WeightShape(shape.outputs, shape.inputs, 9, group),
        element=element(rows),
        math=math_mode,
        images=rows.shape[0],
        rows_per_image=rows.shape[1],
        sites=table.shape[0],
        rows=memory.pointer(rows),
        packed_centre=centre,
        packed_ring=ring,
        bias=memory.pointer(bias),
        ring_bias=memory.pointer(ring_bias),
        alpha_weights=memory.pointer(alpha_weights),
        centre=memory.pointer(np.ascontiguousarray(table[:, 4])),
        ring=memory.pointer(np.ascontiguousarray(table[:, ring_taps])),
        alpha_bias=alpha_bias,
        center_gain=center_gain,
        act=act(memory, activation),
        out=out.ctypes.data,
        tile=tile,
    )
    scratch = memory.new([kernels().radius_scratch(args)], np.uint8)
    args.scratch = scratch.ctypes.data
    kernels().run("radius", args)
    return out


def compact(x: np.ndarray, sites: np.ndarray | None = None) -> np.ndarray:
    """X [N, C, H, W], sites [P] or None: [N, P, C]."""
    memory = Memory()
    pixels = x.shape[2] * x.shape[3]
    count = pixels if sites is None else len(sites)
    rows = memory.new([x.shape[0], count, x.shape[1]], x.dtype)
    kernels().run(
        "compact",
        CompactArgs(
            element=element(x),
            images=x.shape[0],
            channels=x.shape[1],
            pixels=pixels,
            count=count,
            sites=memory.pointer(sites),
            x=memory.pointer(x),
            rows=rows.ctypes.data,
        ),
    )
    return rows


def expand(
    rows: np.ndarray,
    source: np.ndarray,
    weight: np.ndarray | None = None,
    fill: np.ndarray | None = None,
    activation: tuple[float, float, float] = NO_ACTIVATION,
) -> np.ndarray:
    """rows [N, R, C], source [Q, K]: [N, C, Q]."""
    memory = Memory()
    y = memory.new([rows.shape[0], rows.shape[2], source.shape[0]], rows.dtype)
    kernels().run(
        "expand",
        ExpandArgs(
            element=element(rows),
            images=rows.shape[0],
            rows_per_image=rows.shape[1],
            channels=rows.shape[2],
            positions=source.shape[0],
            per_position=source.shape[1],
            source=memory.pointer(source),
            weight=memory.pointer(weight),
            fill=memory.pointer(fill),
            act=act(memory, activation),
            rows=memory.pointer(rows),
            y=y.ctypes.data,
        ),
    )
    return y


def pool(
    rows: np.ndarray,
    begin: np.ndarray,
    entries: np.ndarray,
    repeats: np.ndarray | None = None,
    divisors: np.ndarray | None = None,
) -> np.ndarray:
    """rows [N, R, C]; entries[begin[p]:begin[p + 1]] are pooled for site p, averaged where there are divisors."""
    memory = Memory()
    out = memory.new([rows.shape[0], len(begin) - 1, rows.shape[2]], rows.dtype)
    kernels().run(
        "pool",
        PoolArgs(
            element=element(rows),
            average=divisors is not None,
            images=rows.shape[0],
            rows_per_image=rows.shape[1],
            channels=rows.shape[2],
            sites=len(begin) - 1,
            begin=memory.pointer(begin),
            entries=memory.pointer(entries),
            repeats=memory.pointer(repeats),
            divisors=memory.pointer(divisors),
            rows=memory.pointer(rows),
            out=out.ctypes.data,
        ),
    )
    return out
