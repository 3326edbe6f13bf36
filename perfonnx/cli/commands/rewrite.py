"""`perfonnx rewrite`: a model, rewritten."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from perfonnx.cli.choices import add_choices, choices_from
from perfonnx.cli.command import Command, ExitStatus
from perfonnx.cli.data import add_data, samples_from
from perfonnx.cli.flags import (
    add_freeze,
    add_json,
    add_library,
    add_quiet,
    add_shapes,
    input_shapes,
)
from perfonnx.cli.named_files import Named, ReadModel, Written
from perfonnx.cli.output import Bar, exit_status, show, stderr
from perfonnx.errors import PerfonnxError

if TYPE_CHECKING:
    from perfonnx.comparing.check_report import CheckReport
    from perfonnx.rewriting import Report

_EXAMPLES = """examples:
  perfonnx rewrite model.onnx fast.onnx
        exact: computes every position, faster where that is estimated to pay; outputs stay the same up to rounding
  perfonnx rewrite model.onnx fast.onnx --rate 0.5 --skip '^conv1$' --check 4
  perfonnx rewrite model.onnx fast.onnx --method sparse --mask masks.npz
  perfonnx rewrite model.onnx fast.onnx --input-shape image:N,3,480,640
  perfonnx rewrite model.onnx fast.onnx --rate 0.5 --mask lattice --repair predictor --data photos/ --samples 200
  perfonnx rewrite model.onnx fast.onnx --method radius-adaptive --open-share 0.5 --data photos/ --samples 200
  perfonnx rewrite model.onnx --dry-run --save-plan plan.json
  perfonnx rewrite model.onnx fast.onnx --plan plan.json
"""


class _Output(Written):
    def files(self, name: str, options: argparse.Namespace) -> Iterator[Named]:
        return iter(()) if options.dry_run else super().files(name, options)


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=ReadModel, metavar="IN", help="the model to rewrite; it is not changed")
    parser.add_argument("output", type=_Output, metavar="OUT", nargs="?", help="where the new model goes")
    add_choices(parser)
    add_data(parser, seed=False)
    model = parser.add_argument_group("the model")
    add_shapes(model)
    add_library(model)
    add_freeze(model)
    model.add_argument(
        "--no-fallback",
        action="store_true",
        help="leave out the function bodies, with which the model also runs without the library",
    )
    model.add_argument(
        "--layout",
        default=None,
        metavar="NAME",
        help="rows (default, unless the plan says otherwise): neighbouring rewritten layers exchange rows; nchw: each "
        "takes and gives whole maps",
    )
    model.add_argument(
        "--exactness",
        choices=("rounding", "strict"),
        default=None,
        help="rounding (default, unless the plan says otherwise): 3x3 and 5x5 layers by Winograd's algorithm, errors "
        "of 1e-6 to 4e-6 of the largest output; strict: sums in the order of a direct convolution",
    )
    model.add_argument(
        "--memory",
        choices=("fast", "small"),
        default=None,
        help="fast (default, unless the plan says otherwise): weights of 3x3 layers grow 4 times in memory; small: 1.8 "
        "times, but they gain less (VGG-16 becomes 1.8x faster instead of 2.7x)",
    )
    after = parser.add_argument_group("afterwards")
    after.add_argument(
        "--check", type=int, default=0, metavar="N", help="run both models on N random inputs and compare them"
    )
    after.add_argument("--dry-run", action="store_true", help="report what would be done, write nothing but the plan")
    after.add_argument(
        "-v", "--verbose", action="store_true", help="list all layers left alone, and what stays on maps"
    )
    add_quiet(after)
    add_json(after)


def _run(options: argparse.Namespace) -> ExitStatus:
    from perfonnx.comparing.check_report import render_check
    from perfonnx.methods import Needs
    from perfonnx.render import render_report
    from perfonnx.rewriting import rewrite

    if not options.output and not options.dry_run:
        raise PerfonnxError("rewrite needs OUT, where the new model goes, or --dry-run")
    if options.check < 0:
        raise PerfonnxError(f"--check {options.check}: give the number of inputs to compare on, 1 or more")
    chosen = choices_from(options)
    fitted = chosen is None or chosen.example.needs is not Needs.NOTHING
    if options.data is not None and not fitted:
        raise PerfonnxError("--data is for --repair, --open-share and methods that are fitted; add one of them")
    samples = samples_from(options)
    console = stderr(options)
    with console.status("reading") as status:
        result = rewrite(
            options.model,
            None if options.dry_run else options.output,
            options=chosen,
            plan=options.plan,
            input_shapes=input_shapes(options),
            fallback=not options.no_fallback,
            layout=options.layout,
            largest_tile=_largest_tile(options),
            freeze_weights=options.freeze_weights,
            samples=samples,
            impact_maps=options.impact_maps,
            progress=status.update,
        )
    if options.save_plan:
        result.save_plan(options.save_plan)
    data = result.report.to_json()
    if not options.quiet and not options.json:
        show(options, data, render_report(result.report, verbose=options.verbose))
        _say_what_was_not_measured(options, result.report)
    report = None
    if options.check:
        target = result.to_bytes() if options.dry_run else options.output
        report = _check_random(options, target)
        data["check"] = report.to_json()
    if options.json and not options.quiet:
        show(options, data, None)
    elif report is not None and not options.quiet:
        show(options, None, render_check(report))
    return ExitStatus.OK if report is None else exit_status(report)


def _largest_tile(options: argparse.Namespace) -> int | None:
    """What --exactness and --memory leave of Winograd's algorithm; None: what the plan says."""
    from perfonnx.ops.common import TILE_SIZES

    large, small, none = TILE_SIZES
    if options.exactness is None and options.memory is None:
        return None
    return none if options.exactness == "strict" else small if options.memory == "small" else large


def _check_random(options: argparse.Namespace, target: Any) -> CheckReport:
    """The rewritten model against the model on random inputs."""
    from perfonnx.comparing.check import compare
    from perfonnx.data.feeds import random_feeds
    from perfonnx.data.inputs import merged_inputs
    from perfonnx.running.opened import open_model

    first, second = (open_model(model) for model in (options.model, target))
    specs = merged_inputs([first.inputs, second.inputs])
    source = random_feeds(specs, n=options.check, seed=options.seed or 0, shapes=input_shapes(options))
    with Bar(options, "comparing") as step:
        return compare(first, second, source, fallback=not options.no_fallback, progress=step)


def _say_what_was_not_measured(options: argparse.Namespace, report: Report) -> None:
    if not report.layers:
        print("Nothing was rewritten; the output is the model as it came.")
        return
    output = options.output or "OUT"
    check = f"  perfonnx check {options.model} {output}"
    if all(layer.plan.lossless for layer in report.layers):
        print(f"The outputs are those of the original up to rounding. To see by how much they differ:\n{check}")
    else:
        print(f"Accuracy was not measured. To measure it on your data:\n{check} --data DIR_OR_NPZ")
    print(f"To measure the speed:\n  perfonnx bench {options.model} {output}")


COMMAND = Command(
    "rewrite",
    20,
    "rewrite a model's convolutions",
    _EXAMPLES,
    _add_flags,
    _run,
)
