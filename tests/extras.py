"""Packages of the extra `test-all`: tests that need one are skipped where it is not installed."""

from __future__ import annotations

from typing import Any

import pytest


def needs(name: str) -> Any:
    """A package, for a test or a whole file of tests; `.ci/run` finds these files by this function's name."""
    reason = f"{name} is not installed: pip install -e '.[test-all]' brings it"
    return pytest.importorskip(name, reason=reason)
