"""Prints what repair without training is worth: top-1 of a classifier with all its convolutions perforated.

    python tools/repair_table.py resnet20.onnx --data cifar10.npz --preset imagenet

One line per mask and rate; the columns are skipped positions set to zero, taken from the nearest site, and the latter
with each kind of repair. Calibration and test images are disjoint and drawn by the seed. With `--runs` each cell also
has the measured speed of one image, so that repairs can be compared at equal time.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np

import perfonnx
from perfonnx.cli.data import add_data, samples_from
from perfonnx.data.samples import Samples
from perfonnx.errors import PerfonnxError
from perfonnx.methods.perforate import NO_REPAIR, REPAIRS
from perfonnx.rewriting import Rewritten
from perfonnx.running.bench import bench

MASKS = ("uniform:0.2", "lattice:0.25", "grid-square:0.37", "lattice:0.5", "uniform:0.5")
COLUMNS = ("zero", "nearest", *(kind for kind in REPAIRS if kind != NO_REPAIR))


def main() -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(description="Print top-1 with and without repair.")
    parser.add_argument("model", help="a classifier whose output is [N, classes]")
    parser.add_argument("--masks", nargs="+", default=MASKS, metavar="MASK:RATE", help=f"default: {' '.join(MASKS)}")
    parser.add_argument("--columns", nargs="+", default=COLUMNS, choices=COLUMNS)
    parser.add_argument("--calibration", type=int, default=200, metavar="N", help="images (default 200)")
    parser.add_argument("--test", type=int, default=1000, metavar="N", help="images (default 1000)")
    parser.add_argument("--only", action="append", default=[], metavar="RE", help="layers (default: all)")
    parser.add_argument("--ridge", type=float, default=None, help="strength of regularization")
    parser.add_argument("--runs", type=int, default=0, metavar="N", help="timed runs of each cell (default 0)")
    parser.add_argument("--threads", type=int, default=None, metavar="N", help="of the timed runs (default: all cores)")
    parser.add_argument("-v", "--verbose", action="store_true", help="what was done to each layer")
    add_data(parser)
    options = parser.parse_args()
    try:
        return run(options)
    except PerfonnxError as error:
        print(f"repair_table: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace) -> int:
    """Print the table."""
    samples = samples_from(options)
    if samples is None or samples.labels is None:
        raise PerfonnxError("give labelled images with --data")
    calibration, test = samples.split(options.calibration, options.test, options.seed)
    print(f"dense: {top1(options.model, test):.1%} of {len(test)} images")
    print(" | ".join(["mask, rate asked, real", *options.columns, "seconds of repair"]))
    for name in options.masks:
        mask, _, rate = name.partition(":")
        cells, seconds, real = [], [], 0.0
        for column in options.columns:
            start = time.perf_counter()
            result = rewritten(options, mask, float(rate), column, calibration)
            if column in REPAIRS:
                seconds.append(f"{time.perf_counter() - start:.1f}")
            real = float(np.mean([layer.rate for layer in result.report.layers]))
            cells.append(f"{100 * top1(result.to_bytes(), test):.1f}" + speed(options, result, test))
            if options.verbose:
                for layer in result.report.layers:
                    print(f"  {column}, {layer.name}: {'; '.join(layer.notes)}")
        print(" | ".join([f"{mask} {rate} {real:.2f}", *cells, " ".join(seconds)]), flush=True)
    return 0


def rewritten(options: argparse.Namespace, mask: str, rate: float, column: str, calibration: Samples) -> Rewritten:
    """The model with one column's treatment."""
    repaired = column in REPAIRS
    more = {} if options.ridge is None else {"ridge": options.ridge}
    return perfonnx.rewrite(
        options.model,
        rate=rate,
        mask=mask,
        interpolation="zero" if column == "zero" else "nearest",
        repair=column if repaired else NO_REPAIR,
        samples=calibration if repaired else None,
        only=options.only or [""],
        seed=options.seed,
        **more,
    )


def speed(options: argparse.Namespace, result: Rewritten, test: Samples) -> str:
    """How much faster one image is, where times are asked for."""
    if not options.runs:
        return ""
    feed = next(iter(test.take(1))).feeds
    report = bench([options.model, result.to_bytes()], runs=options.runs, threads=options.threads, feed=feed)
    return f" {report.models[1].paired_ratio:.2f}x"


def top1(model: str | bytes, test: Samples) -> float:
    """Share of images whose largest output is their label."""
    session = perfonnx.session(model)
    right = 0
    for batch in test:
        (scores, *_) = session.run(None, batch.feeds)
        right += int((np.asarray(scores).reshape(len(batch.names), -1).argmax(axis=1) == batch.labels).sum())
    return right / len(test)


if __name__ == "__main__":
    sys.exit(main())
