"""How the tests are run."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:  # there is a process for each processor; PyTorch reads this when it is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("shared", deadline=None)  # processors are shared with other tests
settings.load_profile("shared")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """A few named files run at once in the process that was started; everything else on all processors."""
    return 0 if all(".py" in argument for argument in config.args) else None
