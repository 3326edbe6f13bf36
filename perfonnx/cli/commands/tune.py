"""`perfonnx tune`: the fastest model within a loss."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from perfonnx.cli.command import Command, ExitStatus
from perfonnx.cli.data import add_data, required_samples, samples_from
from perfonnx.cli.flags import (
    add_freeze,
    add_json,
    add_library,
    add_metric,
    add_no_fallback,
    add_provider,
    add_quiet,
    add_shapes,
    add_threads,
    input_shapes,
)
from perfonnx.cli.named_files import Named, Read, ReadModel, Written, WrittenPlan
from perfonnx.cli.output import SearchBar, show, write_json
from perfonnx.cli.space import add_space, space_from
from perfonnx.errors import PerfonnxError
from perfonnx.model.atomic import write_atomically

if TYPE_CHECKING:
    from perfonnx.search import Tuned

_EXAMPLES = """examples:
  perfonnx tune model.onnx fast.onnx --data photos/ --preset imagenet --max-drop 1%
        the fastest model that answers otherwise for one photo in a hundred at most; no labels needed
  perfonnx tune model.onnx fast.onnx --data photos/ --labels classes.csv --max-drop 1%
        with labels: that loses one percentage point of top-1 at most
  perfonnx tune model.onnx fast.onnx --data photos/ --speedup 1.5 --threads 1
  perfonnx tune model.onnx fast.onnx --data data.npz --metric ssim --max-drop 0.02 --plan-out plan.json
  perfonnx tune model.onnx fast.onnx --data photos/ --max-time 3600 --state tune.state
        can be interrupted, and goes on from there when it is run again
  perfonnx tune model.onnx small.onnx --data photos/ --max-drop 3% --target multiplies
        after the first: the networks that were measured are known, so another bound or target is answered at once
  perfonnx tune model.onnx fast.onnx --data photos/ --max-drop 1% --finetune --train-data train/ --augment flip
        a bolder network, which learns back what it lost from a few thousand photos without labels
  perfonnx tune model.onnx fast.onnx --data photos/ --report report.html
        shows what was skipped where, what it costs, and everything that was tried; report.json holds the numbers

bounds: top1, agreement: a share of images, 1%; loss: nats; ssim: 1 - SSIM to the original's output, 0.02; psnr: what
must remain, 35dB; distance: relative L2 distance to the original's output, 5%
"""


class _Report(Written):
    """A page, and its numbers beside it where they get no name of their own."""

    def files(self, name: str, options: argparse.Namespace) -> Iterator[Named]:
        yield from super().files(name, options)
        if not options.report_json:
            yield "--report-json", Path(self).with_suffix(".json")


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=ReadModel, metavar="IN", help="the model; it is not changed")
    parser.add_argument(
        "output", type=Written, metavar="OUT", help="where the new model goes; the original where nothing is gained"
    )
    goal = parser.add_argument_group("what is wanted")
    goal.add_argument(
        "--max-drop", metavar="D", help="largest loss, in the metric's terms (default 1%%, 0.02 for ssim; see below)"
    )
    goal.add_argument(
        "--target",
        default="time",
        metavar="NAME",
        help="what is minimised: time (default), as measured here; multiplies, exactly; or size, the file's bytes",
    )
    goal.add_argument(
        "--speedup", type=float, metavar="S", help="how many times faster, with the smallest loss (within --max-drop)"
    )
    add_metric(goal)
    add_space(parser)
    how = parser.add_argument_group("how it is searched")
    how.add_argument("--search", default="budget", metavar="NAME", help="budget (default) or greedy")
    how.add_argument(
        "--max-time",
        type=float,
        default=900.0,
        metavar="SECONDS",
        help="time to measure, roughly (default 900); the less it is, the fewer choices and images are looked at",
    )
    add_threads(how)
    how.add_argument(
        "--state",
        type=Written,
        metavar="FILE",
        help="keep measurements here (default: in the cache), so that an interrupted search goes on, and another "
        "--max-drop or --target is answered from them; with more --max-time it is searched for",
    )
    how.add_argument(
        "--cache-dir",
        metavar="DIR",
        help="where timings and searches are kept for other searches (default: the user's cache)",
    )
    how.add_argument("--no-cache", action="store_true", help="keep nothing but --state, and measure everything anew")
    add_data(parser)
    _add_training(parser)
    add_shapes(parser)
    add_library(parser)
    add_provider(parser)
    result = parser.add_argument_group("results")
    result.add_argument(
        "--plan-out", type=WrittenPlan, metavar="FILE", help="write the plan, to edit and give to rewrite --plan"
    )
    result.add_argument(
        "--report",
        type=_Report,
        metavar="FILE.html",
        help="write a report to read in a browser, one file that needs no other, and FILE.json beside it",
    )
    result.add_argument(
        "--report-json",
        type=Written,
        metavar="FILE",
        help="write everything that was measured (default: beside --report)",
    )
    add_no_fallback(result)
    add_freeze(result)
    add_quiet(result)
    add_json(result)


def _add_training(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument(
        "--finetune",
        action="store_true",
        help="train the network that is found to do what the original does, without labels: it may lose more before, "
        "and --max-drop after; needs pip install 'perfonnx[train]'",
    )
    group.add_argument(
        "--train-data",
        type=Read,
        metavar="PATH",
        help="what it learns from, read as --data is (default: what of --data is not held back)",
    )
    group.add_argument("--train-samples", type=int, metavar="N", help="use N of these at most, drawn by the seed")
    group.add_argument("--epochs", type=int, metavar="N", help="passes over it (default 3)")
    group.add_argument("--augment", metavar="NAME", help="none (default), flip or crop+flip, as in perfonnx finetune")
    group.add_argument("--device", metavar="NAME", help="cpu (default) or cuda, to train on")


def _finding(options: argparse.Namespace) -> Callable[..., Tuned]:
    """What finds the network: `tune`, or that and training."""
    names = ("epochs", "augment", "device")
    if not options.finetune:
        for name in ("train_data", "train_samples", *names):
            if getattr(options, name) is not None:
                raise PerfonnxError(f"--{name.replace('_', '-')}: has a meaning with --finetune only")
        from perfonnx.search import tune

        return tune
    from perfonnx.torch import Settings
    from perfonnx.torch.tuning import tune_trained

    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    training = None
    if options.train_samples is not None and options.train_data is None:
        raise PerfonnxError("--train-samples is about --train-data; give that too")
    if options.train_data is not None:
        data = {"data": options.train_data, "labels": None, "samples": options.train_samples}
        training = samples_from(argparse.Namespace(**{**vars(options), **data}))
    return partial(tune_trained, training=training, settings=Settings(**{"epochs": 3, **given}))


def _run(options: argparse.Namespace) -> ExitStatus:
    from perfonnx.report import html_report
    from perfonnx.search import TimingCache
    from perfonnx.search.render_tuned import render_tuned

    finding = _finding(options)
    if options.report and not options.report_json:
        options.report_json = str(Path(options.report).with_suffix(".json"))
    cache = TimingCache(Path(options.cache_dir)) if options.cache_dir else TimingCache.default()
    state = options.state or (None if options.no_cache else cache.beside("searches"))
    with SearchBar(options) as step:
        tuned = finding(
            options.model,
            options.output,
            required_samples(options),
            max_drop=options.max_drop,
            target=options.target,
            speedup=options.speedup,
            metric=options.metric,
            space=space_from(options),
            search=options.search,
            max_time=options.max_time,
            threads=options.threads,
            input_shapes=input_shapes(options),
            freeze_weights=options.freeze_weights,
            fallback=not options.no_fallback,
            seed=options.seed,
            state=state,
            pictures=bool(options.report or options.report_json),
            cache=None if options.no_cache else cache,
            progress=step,
        )
    if options.plan_out:
        tuned.save_plan(options.plan_out)
    data = tuned.to_json()
    if options.report_json:
        write_json(options.report_json, data)
    if options.report:
        write_atomically(options.report, html_report(tuned).encode("utf-8", "replace"))  # names may not be Unicode
    if not options.quiet:
        show(options, data, render_tuned(tuned))
    return ExitStatus.OK


COMMAND = Command(
    "tune",
    70,
    "find the fastest model within a loss, by measuring on your data and machine",
    _EXAMPLES,
    _add_flags,
    _run,
)
