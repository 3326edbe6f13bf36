"""`perfonnx inspect`: what is in a model, and what can be done with it."""

from __future__ import annotations

import argparse

from perfonnx.cli.command import Command, ExitStatus
from perfonnx.cli.flags import (
    add_freeze,
    add_json,
    add_library,
    add_shapes,
    input_shapes,
)
from perfonnx.cli.named_files import ReadModel
from perfonnx.cli.output import show

_EXAMPLES = """examples:
  perfonnx inspect model.onnx
  perfonnx inspect model.onnx --input-shape image:1,3,480,640
  perfonnx inspect model.onnx --json | jq '.convs[].name'
"""


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=ReadModel, metavar="MODEL")
    add_freeze(parser)
    add_shapes(parser)
    add_library(parser)
    add_json(parser)


def _run(options: argparse.Namespace) -> ExitStatus:
    from perfonnx.inspection import inspect
    from perfonnx.render import render_inspection

    result = inspect(
        options.model,
        input_shapes=input_shapes(options),
        freeze_weights=options.freeze_weights,
    )
    show(options, result.to_json(), render_inspection(result))
    return ExitStatus.OK


COMMAND = Command(
    "inspect",
    10,
    "list a model's convolutions, their cost, and which can be rewritten",
    _EXAMPLES,
    _add_flags,
    _run,
)
