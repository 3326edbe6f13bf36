"""`perfonnx check`: two models, compared."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from perfonnx.cli.command import Command, ExitStatus
from perfonnx.cli.data import add_data, refuse_without_data, samples_from
from perfonnx.cli.flags import (
    add_json,
    add_library,
    add_metric,
    add_provider,
    add_shapes,
    add_threads,
    input_shapes,
)
from perfonnx.cli.named_files import ReadModel
from perfonnx.cli.output import Bar, exit_status, show

if TYPE_CHECKING:
    from perfonnx.comparing.check_report import CheckReport

_EXAMPLES = """examples:
  perfonnx check model.onnx fast.onnx
        random inputs: shows that both run and how far apart they are, says nothing of accuracy
  perfonnx check model.onnx fast.onnx --data photos/ --preset imagenet --samples 200 --max-drop 1%
        judges by the metric that suits the model, as perfonnx tune does (see its --help)
  perfonnx check model.onnx fast.onnx --data photos/ --preset imagenet --held-back
        what perfonnx tune found with --data photos/ --preset imagenet, on the images that it kept out of its choice
  perfonnx check model.onnx same.onnx --tolerance 1e-4
  perfonnx check model.onnx fast.onnx --provider cuda
        float32 is computed as such here, not in TF32 as onnxruntime does by default: what differs is the models' own
"""


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", type=ReadModel, metavar="A", help="the reference")
    parser.add_argument("b", type=ReadModel, metavar="B", help="the model to judge")
    parser.add_argument("--tolerance", type=float, metavar="T", help="exit 1 if an output's relative error is above T")
    parser.add_argument(
        "--max-drop", metavar="D", help="exit 1 if more than this is lost, in the metric's terms, as in perfonnx tune"
    )
    add_metric(parser)
    parser.add_argument(
        "--held-back",
        action="store_true",
        help="judge only the samples that perfonnx tune, given the same flags of data, kept out of its choice",
    )
    parser.add_argument("--no-fallback", action="store_true", help="do not compare kernels with function bodies")
    add_data(parser, note="Without --data, inputs are random, and --samples says how many (default 4).")
    add_shapes(parser)
    add_library(parser)
    add_provider(parser)
    add_threads(parser)
    add_json(parser)


def _run(options: argparse.Namespace) -> ExitStatus:
    from perfonnx.comparing.check_report import render_check

    report = _compare(options)
    show(options, report.to_json(), render_check(report))
    return exit_status(report)


def _compare(options: argparse.Namespace) -> CheckReport:
    from perfonnx.comparing.check import compare
    from perfonnx.data.feeds import random_feeds
    from perfonnx.data.inputs import merged_inputs
    from perfonnx.running.opened import open_model

    first, second = (open_model(model, threads=options.threads, exact=True) for model in (options.a, options.b))
    specs = merged_inputs([first.inputs, second.inputs])
    source: Any
    if options.data is None:
        refuse_without_data(options, "held_back")
        count = 4 if options.samples is None else options.samples
        source = random_feeds(specs, n=count, seed=options.seed, shapes=input_shapes(options))
    else:
        source = samples_from(options, specs, batch=1)
        if options.held_back:
            from perfonnx.search.tune import divided

            _, source = divided(source, options.seed)
    with Bar(options, "comparing") as step:
        return compare(
            first,
            second,
            source,
            tolerance=options.tolerance,
            max_drop=options.max_drop,
            metric=options.metric,
            judge=options.data is not None,
            fallback=not options.no_fallback,
            threads=options.threads,
            progress=step,
        )


COMMAND = Command(
    "check",
    50,
    "run two models on the same inputs and compare their outputs",
    _EXAMPLES,
    _add_flags,
    _run,
)
