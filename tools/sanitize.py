"""Runs the tests of the C++ code under sanitizers: address and undefined behaviour, or data races.

    python tools/sanitize.py address      # AddressSanitizer and UndefinedBehaviorSanitizer
    python tools/sanitize.py thread       # ThreadSanitizer
    python tools/sanitize.py thread tests/engine/test_product.py -k threads

Builds the engine and the operator library with the sanitizers into build/sanitize-NAME, beside the ordinary build, and
runs pytest on them; what follows the name goes to pytest. Needs GCC or Clang on Linux with its sanitizer libraries.
Python and onnxruntime are not instrumented: leaks are not looked for, and tools/thread_sanitizer.supp says what is
overlooked in data races and why.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUPPRESSIONS = ROOT / "tools" / "thread_sanitizer.supp"

SANITIZERS = {"address": "address,undefined", "thread": "thread"}
"""What -fsanitize is given."""

PRELOADED = {"address": ("asan", "ubsan", "stdc++"), "thread": ("tsan", "stdc++")}
"""Libraries that must be there before Python is. The sanitizers look for the C++ library's throw when they start."""

OPTIONS = {
    # Not detect_stack_use_after_return: GCC's stand-in for the stack is not aligned for AVX-512 (GCC bug 110027).
    "ASAN_OPTIONS": "detect_leaks=0:strict_string_checks=1:detect_stack_use_after_return=0",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    "TSAN_OPTIONS": f"halt_on_error=1:second_deadlock_stack=1:suppressions={SUPPRESSIONS}",
}

TESTS = {
    "address": [
        "tests/engine",
        "tests/cuda",
        "tests/runtime",
        "tests/ops/test_kernels.py",
        "tests/ops/test_row_kernels.py",
    ],
    "thread": ["tests/engine", "tests/runtime/test_session.py"],
}
"""What runs unless told."""

RUN = """
import sys
stage, *arguments = sys.argv[1:]
# An editable installation would come first.
sys.meta_path[:] = [finder for finder in sys.meta_path if "Redirecting" not in type(finder).__name__]
sys.path.insert(0, stage)
import perfonnx._engine
assert perfonnx._engine.__file__.startswith(stage), perfonnx._engine.__file__
import pytest
sys.exit(pytest.main(arguments))
"""


def main() -> int:
    """Build and run; the exit status is pytest's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(SANITIZERS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="compilers at once")
    options, arguments = parser.parse_known_args()
    stage = build(options.name, options.jobs or 1)
    command = [
        sys.executable,
        "-c",
        RUN,
        str(stage),
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:faulthandler",
        "--capture=sys",
    ]
    named = any((ROOT / argument.partition("::")[0]).exists() for argument in arguments)
    command += arguments if named else [*TESTS[options.name], *arguments]
    if options.name == "thread" and shutil.which("setarch"):
        command = ["setarch", "-R", *command]  # ThreadSanitizer wants its addresses, which randomization may take
    libraries = [library(name) for name in PRELOADED[options.name]]
    environment = {**os.environ, **OPTIONS, "LD_PRELOAD": " ".join(found for found in libraries if found)}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def build(name: str, jobs: int) -> Path:
    """Build and install into a directory of its own, which is returned."""
    place = ROOT / "build" / f"sanitize-{name}"
    stage = place / "stage"
    shutil.rmtree(stage, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--target", str(stage), "-C", f"build-dir={place / 'build'}"]
    command += ["-C", f"cmake.define.PERFONNX_SANITIZE={SANITIZERS[name]}", "-C", "cmake.build-type=RelWithDebInfo"]
    subprocess.run([*command, "."], cwd=ROOT, env={**os.environ, "CMAKE_BUILD_PARALLEL_LEVEL": str(jobs)}, check=True)
    return stage


def library(name: str) -> str | None:
    """The compiler's shared library of this name; None where it has none, as Clang's sanitizers may be one."""
    compiler = os.environ.get("CXX", "c++")
    found = subprocess.run([compiler, f"-print-file-name=lib{name}.so"], capture_output=True, text=True, check=True)
    path = Path(found.stdout.strip())
    return str(path) if path.is_absolute() and path.is_file() else None


if __name__ == "__main__":
    sys.exit(main())
