"""Prints what fine-tuning is worth: top-1 of a classifier before and after, and the speed of what comes out.

    python tools/training_table.py resnet20.onnx perforate:grid:0.5 sparse:propagated:0.2 radius-adaptive::0.5 \
        --data cifar10_train.zip --labels suffix --test cifar10_test.npz --epochs 3

A case is METHOD:MASK:RATE, of all convolutions; for radius-adaptive layers the number is the share of pixels that keep
their ring, and there is no mask. The mask `impact` is renewed in steps of 0.1. Training sees --data alone (its teacher
is the original model, unless --label-weight says otherwise), top-1 is that of --test. Speeds are times of the original
model over those of the result, in onnxruntime, the median of runs by turns.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from repair_table import top1

import perfonnx
from perfonnx.cli.data import add_data, samples_from
from perfonnx.data.inputs import model_inputs
from perfonnx.data.samples import Samples
from perfonnx.errors import PerfonnxError
from perfonnx.impact import rewrite_by_impact
from perfonnx.masks import save_arrays
from perfonnx.methods import METHODS
from perfonnx.model.atomic import write_atomically
from perfonnx.passes import Options
from perfonnx.plan import Plan
from perfonnx.running.bench import bench
from perfonnx.torch.finetuning import finetune_model
from perfonnx.torch.training import PRECISIONS, Settings

IMPACT_STEP = 0.1
IMPACT_SAMPLES = 500


@dataclass
class Row:
    """One case.

    Attributes:
        case: As it was asked for.
        labels: Share of the labels in the loss.
        reduction: Multiplies of the original over those of the result.
        open_share: Mean share of open pixels of radius-adaptive layers; None for others.
        before: Top-1 with the weights that the model came with.
        after: Top-1 after training.
        speeds: By batch size.
        seconds: What training took.
    """

    case: str
    labels: float
    reduction: float
    open_share: float | None
    before: float
    after: float
    speeds: dict[int, float]
    seconds: float


def main() -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(description="Print top-1 before and after fine-tuning.")
    parser.add_argument("model", help="a classifier whose output is [N, classes]")
    parser.add_argument("cases", nargs="+", metavar="METHOD:MASK:RATE")
    parser.add_argument("--test", required=True, metavar="PATH", help="labelled data that training never sees")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=None)
    parser.add_argument("--label-weight", type=float, nargs="+", default=[0.0], help="one run for each (default 0)")
    parser.add_argument("--augment", default="crop+flip")
    parser.add_argument("--precision", choices=PRECISIONS, default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2, help="of the timed runs (default 2)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 128], help="batch sizes that are timed")
    parser.add_argument("--runs", type=int, default=30, help="timed runs; 0: none")
    parser.add_argument("--models", type=Path, metavar="DIR", help="where the results are kept")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here too")
    add_data(parser)
    options = parser.parse_args()
    try:
        return run(options)
    except PerfonnxError as error:
        print(f"training_table: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace) -> int:
    """Print the table."""
    samples = samples_from(options)
    if samples is None:
        raise PerfonnxError("give images with --data")
    test = samples_from(argparse.Namespace(**{**vars(options), **_test_data(options)}))
    if test is None or test.labels is None:
        raise PerfonnxError("give labelled images with --test")
    print(f"dense: {top1(options.model, test):.2%} of {len(test)} images; training: {len(samples)} images")
    sizes = [f"speed at {n}" for n in options.batch]
    print(" | ".join(["case", "labels", "multiplies", "open", "top-1 before", "after", *sizes, "seconds"]), flush=True)
    rows = []
    for case in options.cases:
        for weight in options.label_weight:
            row = measure(options, case, weight, samples, test)
            rows.append(row)
            print(_cells(row), flush=True)
            if options.json is not None:
                write_atomically(options.json, json.dumps([asdict(r) for r in rows], indent=2) + "\n")
    return 0


def _test_data(options: argparse.Namespace) -> dict[str, object]:
    """The flags of `--data` that are others for the test images: all of them, and labels as they come with them."""
    return {"data": options.test, "labels": None, "samples": None}


def _cells(row: Row) -> str:
    share = "" if row.open_share is None else f"{row.open_share:.0%}"
    speeds = [f"{speed:.2f}x" for speed in row.speeds.values()]
    cells = [row.case, f"{row.labels:g}", f"{row.reduction:.2f}x", share, f"{row.before:.2%}", f"{row.after:.2%}"]
    return " | ".join([*cells, *speeds, f"{row.seconds:.0f}"])


def measure(options: argparse.Namespace, case: str, weight: float, samples: Samples, test: Samples) -> Row:
    """Train one case."""
    settings = Settings(
        epochs=options.epochs,
        lr=options.lr,
        label_weight=weight,
        augment=options.augment,
        precision=options.precision,
        device=options.device,
        seed=options.seed,
    )
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        plan, chosen = planned(options, case, samples, Path(folder))
        tuned = finetune_model(
            options.model, None, samples, plan=plan, options=chosen, settings=settings, rounds=options.rounds
        )
        seconds = time.perf_counter() - start
        dense = chosen if chosen is None else chosen.trained()
        before = perfonnx.rewrite(options.model, plan=plan, options=dense)
    if options.models is not None:
        options.models.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[:/\\]+", "-", case) + f"-{weight:g}"
        tuned.result.save(options.models / f"{name}.onnx")
        tuned.result.save_plan(options.models / f"{name}.json")
    report = tuned.result.report
    adaptive = case.startswith("radius-adaptive")
    return Row(
        case,
        weight,
        report.reduction,
        float(np.mean([1 - layer.rate for layer in report.layers])) if adaptive else None,
        top1(before.to_bytes(), test),
        top1(tuned.result.to_bytes(), test),
        speeds(options, tuned.result.to_bytes(), test),
        seconds,
    )


def planned(
    options: argparse.Namespace, case: str, samples: Samples, folder: Path
) -> tuple[Plan | None, Options | None]:
    """What is done in a case: a plan, or options for one."""
    parts = case.split(":")
    try:
        method, mask, number = parts[0], parts[1], float(parts[2])
    except (IndexError, ValueError) as error:
        raise PerfonnxError(f"case {case!r}: give METHOD:MASK:RATE, such as perforate:grid:0.5") from error
    if method == "radius-adaptive":
        return None, Options(method=method, open_share=number, only=[""], seed=options.seed)
    if mask != "impact":
        return None, Options(method=method, rate=number, mask=mask, only=[""], seed=options.seed)
    rates = [*np.arange(IMPACT_STEP, number, IMPACT_STEP).tolist(), number]
    some = samples.shuffled(options.seed).take(IMPACT_SAMPLES)
    found = rewrite_by_impact(options.model, some, rates, only=[""], seed=options.seed)
    save_arrays(folder / "masks.npz", found.masks)
    layers = {name: METHODS[method](number, str(folder / "masks.npz")) for name in found.masks}
    return Plan(layers, seed=options.seed), None


def speeds(options: argparse.Namespace, result: bytes, test: Samples) -> dict[int, float]:
    """How much faster a result is than the original, by batch size, on images of the test data."""
    if not options.runs:
        return {}
    (spec,) = model_inputs(options.model)
    images = np.concatenate([next(iter(batch.feeds.values())) for batch in test.take(max(options.batch))])
    found = {}
    for size in options.batch:
        feed = {spec.name: images[:size]}
        report = bench([options.model, result], runs=options.runs, threads=options.threads, feed=feed)
        found[size] = report.models[1].paired_ratio
    return found


if __name__ == "__main__":
    sys.exit(main())
