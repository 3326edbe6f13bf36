"""Error against theoretical speedup of one layer, for each mask (Figurnov et al., arXiv 1504.08362, figure 3).

One convolution is perforated at several rates with several masks. For each, the speedup that the layer's multiplies
promise stands beside what the classifier loses on images that the impacts were not measured on: mean log-loss and
accuracy, both as a difference to the original. Random masks are drawn several times and averaged.

    python tools/impact_curve.py resnet20.onnx --layer '^conv1$' --data cifar.npz --input-shape input:50,3,32,32
    python tools/impact_curve.py squeezenet.onnx --layer fire2/expand3x3 --data images.npz --json curve.json

The data are what perfonnx check takes, with labels. `impact-iterative` measures impacts anew at each rate, on the
network as it is perforated by the rate before.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import perfonnx
from perfonnx.cli.data import add_data, samples_from
from perfonnx.cli.flags import add_shapes
from perfonnx.data.inputs import Feed
from perfonnx.errors import PerfonnxError
from perfonnx.gradients import Network, log_loss
from perfonnx.impact import impact_maps

MASKS = ("uniform", "grid", "pooling-structure", "impact", "impact-iterative")


@dataclass(frozen=True)
class Point:
    """One mask at one rate: the layer's speedup by multiplies, and what the network loses, averaged over draws."""

    mask: str
    rate: float
    speedup: float
    loss_increase: float
    accuracy_drop: float


@dataclass(frozen=True)
class Batches:
    """Batches of images with their labels, in memory; gone through as often as needed."""

    feeds: list[Feed]
    labels: np.ndarray

    def __iter__(self) -> Iterator[Feed]:
        return iter(self.feeds)


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--layer", required=True, help="regular expression that finds one layer")
    parser.add_argument("--impact-images", type=int, default=100, help="of them, how many the impacts are measured on")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.25, 0.5, 2 / 3, 0.75, 0.8])
    parser.add_argument("--masks", nargs="+", default=list(MASKS), choices=MASKS)
    parser.add_argument("--draws", type=int, default=3, help="seeds that random masks are averaged over")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    add_data(parser, note="--samples counts those for the impacts too.")
    add_shapes(parser)
    options = parser.parse_args()
    try:
        points, dense = measure(options)
    except PerfonnxError as error:
        print(f"impact_curve: {error}", file=sys.stderr)
        return 2
    show(points, f"{options.model.name} {options.layer}: loss {dense[0]:.4f}, accuracy {dense[1]:.1%} as it comes")
    if options.json:
        data = {"loss": dense[0], "accuracy": dense[1], "points": [asdict(point) for point in points]}
        options.json.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    return 0


def measure(options: argparse.Namespace) -> tuple[list[Point], tuple[float, float]]:
    """All points, and loss and accuracy of the original network."""
    few, rest = load(options)
    judge = Judge(options.model)
    dense = judge(str(options.model), rest)
    maps = impact_maps(options.model, few, labels=few.labels)
    points = []
    for mask in options.masks:
        current = maps
        for rate in sorted(options.rates):
            results = []
            for seed in range(options.draws if not mask.startswith("impact") else 1):
                rewritten = perfonnx.rewrite(
                    options.model,
                    rate=rate,
                    mask="impact" if mask == "impact-iterative" else mask,
                    only=[options.layer],
                    impact_maps=current,
                    seed=seed,
                )
                if len(rewritten.report.layers) != 1:
                    break  # such a mask is not for this layer
                layer = rewritten.report.layers[0]
                loss, accuracy = judge(rewritten.proto, rest)
                results.append((layer.multiplies[0] / layer.multiplies[1], loss - dense[0], dense[1] - accuracy))
            if not results:
                continue
            points.append(Point(mask, rate, *(float(v) for v in np.mean(results, axis=0))))
            if mask == "impact-iterative":
                current = impact_maps(rewritten.proto, few, labels=few.labels)
    return points, dense


def load(options: argparse.Namespace) -> tuple[Batches, Batches]:
    """The images for the impacts, and those to judge on."""
    samples = samples_from(options, batch=1)
    if samples is None or samples.labels is None:
        raise PerfonnxError("give labelled images with --data")
    batches = list(samples.feeds())
    size = len(samples) // len(batches)
    cut = max(1, options.impact_images // size)
    if cut >= len(batches):
        raise PerfonnxError(f"{len(samples)} images: not more than --impact-images {options.impact_images}")
    labels = samples.labels
    return Batches(batches[:cut], labels[: cut * size]), Batches(batches[cut:], labels[cut * size :])


class Judge:
    """Mean log-loss and accuracy of a model that has the outputs of the original."""

    def __init__(self, original: Path) -> None:
        network = Network(original)
        self.output = network.output_names[0]
        self.is_probability = self.output not in log_loss.bind(network).tensors

    def __call__(self, model: Any, samples: Batches) -> tuple[float, float]:
        """Runs all samples."""
        session = perfonnx.session(model)
        parts = [session.run([self.output], feed)[0] for feed in samples]
        scores = np.concatenate([part.reshape(len(part), -1) for part in parts])
        return self.judge(scores.astype(np.float64), samples.labels)

    def judge(self, scores: np.ndarray, labels: Sequence[int] | np.ndarray) -> tuple[float, float]:
        """From scores [n, classes]."""
        if self.is_probability:
            log_p = np.log(np.maximum(scores, 1e-30))
        else:
            shifted = scores - scores.max(axis=1, keepdims=True)
            log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return float(-log_p[np.arange(len(scores)), labels].mean()), float((scores.argmax(axis=1) == labels).mean())


def show(points: Sequence[Point], title: str) -> None:
    """One row for each mask and rate."""
    table = Table(title=title, title_justify="left")
    for column in ("mask", "rate asked", "speedup by multiplies", "loss increase", "accuracy drop"):
        table.add_column(column, justify="left" if column == "mask" else "right")
    for p in points:
        table.add_row(
            p.mask, f"{p.rate:.3f}", f"{p.speedup:.2f}x", f"{p.loss_increase:+.4f}", f"{100 * p.accuracy_drop:+.2f} %"
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    sys.exit(main())
