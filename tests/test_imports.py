"""What is not imported: importing the package and parsing a command line wait for no large package."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import perfonnx
from tests.cli.running import COMMANDS

LARGE = ("numpy", "scipy", "onnx", "onnxruntime", "onnx_graphsurgeon", "rich", "PIL", "torch")

PARSED = """
import contextlib, io
from perfonnx.cli import main
with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
    main({arguments})
assert "perfonnx" in printed.getvalue()
"""


def imported(code: str) -> set[str]:
    """The modules that a fresh interpreter holds after this code."""
    code = f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout))


def test_importing_the_package_imports_no_large_one() -> None:
    modules = imported("import perfonnx; dir(perfonnx); perfonnx.PerfonnxError")
    assert "perfonnx.errors" in modules
    assert not modules.intersection(LARGE)


WITH_METHODS = {"rewrite", "finetune"}
"""Commands whose flags are the settings of all methods, which those say themselves."""

QUICK = [["--version"], ["--help"], *([name, "--help"] for name in COMMANDS if name not in WITH_METHODS)]


@pytest.mark.parametrize("arguments", QUICK, ids=str)
def test_parsing_a_command_line_imports_no_large_package(arguments: list[str]) -> None:
    assert not imported(PARSED.format(arguments=arguments)).intersection(LARGE)


def test_scipy_waits_for_its_first_use() -> None:
    modules = imported("import perfonnx.cli, perfonnx.search, perfonnx.fitting; perfonnx.rewrite")
    assert "onnx" in modules
    assert "scipy" not in modules


def test_every_public_name_is_there_and_listed() -> None:
    for name in perfonnx.__all__:
        found = getattr(perfonnx, name)
        assert getattr(found, "__name__", name) == name
    assert set(perfonnx.__all__) <= set(dir(perfonnx))
    with pytest.raises(AttributeError, match="module 'perfonnx' has no attribute 'rewritten'"):
        perfonnx.rewritten  # noqa: B018
