"""Prints what low-rank methods are worth: the loss of a network at several savings, by method and by allocation.

    python tools/lowrank_table.py resnet20.onnx --data cifar10.npz --preset imagenet --methods jaderberg cp

One line per method, allocation and saving, over all layers that the method takes. Calibration and test images are
disjoint and drawn by the seed. `uniform` asks every layer for the same saving; `sensitivity` and `energy` share it out,
see `perfonnx.search.ranks`. Multiplies are not time: with `--runs` each line has the measured speed, and `--by time`
takes `--times` for how many times faster the network is to be, by measured times of its layers with the library.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

import perfonnx
from perfonnx import Plan
from perfonnx.cli.data import add_data, required_samples
from perfonnx.data.samples import Samples
from perfonnx.errors import PerfonnxError
from perfonnx.inspection import inspect
from perfonnx.methods import METHODS, Method, find_method
from perfonnx.methods.exact import Exact
from perfonnx.methods.lowrank.base import LowRank
from perfonnx.rewriting import Rewritten
from perfonnx.running.bench import bench
from perfonnx.search.evaluate import CHOOSING, PlanEvaluator, Task, find_metric, first_images, hold
from perfonnx.search.ranks import OBJECTIVES, Rung, allocated, measured_rungs
from perfonnx.search.timing import PairedTimer
from perfonnx.subject import Subject

NAMES = tuple(name for name, method in METHODS.items() if issubclass(method, LowRank))
UNIFORM = "uniform"
TIME = "time"
LADDER = (0.25, 0.35, 0.45, 0.55, 0.65, 0.75)


def main() -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(description="Print what low-rank methods lose and gain.")
    parser.add_argument("model", help="the model")
    parser.add_argument("--methods", nargs="+", default=["jaderberg"], choices=NAMES)
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="more settings of the methods")
    parser.add_argument("--times", nargs="+", type=float, default=[1.25, 1.5, 2.0], help="times fewer, or faster")
    parser.add_argument("--by", default="multiplies", choices=["multiplies", TIME], help="what is to be saved")
    parser.add_argument("--allocations", nargs="+", default=[UNIFORM, *OBJECTIVES], choices=[UNIFORM, *OBJECTIVES])
    parser.add_argument("--calibration", type=int, default=250, metavar="N", help="images (default 250)")
    parser.add_argument("--screen", type=int, default=100, metavar="N", help="images single layers are measured on")
    parser.add_argument("--test", type=int, default=1000, metavar="N", help="images (default 1000)")
    parser.add_argument("--metric", default=None, help="as in perfonnx tune")
    parser.add_argument("--runs", type=int, default=0, metavar="N", help="timed runs of each line (default 0)")
    parser.add_argument("--threads", type=int, default=None, metavar="N", help="of the timed runs (default: all cores)")
    parser.add_argument("--save", default=None, metavar="DIR", help="write the plans and models there")
    add_data(parser)
    options = parser.parse_args()
    try:
        return run(options)
    except PerfonnxError as error:
        print(f"lowrank_table: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace) -> int:
    """Print the table."""
    if not all(times > 1 for times in options.times):
        raise PerfonnxError(f"--times {' '.join(f'{times:g}' for times in options.times)}: give numbers above 1")
    samples = required_samples(options)
    calibration, test = samples.split(options.calibration, options.test, options.seed)
    subject = Subject(options.model, calibration=hold(calibration))
    held = hold(test)
    metric, _ = find_metric(options.metric, subject, held)
    evaluator = PlanEvaluator(subject, {CHOOSING: held}, metric, options.threads)
    total = sum(conv.multiplies or 0 for conv in inspect(options.model).convs)
    print(" | ".join(["method", "ranks", "multiplies", "layers", metric.name, metric.to_json()["guide"], "speed"]))
    for name in options.methods:
        for allocation, times, layers in plans(options, subject, calibration, name, total):
            layout = "rows" if options.by == TIME else "nchw"
            plan = Plan(layers, options.seed, layout=layout)
            result = subject.rewrite(plan, layout=layout, images=options.calibration)
            quality = evaluator(Task(plan, CHOOSING, len(held), layout, options.calibration)).quality
            before, after = result.report.conv_multiplies
            cells = [f"{name} {times:g}x", allocation, f"{before / after:.2f}x", str(len(result.report.layers))]
            cells += [metric.lost(quality.drop), f"{quality.guide:.4f}", speed(options, result, test)]
            print(" | ".join(cells), flush=True)
            if options.save:
                place = f"{options.save}/{name}-{allocation}-{times:g}"
                result.save(f"{place}.onnx")
                result.save_plan(f"{place}.json")
    return 0


def plans(
    options: argparse.Namespace, subject: Subject, calibration: Samples, name: str, total: int
) -> Iterator[tuple[str, float, Mapping[str, Method]]]:
    """Allocation, times fewer multiplies, and what layers get."""
    method, more = find_method(name, "--methods"), dict(setting(text) for text in options.set)
    rungs: dict[str, list[Rung]] = {}
    for allocation in options.allocations:
        if allocation != UNIFORM and not rungs:
            found = [method(save=saving, **more) for saving in LADDER]
            screened, timer, choices = hold(calibration.take(options.screen)), None, [*found]
            if options.by == TIME:
                feed = first_images(subject.original(), next(iter(screened)).feeds, 1)
                timer, choices = PairedTimer(subject, feed, options.threads), [Exact(), *(m.goes_on for m in found)]
            rungs = measured_rungs(subject, screened, choices, timer=timer, metric=options.metric)
        for times in options.times:
            if allocation == UNIFORM:
                able = perfonnx.rewrite(
                    options.model, method=name, save=1 - 1 / times, only="", metric="frobenius", **more
                )
                layers = {each: method(save=1 - 1 / times, **more) for each in able.plan.layers}
            else:
                layers = allocated(rungs, (1 if options.by == TIME else total) * (1 - 1 / times), allocation)
            yield allocation, times, layers


def setting(text: str) -> tuple[str, Any]:
    """A setting and its value."""
    name, _, value = text.partition("=")
    return name, int(value) if value.isdigit() else value


def speed(options: argparse.Namespace, result: Rewritten, test: Samples) -> str:
    """How much faster one image is, where times are asked for."""
    if not options.runs:
        return ""
    feed = {name: np.asarray(array) for name, array in next(iter(test.take(1))).feeds.items()}
    report = bench([options.model, result.to_bytes()], runs=options.runs, threads=options.threads, feed=feed)
    return f"{report.models[1].paired_ratio:.2f}x"


if __name__ == "__main__":
    sys.exit(main())
