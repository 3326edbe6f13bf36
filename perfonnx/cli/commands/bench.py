"""`perfonnx bench`: models, timed."""

from __future__ import annotations

import argparse

from perfonnx.cli.command import Command, ExitStatus
from perfonnx.cli.data import add_data, samples_from
from perfonnx.cli.flags import (
    add_json,
    add_library,
    add_provider,
    add_shapes,
    add_threads,
    input_shapes,
)
from perfonnx.cli.named_files import ReadModel
from perfonnx.cli.output import Bar, show

_EXAMPLES = """examples:
  perfonnx bench model.onnx fast.onnx
  perfonnx bench model.onnx fast.onnx faster.onnx --threads 1 --runs 50
  perfonnx bench model.onnx fast.onnx --per-layer
  perfonnx bench model.onnx fast.onnx --memory --json
"""


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models", type=ReadModel, metavar="MODEL", nargs="+", help="the first one is what the others are compared with"
    )
    add_threads(parser)
    parser.add_argument("--runs", type=int, default=20, metavar="N", help="timed runs of each model (default 20)")
    parser.add_argument(
        "--per-layer", action="store_true", help="also the time of each layer, from onnxruntime's profiler"
    )
    parser.add_argument(
        "--memory", action="store_true", help="also the peak of what the activations need in memory (Linux)"
    )
    add_data(
        parser,
        note="The first batch is what models are timed on; without --data, random numbers. Radius-adaptive layers are "
        "as fast as the data lets them be.",
    )
    add_shapes(parser)
    add_library(parser)
    add_provider(parser)
    add_json(parser)


def _run(options: argparse.Namespace) -> ExitStatus:
    from perfonnx.data.inputs import merged_inputs, model_inputs
    from perfonnx.running import bench

    inputs = merged_inputs([model_inputs(model) for model in options.models])
    samples = samples_from(options, inputs, batch=1)
    with Bar(options, "timing") as step:
        report = bench.bench(
            options.models,
            threads=options.threads,
            runs=options.runs,
            feed=None if samples is None else next(iter(samples)).feeds,
            seed=options.seed,
            shapes=input_shapes(options),
            per_layer=options.per_layer,
            memory=options.memory,
            progress=step,
        )
    show(options, report.to_json(), bench.render_bench(report))
    return ExitStatus.OK


COMMAND = Command(
    "bench",
    60,
    "time models in turn and print ratios to the first",
    _EXAMPLES,
    _add_flags,
    _run,
)
