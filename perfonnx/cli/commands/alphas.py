"""`perfonnx alphas`: how far radius-adaptive layers stay closed."""

from __future__ import annotations

import argparse

from perfonnx.cli.command import Command, ExitStatus
from perfonnx.cli.data import ALL_SAMPLES, add_data, required_samples
from perfonnx.cli.flags import (
    add_json,
    add_library,
    add_shapes,
    add_threads,
    check_suffix,
)
from perfonnx.cli.named_files import ReadModel, Written
from perfonnx.cli.output import Bar, show

_EXAMPLES = """examples:
  perfonnx alphas fast.onnx --data photos/ --samples 200
  perfonnx alphas fast.onnx --data photos/ --images alphas.png
        maps of alpha of the first photos: a line per photo, a column per layer, white where the 3x3 ring is computed
"""


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=ReadModel, metavar="MODEL", help="a model with radius-adaptive layers")
    parser.add_argument(
        "--images", type=Written, metavar="FILE", help="write maps of alpha of the first 4 samples, a .png file"
    )
    add_data(parser, note=ALL_SAMPLES)
    add_shapes(parser)
    add_library(parser)
    add_threads(parser)
    add_json(parser)


def _run(options: argparse.Namespace) -> ExitStatus:
    from perfonnx.alphas import alphas, render_alphas, save_picture

    if options.images is not None:
        check_suffix(options.images, ".png", "maps of alpha")
    samples = required_samples(options, batch=1)
    with Bar(options, "measuring") as step:
        result = alphas(
            options.model,
            samples.feeds(),
            keep=4 if options.images else 0,
            threads=options.threads,
            progress=lambda done: step(done, len(samples)),
        )
    if options.images:
        save_picture(result, options.images)
    show(options, result.to_json(), render_alphas(result))
    return ExitStatus.OK


COMMAND = Command(
    "alphas",
    40,
    "show how much of their maps radius-adaptive layers leave closed",
    _EXAMPLES,
    _add_flags,
    _run,
)
