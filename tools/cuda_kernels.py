"""The C interface of the CUDA kernels (custom_ops/cuda/launch.h) for Python: raw pointers as integers, no onnxruntime.

Tests call it on kernels that were compiled for the host, `gpu_kernels.py` on the device's.

    python tools/cuda_kernels.py

compiles the kernels with nvcc, for which no GPU is needed, with warnings as errors, and says how many registers each
has. One that keeps some of them in memory is an error too.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[1] / "custom_ops"

FLOAT, HALF, BFLOAT16 = range(3)
"""Element."""
STRICT, TENSOR_CORES = range(2)
"""Math."""

_I64, _I32, _F32, _POINTER = ctypes.c_int64, ctypes.c_int32, ctypes.c_float, ctypes.c_void_p


ARCHITECTURES = (("80", "sm_80"), ("90a", "sm_90a"), ("90", "compute_90"))
"""What a library has code for: machine code, and for later GPUs the intermediate form."""


class Act(ctypes.Structure):
    """An activation."""

    _fields_ = [("negative_slope", _F32), ("clip_min", _F32), ("clip_max", _F32), ("slopes", _POINTER)]


class WeightShape(ctypes.Structure):
    """W [outputs, inputs of a group, taps]."""

    _fields_ = [("outputs", _I64), ("inputs", _I64), ("taps", _I64), ("groups", _I64)]


class ProductArgs(ctypes.Structure):
    """Of `product`."""

    _fields_ = [
        ("shape", WeightShape),
        ("element", _I32),
        ("math", _I32),
        ("images", _I64),
        ("rows_per_image", _I64),
        ("sites", _I64),
        ("rows", _POINTER),
        ("packed", _POINTER),
        ("bias", _POINTER),
        ("table", _POINTER),
        ("added", _POINTER),
        ("added_source", _POINTER),
        ("added_images", _I64),
        ("rows_added", _I64),
        ("act", Act),
        ("out", _POINTER),
        ("tile", _I32),
    ]


class RadiusArgs(ctypes.Structure):
    """Of `radius`."""

    _fields_ = [
        ("shape", WeightShape),
        ("element", _I32),
        ("math", _I32),
        ("images", _I64),
        ("rows_per_image", _I64),
        ("sites", _I64),
        ("rows", _POINTER),
        ("packed_centre", _POINTER),
        ("packed_ring", _POINTER),
        ("bias", _POINTER),
        ("ring_bias", _POINTER),
        ("alpha_weights", _POINTER),
        ("centre", _POINTER),
        ("ring", _POINTER),
        ("alpha_bias", _F32),
        ("center_gain", _F32),
        ("act", Act),
        ("scratch", _POINTER),
        ("out", _POINTER),
        ("tile", _I32),
    ]


class PackArgs(ctypes.Structure):
    """Of `pack`."""

    _fields_ = [
        ("shape", WeightShape),
        ("element", _I32),
        ("math", _I32),
        ("all_taps", _I64),
        ("taps", _POINTER),
        ("weights", _POINTER),
        ("packed", _POINTER),
    ]


class CompactArgs(ctypes.Structure):
    """Of `compact`."""

    _fields_ = [
        ("element", _I32),
        ("images", _I64),
        ("channels", _I64),
        ("pixels", _I64),
        ("count", _I64),
        ("sites", _POINTER),
        ("x", _POINTER),
        ("rows", _POINTER),
    ]


class ExpandArgs(ctypes.Structure):
    """Of `expand`."""

    _fields_ = [
        ("element", _I32),
        ("images", _I64),
        ("rows_per_image", _I64),
        ("channels", _I64),
        ("positions", _I64),
        ("per_position", _I64),
        ("source", _POINTER),
        ("weight", _POINTER),
        ("fill", _POINTER),
        ("act", Act),
        ("rows", _POINTER),
        ("y", _POINTER),
    ]


class PoolArgs(ctypes.Structure):
    """Of `pool`."""

    _fields_ = [
        ("element", _I32),
        ("average", _I32),
        ("images", _I64),
        ("rows_per_image", _I64),
        ("channels", _I64),
        ("sites", _I64),
        ("begin", _POINTER),
        ("entries", _POINTER),
        ("repeats", _POINTER),
        ("divisors", _POINTER),
        ("rows", _POINTER),
        ("out", _POINTER),
    ]


class Kernels:
    """The functions of a library that `build` made."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.library.perfonnx_cuda_error_text.restype = ctypes.c_char_p
        for name in ("packed_bytes", "radius_scratch"):
            getattr(self.library, f"perfonnx_cuda_{name}").restype = ctypes.c_size_t

    def packed_bytes(self, shape: WeightShape, element: int) -> int:
        """Size of packed weights."""
        return self.library.perfonnx_cuda_packed_bytes(ctypes.byref(shape), ctypes.c_int32(element))

    def radius_scratch(self, args: RadiusArgs) -> int:
        """Size of the scratch memory of a radius-adaptive convolution."""
        return self.library.perfonnx_cuda_radius_scratch(ctypes.byref(args))

    def run(self, name: str, args: ctypes.Structure, stream: int = 0) -> None:
        """Call one of the functions; `RuntimeError` with its status's text where that is not 0."""
        function = getattr(self.library, f"perfonnx_cuda_{name}")
        status = function(ctypes.byref(args), ctypes.c_void_p(stream))
        if status != 0:
            raise RuntimeError(f"{name}: {self.library.perfonnx_cuda_error_text(status).decode()} ({status})")


def nvcc_command(architectures: Sequence[tuple[str, str]] = ARCHITECTURES) -> list[str]:
    """The command that compiles the kernels for some (virtual, real) architectures."""
    options = ["-std=c++17", "-O3", "-lineinfo", "--ptxas-options=-v", "-Xcompiler=-fPIC,-Wall,-Wextra"]
    options += [f"-gencode=arch=compute_{virtual},code={real}" for virtual, real in architectures]
    if any(virtual == "90a" for virtual, _ in architectures):
        options.append("-DPERFONNX_SM90A")
    return ["nvcc", *options]


def build(compiler: Sequence[str], place: Path, extra_sources: Sequence[Path] = ()) -> Path:
    """Compile and link the kernels into a shared library in `place`, several files at once.

    Args:
        compiler: The command with its options, such as those of `nvcc_command`.
        place: A directory, made where it is missing.
        extra_sources: Files beside the kernels.

    Returns:
        The library's path. The compilers' messages lie beside the object files, in files that end in `.log`.
    """
    place.mkdir(parents=True, exist_ok=True)
    sources = [*sorted((SOURCES / "cuda").glob("*.cu"), key=lambda path: "product_" not in path.name), *extra_sources]
    objects = [place / f"{source.name}.o" for source in sources]

    def compile_one(source: Path, target: Path) -> None:
        kind = [] if "nvcc" in compiler[0] else ["-x", "c++"]
        command = [*compiler, f"-I{SOURCES}", *kind, "-c", str(source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        target.with_suffix(".log").write_text(done.stdout + done.stderr)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, sources, objects))
    library = place / "libperfonnx_cuda_kernels.so"
    subprocess.run([*compiler, "-shared", "-o", str(library), *map(str, objects)], check=True, capture_output=True)
    return library


@dataclass(frozen=True)
class Resources:
    """What the compiler says of a kernel."""

    name: str
    architecture: str
    registers: int
    spilled: int
    """Bytes of registers that are kept in memory."""


def resources(log: str) -> list[Resources]:
    """Read the messages of nvcc_command's compiler, names of C++ in its mangled form or not."""
    result = []
    for part in log.split("Compiling entry function ")[1:]:
        name, architecture = re.findall(r"'([^']*)'", part)[:2]
        registers, stores = re.search(r"Used (\d+) registers", part), re.search(r"(\d+) bytes spill stores", part)
        assert registers is not None
        assert stores is not None
        result.append(Resources(name, architecture, int(registers[1]), int(stores[1])))
    return result


def main() -> int:
    """Compile, print a line for each kernel; exit status 1 where one spills."""
    command = [*nvcc_command(), "-Werror=all-warnings", "--Werror=default-stream-launch", "-Xcompiler=-Werror"]
    with tempfile.TemporaryDirectory() as name:
        build(command, Path(name))
        log = "\n".join(path.read_text() for path in sorted(Path(name).glob("*.log")))
    readable = subprocess.run(["c++filt"], input=log, capture_output=True, text=True, check=True).stdout
    found = resources(readable.replace("perfonnx::", "").replace("cuda::", "").replace("(anonymous namespace)::", ""))
    for kernel in found:
        spilled = f", {kernel.spilled} BYTES SPILLED" if kernel.spilled else ""
        print(f"{kernel.registers:3} registers, {kernel.architecture:6} {kernel.name}{spilled}")
    return 1 if any(kernel.spilled for kernel in found) else 0


if __name__ == "__main__":
    sys.exit(main())
