"""`perfonnx lib`: where the library of operators is."""

from __future__ import annotations

import argparse

from perfonnx.cli.command import Command, ExitStatus

_EXAMPLES = "example:\n  perfonnx lib\n"


def _run(_: argparse.Namespace) -> ExitStatus:
    from perfonnx.runtime import get_library_path

    print(get_library_path())
    return ExitStatus.OK


COMMAND = Command("lib", 100, "print the path of the custom-operator library", _EXAMPLES, lambda _: None, _run)
