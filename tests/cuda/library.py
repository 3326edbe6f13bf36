"""The CUDA provider's operators on the host: a library in which they take the CPU provider's place."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest

from perfonnx.runtime import quiet_options
from tests.cuda.host import BUILD, kernels, sanitizers
from tools.cuda_kernels import SOURCES

FIND_HEADERS = SOURCES.parent / "tools" / "find_onnxruntime_headers.py"


@functools.cache
def library() -> Path:
    """Its path; compiled where there is none of these sources yet, against the kernels that `kernels` compiled."""
    beside = Path(kernels().library._name)
    found = subprocess.run(
        [sys.executable, FIND_HEADERS, f"--work-dir={BUILD / 'headers'}"], capture_output=True, text=True, check=False
    )
    if found.returncode != 0:
        pytest.skip(f"the headers of onnxruntime are not there: {found.stderr.splitlines()[-1]}")
    flags = ["-std=c++17", "-O1", "-fPIC", "-g1", "-Wall", "-Wextra", "-Werror", "-DPERFONNX_CUDA_ON_HOST"]
    flags += [f"-I{SOURCES}", "-isystem", found.stdout.strip(), *sanitizers()]
    command = [os.environ.get("CXX", "c++"), *flags]
    sources = [*SOURCES.glob("core/*.cpp"), *SOURCES.glob("cuda/*.cpp"), *SOURCES.glob("ort/*.cpp")]
    sources = sorted(source for source in sources if source.name != "cpu_backend.cpp")
    key = hashlib.sha256(" ".join([*command, str(beside)]).encode())
    for source in [*sources, *sorted(SOURCES.glob("*/*.h"))]:
        key.update(source.read_bytes())
    made = BUILD / f"libperfonnx-{key.hexdigest()[:16]}.so"
    with (BUILD / "lock").open("w") as lock:  # of the processes that run tests one compiles
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            for old in BUILD.glob("libperfonnx-*.so"):
                old.unlink()
            place = BUILD / "objects"
            place.mkdir(exist_ok=True)
            objects = [place / f"{source.parent.name}-{source.name}.o" for source in sources]

            def compile_one(source: Path, target: Path) -> None:
                subprocess.run([*command, "-c", source, "-o", target], check=True)

            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(compile_one, sources, objects))
            link = [command[0], "-shared", *(sanitizers() or ["-Wl,-z,defs"]), f"-Wl,-rpath,{beside.parent}"]
            subprocess.run([*link, "-o", made, *objects, beside], check=True)
    return made


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    """Of a model whose operators of ours are the device's, on the host."""
    options = quiet_options()
    options.intra_op_num_threads = 1
    options.register_custom_ops_library(str(library()))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
