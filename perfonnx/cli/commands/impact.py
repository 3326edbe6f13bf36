"""`perfonnx impact`: how much each position matters."""

from __future__ import annotations

import argparse

from perfonnx.cli.command import Command, ExitStatus
from perfonnx.cli.data import ALL_SAMPLES, add_data, required_samples
from perfonnx.cli.flags import (
    add_library,
    add_quiet,
    add_shapes,
    add_threads,
    check_suffix,
)
from perfonnx.cli.named_files import ReadModel, Written
from perfonnx.cli.output import Bar

_EXAMPLES = """examples:
  perfonnx impact model.onnx maps.npz --data photos/ --samples 500
  perfonnx rewrite model.onnx fast.onnx --rate 0.5 --mask impact --impact-maps maps.npz
  perfonnx impact fast.onnx more.npz --data photos/ --samples 500
        of the network as it is perforated, to go on from with the original model and a higher rate

Labels come with the data (see check); without them the model's own choice is the label.
"""


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", type=ReadModel, metavar="MODEL", help="the original, or a rewritten model with its function bodies"
    )
    parser.add_argument("output", type=Written, metavar="OUT", help="where the maps go, a .npz file with one per layer")
    add_data(parser, note=ALL_SAMPLES)
    add_shapes(parser)
    add_library(parser)
    add_threads(parser)
    add_quiet(parser)


def _run(options: argparse.Namespace) -> ExitStatus:
    from perfonnx import impact

    check_suffix(options.output, ".npz", "maps of impacts")
    samples = required_samples(options, batch=1)
    with Bar(options, "measuring") as step:
        maps = impact.impact_maps(
            options.model, samples, threads=options.threads, progress=lambda done: step(done, len(samples))
        )
    impact.save_impact_maps(options.output, maps)
    if not options.quiet:
        judged = "given labels" if samples.labels is not None else "the model's own choices as labels"
        print(f"{options.output}: impacts of {len(maps)} layers, from {len(samples)} samples and {judged}")
    return ExitStatus.OK


COMMAND = Command(
    "impact",
    30,
    "measure how much each output position matters to a classifier's loss",
    _EXAMPLES,
    _add_flags,
    _run,
)
