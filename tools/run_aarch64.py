"""Runs the tests of the C++ engine for AArch64, whose kernels are NEON's, on a machine with another processor.

    python tools/run_aarch64.py
    python tools/run_aarch64.py tests/engine/test_winograd.py -k largest

Cross-compiles the engine, and runs pytest on it by user-mode emulation, several times slower than a processor would;
what follows goes to pytest. Times say nothing. onnxruntime does not run this way, so the operators are run without it.

Needs Debian with the packages g++-aarch64-linux-gnu and qemu-user, pip and Debian's and PyPI's registries: Python for
AArch64, and what the tests import, come from there. Everything lies in build/aarch64; nothing is installed elsewhere.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "build" / "aarch64"
SYSTEM = PLACE / "system"
STAGE = PLACE / "stage"

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
DEBIAN = ("python3", "libpython3-dev", "libstdc++6")
PYPI = ("numpy", "hypothesis", "pytest", "pytest-xdist")
PLATFORMS = ("manylinux2014", "manylinux_2_17", "manylinux_2_27", "manylinux_2_28")
"""Of wheels: a platform stands for itself alone."""


def main() -> int:
    """Build and run; the exit status is pytest's."""
    for program in (COMPILER, EMULATOR, "apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            sys.exit(f"run_aarch64.py: there is no {program}; on Debian: apt install g++-aarch64-linux-gnu qemu-user")
    unpack_system()
    python = next((SYSTEM / "usr/bin").glob("python3.[0-9]*[0-9]"))
    install_packages(python.name)
    shutil.copytree(ROOT / "tests", STAGE / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", STAGE)
    started = PLACE / "python"  # a name for Python to start others by, as tests do
    started.write_text(
        "#!/bin/sh\n"
        f"export PYTHONHOME={shlex.quote(str(SYSTEM / 'usr'))} PYTHONPATH={shlex.quote(str(STAGE))}\n"
        f'exec {EMULATOR} -L {shlex.quote(str(SYSTEM))} -0 "$0" {shlex.quote(str(python))} "$@"\n'
    )
    started.chmod(0o755)
    arguments = sys.argv[1:] or ["tests/engine"]
    return subprocess.run([started, "-m", "pytest", *arguments], cwd=STAGE, check=False).returncode


def unpack_system() -> None:
    """Python of this Debian for AArch64, with the libraries it needs, in `SYSTEM`."""
    state = PLACE / "apt"
    for folder in ("lists/partial", "archives/partial"):
        (state / folder).mkdir(parents=True, exist_ok=True)
    (state / "status").write_text("")  # nothing is installed, so everything needed is fetched
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures::": "arm64",
        "Dir::State": state,
        "Dir::State::status": state / "status",
        "Dir::Cache": state,
        "Debug::NoLocking": "true",  # the locks are the machine's
    }
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "--yes", "--no-install-recommends", "--download-only", "install", *DEBIAN], check=True)
    shutil.rmtree(SYSTEM, ignore_errors=True)
    for package in sorted((state / "archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "--extract", package, SYSTEM], check=True)


def install_packages(python: str) -> None:
    """The engine, built, and what its tests import, in `STAGE`."""
    shutil.rmtree(STAGE, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(STAGE)]
    wheels = ["--only-binary=:all:", f"--python-version={python.removeprefix('python')}"]
    wheels += [f"--platform={platform}_aarch64" for platform in PLATFORMS]
    subprocess.run([*pip, *wheels, *PYPI], check=True)
    headers = SYSTEM / "usr/include"
    settings = {
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "CMAKE_CXX_COMPILER": COMPILER,
        "CMAKE_CXX_FLAGS": f"-I{headers}",  # where Python.h looks for those of an architecture
        "Python_INCLUDE_DIR": headers / python,
        "PYTHON_MODULE_EXTENSION": ".so",
        "PERFONNX_WERROR": "ON",
    }
    build = [f"build-dir={PLACE / 'build'}", *(f"cmake.define.{name}={value}" for name, value in settings.items())]
    environment = {"CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count()), **os.environ}
    options = [part for setting in build for part in ("--config-settings", setting)]
    subprocess.run([*pip, "--no-deps", *options, "."], cwd=ROOT, env=environment, check=True)


if __name__ == "__main__":
    sys.exit(main())
