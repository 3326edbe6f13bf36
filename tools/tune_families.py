"""Prints what `tune` finds with one family of methods, and with all of them: the loss at several speeds.

    python tools/tune_families.py resnet20.onnx --data cifar10.npz --preset imagenet --max-drop 5% --max-time 300

Exact layers are allowed in every search. The one with all methods has as long as the others together, since it has as
much to look at. A cell is the smallest loss, and guide, of a
network that is at least so fast, on the images that are chosen by.
"""

from __future__ import annotations

import argparse
import sys

from perfonnx.cli.data import add_data, required_samples
from perfonnx.errors import PerfonnxError
from perfonnx.methods import DEFAULT, METHODS
from perfonnx.search import Space, tune
from perfonnx.search.result import Tuned

ALL = "all"
FAMILIES = [DEFAULT, "perforate,sparse", "sublattice,refit", "jaderberg,zhang,svd,cp,tucker,column-sparse"]


def main() -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(description="Compare what tune finds with several sets of methods.")
    parser.add_argument("model", help="the model")
    parser.add_argument(
        "--families", nargs="*", default=FAMILIES, metavar="NAME,...", help="methods beside exact layers"
    )
    parser.add_argument("--speeds", nargs="+", type=float, default=[1.25, 1.5, 2.0, 2.5], metavar="X")
    parser.add_argument("--max-drop", default=None, help="as in perfonnx tune")
    parser.add_argument(
        "--max-time", type=float, default=300.0, help="seconds of a search with some methods (default 300)"
    )
    parser.add_argument("--metric", default=None, help="as in perfonnx tune")
    parser.add_argument("--threads", type=int, default=None)
    add_data(parser)
    options = parser.parse_args()
    try:
        print(" | ".join(["methods", "networks", *(f"{speed:g}x" for speed in options.speeds), "taken, held back"]))
        lossy = sum(family != DEFAULT for family in options.families)
        for family in (*options.families, ALL):
            methods = list(METHODS) if family == ALL else [DEFAULT, *family.split(",")]
            tuned = tune(
                options.model,
                None,
                required_samples(options),
                max_drop=options.max_drop,
                metric=options.metric,
                space=Space(methods=methods),
                max_time=options.max_time * (max(lossy, 1) if family == ALL else 1),
                threads=options.threads,
                seed=options.seed,
            )
            print(" | ".join([family, str(len(tuned.trials)), *cells(tuned, options.speeds), taken(tuned)]), flush=True)
    except PerfonnxError as error:
        print(f"tune_families: {error}", file=sys.stderr)
        return 2
    return 0


def cells(tuned: Tuned, speeds: list[float]) -> list[str]:
    """The least lossy network at each speed."""
    found = []
    for speed in speeds:
        fast = [trial.choosing for trial in tuned.trials if trial.speed.ratio >= speed]
        best = min(fast, key=lambda quality: quality.guide, default=None)
        found.append("-" if best is None else f"{tuned.metric.show(best.drop)} ({best.guide:.4f})")
    return found


def taken(tuned: Tuned) -> str:
    """The network that was taken, on images that took no part in the choice."""
    best = tuned.best
    if best is None or best.held_back is None:
        return "none"
    return f"{best.speed.ratio:.2f}x, {tuned.metric.show(best.held_back.drop)}"


if __name__ == "__main__":
    sys.exit(main())
