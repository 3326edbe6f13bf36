"""`perfonnx sensitivity`: how much the output minds each layer being sampled."""

from __future__ import annotations

import argparse

from perfonnx.cli.command import Command, ExitStatus
from perfonnx.cli.data import add_data, required_samples
from perfonnx.cli.flags import (
    add_freeze,
    add_json,
    add_library,
    add_metric,
    add_shapes,
    add_threads,
    input_shapes,
)
from perfonnx.cli.named_files import ReadModel
from perfonnx.cli.output import Bar, show
from perfonnx.cli.space import add_space, space_from

_EXAMPLES = """examples:
  perfonnx sensitivity model.onnx --data photos/ --preset imagenet --samples 100
  perfonnx sensitivity model.onnx --data data.npz --rates .25,.5 --masks lattice,uniform --repair bias
"""


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=ReadModel, metavar="MODEL")
    add_space(parser)
    add_metric(parser)
    add_threads(parser)
    add_data(parser)
    add_freeze(parser)
    add_shapes(parser)
    add_library(parser)
    add_json(parser)


def _run(options: argparse.Namespace) -> ExitStatus:
    from perfonnx.search import render_sensitivity, sensitivity

    with Bar(options, "measuring layers") as step:
        result = sensitivity(
            options.model,
            required_samples(options),
            space=space_from(options),
            metric=options.metric,
            input_shapes=input_shapes(options),
            freeze_weights=options.freeze_weights,
            threads=options.threads,
            seed=options.seed,
            progress=step,
        )
    show(options, result.to_json(), render_sensitivity(result))
    return ExitStatus.OK


COMMAND = Command(
    "sensitivity",
    90,
    "measure how much the output minds each layer being sampled",
    _EXAMPLES,
    _add_flags,
    _run,
)
