"""Code in a Python process of its own, where the environment or the processors are others."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_ON_SOME_PROCESSORS = """
import hashlib, os, sys
import numpy as np
processors = int(sys.argv[1])
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:processors])
from perfonnx import _engine
rng = np.random.default_rng(0)
{code}
print(hashlib.sha256(result).hexdigest())
"""


def run_python(code: str, *, check: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code, with these variables set beside those that are."""
    command, variables = [sys.executable, "-c", code], {**os.environ, **environment}
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=check)


def assert_same_on_any_number_of_processors(code: str) -> None:
    """Code that leaves an array `result` does so bit for bit on one processor and on two.

    It finds np, _engine, a generator rng and the number of processors.
    """
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one processor, or no way to ask for one")
    program = _ON_SOME_PROCESSORS.format(code=code)
    one, two = (subprocess.check_output([sys.executable, "-c", program, count]) for count in "12")
    assert one == two
