"""The command line: sub-commands and their flags; the work is done elsewhere.

What a command needs is imported when it runs: parsing the line, --help and --version wait for nothing.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from perfonnx.cli.data import add_data_arguments
from perfonnx.errors import PerfonnxError, PerfonnxWarning

if TYPE_CHECKING:
    from rich.console import Console

    from perfonnx.comparing.check_report import CheckReport

OK, CHECK_FAILED, BAD_INPUT, NO_OUTPUT = 0, 1, 2, 3

_MAIN_EXAMPLES = """examples:
  perfonnx inspect model.onnx
  perfonnx rewrite model.onnx fast.onnx --rate 0.5
  perfonnx check model.onnx fast.onnx --data images/ --samples 100
  perfonnx bench model.onnx fast.onnx
  perfonnx tune model.onnx fast.onnx --data photos/ --max-drop 1%

exit status: 0 done, 1 a check failed, 2 bad usage or input, 3 the output could not be written
"""

_INSPECT_EXAMPLES = """examples:
  perfonnx inspect model.onnx
  perfonnx inspect model.onnx --input-shape image:1,3,480,640
  perfonnx inspect model.onnx --json | jq '.convs[].name'
"""

_REWRITE_EXAMPLES = """examples:
  perfonnx rewrite model.onnx fast.onnx
        careful: perforates the layers that carry 1 % of the multiplies or more and gain time, at rate 0.25
  perfonnx rewrite model.onnx fast.onnx --rate 0.5 --skip '^conv1$' --check 4
  perfonnx rewrite model.onnx fast.onnx --method sparse --mask masks.npz
  perfonnx rewrite model.onnx fast.onnx --input-shape image:N,3,480,640
  perfonnx rewrite model.onnx fast.onnx --rate 0.5 --mask lattice --repair predictor --data photos/ --samples 200
  perfonnx rewrite model.onnx fast.onnx --method radius-adaptive --open-share 0.5 --data photos/ --samples 200
  perfonnx rewrite model.onnx --dry-run --save-plan plan.json
  perfonnx rewrite model.onnx fast.onnx --plan plan.json
"""

_IMPACT_EXAMPLES = """examples:
  perfonnx impact model.onnx maps.npz --data photos/ --samples 500
  perfonnx rewrite model.onnx fast.onnx --rate 0.5 --mask impact --impact-maps maps.npz
  perfonnx impact fast.onnx more.npz --data photos/ --samples 500
        of the network as it is perforated, to go on from with the original model and a higher rate

Labels come with the data (see check); without them the model's own choice is the label.
"""

_ALPHAS_EXAMPLES = """examples:
  perfonnx alphas fast.onnx --data photos/ --samples 200
  perfonnx alphas fast.onnx --data photos/ --images alphas.png
        maps of alpha of the first photos: a line per photo, a column per layer, white where the 3x3 ring is computed
"""

_CHECK_EXAMPLES = """examples:
  perfonnx check model.onnx fast.onnx
        random inputs: shows that both run and how far apart they are, says nothing of accuracy
  perfonnx check model.onnx fast.onnx --data photos/ --preset imagenet --samples 200 --max-drop 1%
        judges by the metric that suits the model, as perfonnx tune does (see its --help)
  perfonnx check model.onnx fast.onnx --data photos/ --preset imagenet --held-back
        what perfonnx tune found with --data photos/ --preset imagenet, on the images that it kept out of its choice
  perfonnx check model.onnx same.onnx --tolerance 1e-4
"""

_BENCH_EXAMPLES = """examples:
  perfonnx bench model.onnx fast.onnx
  perfonnx bench model.onnx fast.onnx faster.onnx --threads 1 --runs 50
  perfonnx bench model.onnx fast.onnx --per-layer
  perfonnx bench model.onnx fast.onnx --memory --json
"""


_TUNE_EXAMPLES = """examples:
  perfonnx tune model.onnx fast.onnx --data photos/ --preset imagenet --max-drop 1%
        the fastest model that answers otherwise for one photo in a hundred at most; no labels needed
  perfonnx tune model.onnx fast.onnx --data photos/ --labels classes.csv --max-drop 1%
        with labels: that loses one percentage point of top-1 at most
  perfonnx tune model.onnx fast.onnx --data photos/ --speedup 1.5 --threads 1
  perfonnx tune model.onnx fast.onnx --data data.npz --metric ssim --max-drop 0.02 --plan-out plan.json
  perfonnx tune model.onnx fast.onnx --data photos/ --max-time 3600 --state tune.state
        can be interrupted, and goes on from there when it is run again
  perfonnx tune model.onnx fast.onnx --data photos/ --report report.html
        shows what was skipped where, what it costs, and everything that was tried; report.json holds the numbers

bounds: top1, agreement: a share of images, 1%; loss: nats; ssim: 1 - SSIM to the original's output, 0.02; psnr: what
must remain, 35dB; distance: relative L2 distance to the original's output, 5%
"""

_SENSITIVITY_EXAMPLES = """examples:
  perfonnx sensitivity model.onnx --data photos/ --preset imagenet --samples 100
  perfonnx sensitivity model.onnx --data data.npz --rates .25,.5 --masks lattice,uniform --repair bias
"""


_FINETUNE_EXAMPLES = """examples:
  perfonnx finetune model.onnx fast.onnx --plan plan.json --data train.zip --epochs 10
        the rewritten network learns from the original one; no labels needed
  perfonnx finetune model.onnx fast.onnx --rate 0.5 --data train/ --preset imagenet --augment crop+flip --batch 32
  perfonnx finetune model.onnx fast.onnx --speedup 1.5 --rounds 3 --data train/ --checkpoint training --resume
        in three rounds of higher rates; can be interrupted, and goes on from there when it is run again
  perfonnx finetune model.onnx fast.onnx --plan plan.json --data train/ --labels folders --label-weight 0.5
  perfonnx finetune model.onnx fast.onnx --method radius-adaptive --open-share 0.4 --data train/ --device cuda

Repairs in a plan are left out: training does their work. Sparse layers whose mask is propagated train with masks that
are drawn again and again, all from one random map; other masks stay. --precision bfloat16 is faster on machines that
have instructions for it.
"""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {_line(message)} (see {self.prog} --help)\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        if message and file is not None:  # argparse itself says nothing where it cannot write
            file.write(message)


class _Version(argparse.Action):
    """Prints the version of the installed package; to look it up takes longer than all the parsing."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"perfonnx {version('perfonnx')}")
        parser.exit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()  # here, where it can still be said that it failed
    except BrokenPipeError:  # the reader of our output has gone, as in `perfonnx inspect m.onnx | head`
        _drop_output()
        return OK
    except OSError as error:
        if error.errno not in _NO_OUTPUT:
            raise
        _drop_output()
        print(f"perfonnx: the output cannot be written: {error.strerror}", file=sys.stderr)
        return NO_OUTPUT


_NO_OUTPUT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _drop_output() -> None:
    """What could not be written is not tried again when the interpreter ends."""
    with suppress(OSError, ValueError):  # ValueError: an output that is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    try:
        if options.command != "lib":
            from perfonnx.cli.named_files import check_files

            check_files(options)
        with _libraries(options), _notes():
            return int(options.run(options))
    except PerfonnxError as error:
        print(f"perfonnx: {_line(str(error))}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("perfonnx: interrupted", file=sys.stderr)
        return 130


@contextmanager
def _notes() -> Iterator[None]:
    """Context in which our own warnings are a line of stderr."""
    with warnings.catch_warnings():
        other = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
            if issubclass(category, PerfonnxWarning):
                print(f"perfonnx: {_line(str(message))}", file=sys.stderr)
            else:
                other(message, category, *where)

        warnings.simplefilter("always", PerfonnxWarning)
        warnings.showwarning = show  # type: ignore[assignment]
        yield


def _libraries(options: argparse.Namespace) -> AbstractContextManager[None]:
    """Context in which sessions know the libraries of --library."""
    if not getattr(options, "library", None):
        return nullcontext()
    from perfonnx.runtime import with_libraries

    return with_libraries(options.library)


def _line(message: str) -> str:
    """As one line, whatever names are in it."""
    return "\\n".join(message.splitlines())


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="perfonnx",
        description="Rewrite the convolutions of ONNX models so that most of their positions are never computed.",
        epilog=_MAIN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show program's version number and exit")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")
    _add_inspect(commands)
    _add_rewrite(commands)
    _add_impact(commands)
    _add_alphas(commands)
    _add_check(commands)
    _add_bench(commands)
    _add_tune(commands)
    _add_finetune(commands)
    _add_sensitivity(commands)
    lib = _add(commands, "lib", "print the path of the custom-operator library", "example:\n  perfonnx lib\n")
    lib.set_defaults(run=_lib)
    return parser


def _add(commands: Any, name: str, summary: str, examples: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def _add_shapes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input-shape",
        action="append",
        default=[],
        metavar="NAME:D,D,...",
        help="sizes of an input whose dimensions are symbolic, such as image:1,3,224,224; a name such as N in place "
        "of a number keeps that dimension symbolic",
    )


def _add_freeze(parser: Any) -> None:
    parser.add_argument(
        "--freeze-weights", action="store_true", help="make weights constant that are also listed as graph inputs"
    )


def _add_library(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--library",
        action="append",
        default=[],
        metavar="FILE",
        help="a shared library of other custom operators that the model uses; repeatable",
    )


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


# --- inspect ---------------------------------------------------------------------------------------------------------


def _add_inspect(commands: Any) -> None:
    parser = _add(
        commands, "inspect", "list a model's convolutions, their cost, and which can be rewritten", _INSPECT_EXAMPLES
    )
    parser.add_argument("model", metavar="MODEL")
    _add_freeze(parser)
    _add_shapes(parser)
    _add_library(parser)
    _add_json(parser)
    parser.set_defaults(run=_inspect)


def _inspect(options: argparse.Namespace) -> int:
    from perfonnx.data.inputs import parse_input_shapes
    from perfonnx.inspection import inspect
    from perfonnx.render import render_inspection

    result = inspect(
        options.model,
        input_shapes=parse_input_shapes(options.input_shape),
        freeze_weights=options.freeze_weights,
    )
    _show(options, result.to_json(), render_inspection(result))
    return OK


# --- rewrite ---------------------------------------------------------------------------------------------------------


def _add_rewrite(commands: Any) -> None:
    parser = _add(commands, "rewrite", "rewrite a model's convolutions", _REWRITE_EXAMPLES)
    parser.add_argument("model", metavar="IN", help="the model to rewrite; it is not changed")
    parser.add_argument("output", metavar="OUT", nargs="?", help="where the new model goes")
    what = _add_choice(parser)
    what.add_argument(
        "--open-share",
        type=float,
        default=None,
        metavar="P",
        help="share of pixels where radius-adaptive layers compute their 3x3 ring (default 1); below 1 gates are "
        "fitted by least squares on --data, without training",
    )
    what.add_argument(
        "--fill",
        default=None,
        metavar="KIND",
        help="what masked positions hold: zero (default), or before-normalization, for layers trained with masks in "
        "front of BatchNormalization; sparse only",
    )
    what.add_argument(
        "--repair",
        default=None,
        metavar="KIND",
        help="correct perforated layers by least squares on --data, without training: none (default), bias (free), "
        "predictor (also a 1x1 convolution beside each layer), interpolation (also learned weights) or full (all)",
    )
    add_data_arguments(parser, seed=False)
    model = parser.add_argument_group("the model")
    _add_shapes(model)  # type: ignore[arg-type]
    _add_library(model)  # type: ignore[arg-type]
    _add_freeze(model)
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
    after = parser.add_argument_group("afterwards")
    after.add_argument(
        "--check", type=int, default=0, metavar="N", help="run both models on N random inputs and compare them"
    )
    after.add_argument("--dry-run", action="store_true", help="report what would be done, write nothing but the plan")
    after.add_argument("-v", "--verbose", action="store_true", help="list every layer that is left alone")
    after.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    _add_json(after)  # type: ignore[arg-type]
    parser.set_defaults(run=_rewrite)


def _add_choice(parser: argparse.ArgumentParser) -> Any:
    """What is done with which layers; `_chosen` reads it. Returns the group of the former."""
    what = parser.add_argument_group("what is done")
    what.add_argument("--method", default=None, help="perforate (default), sparse or radius-adaptive")
    what.add_argument(
        "--rate", type=float, default=None, metavar="R", help="fraction of positions to skip (default 0.25)"
    )
    what.add_argument(
        "--mask",
        default=None,
        metavar="NAME|FILE",
        help="uniform, grid, grid-square, lattice, stripes-rows, stripes-columns, pooling-structure, propagated, "
        "impact, or a .npy file (one mask) or .npz file (one mask per layer name); default: pooling-structure where a "
        "pool follows, else grid; propagated for sparse",
    )
    what.add_argument("--impact-maps", metavar="FILE", help="maps that perfonnx impact wrote, for the mask impact")
    what.add_argument(
        "--interpolation", default=None, metavar="NAME", help="nearest (default), zero or barycentric; perforate only"
    )
    what.add_argument(
        "--center-gain", type=float, default=None, metavar="G", help="0 (default) or 1; radius-adaptive only"
    )
    what.add_argument("--seed", type=int, default=None, metavar="N", help="seed of random choices (default 0)")
    which = parser.add_argument_group("which layers")
    which.add_argument(
        "--only", action="append", default=[], metavar="RE", help="layers whose name this finds; repeatable"
    )
    which.add_argument("--skip", action="append", default=[], metavar="RE", help="not these layers; repeatable")
    which.add_argument("--plan", metavar="FILE", help="do what this JSON plan says, instead of the options above")
    which.add_argument("--save-plan", metavar="FILE", help="write what was done as a plan, to edit and use again")
    return what


_NOT_FOR = {
    "perforate": ("center_gain", "open_share", "fill"),
    "sparse": ("interpolation", "center_gain", "open_share"),
    "radius-adaptive": ("rate", "mask", "interpolation", "fill"),
}
"""Choices that a method does not read, by method."""


def _rewrite(options: argparse.Namespace) -> int:
    from perfonnx.cli.data import samples_from
    from perfonnx.comparing.check_report import render_check
    from perfonnx.data.inputs import parse_input_shapes
    from perfonnx.plan import NO_REPAIR
    from perfonnx.render import render_report
    from perfonnx.rewriting import rewrite

    if not options.output and not options.dry_run:
        raise PerfonnxError("rewrite needs OUT, where the new model goes, or --dry-run")
    if options.check < 0:
        raise PerfonnxError(f"--check {options.check}: give the number of inputs to compare on, 1 or more")
    chosen = _chosen(options)
    fitted = options.repair not in (None, NO_REPAIR) or options.open_share not in (None, 1)
    if options.data is not None and not options.plan and not fitted:
        raise PerfonnxError("--data is for --repair bias, predictor or full, or for --open-share; add one of them")
    samples = samples_from(options, options.model)
    console = _stderr(options)
    with console.status("reading") as status:
        result = rewrite(
            options.model,
            None if options.dry_run else options.output,
            options=chosen,
            plan=options.plan,
            input_shapes=parse_input_shapes(options.input_shape),
            fallback=not options.no_fallback,
            layout=options.layout,
            freeze_weights=options.freeze_weights,
            samples=samples,
            impact_maps=options.impact_maps,
            progress=status.update,
        )
    if options.save_plan:
        result.save_plan(options.save_plan)
    data = result.report.to_json()
    if not options.quiet and not options.json:
        _show(options, data, render_report(result.report, verbose=options.verbose))
        _say_what_was_not_measured(options, bool(result.report.layers))
    report = None
    if options.check:
        target = result.to_bytes() if options.dry_run else options.output
        report = _check_random(options, target)
        data["check"] = report.to_json()
    if options.json and not options.quiet:
        _show(options, data, None)
    elif report is not None and not options.quiet:
        _show(options, None, render_check(report))
    return _status(report)


def _check_random(options: argparse.Namespace, target: Any) -> CheckReport:
    """The rewritten model against the model on random inputs."""
    from perfonnx.comparing.check import compare
    from perfonnx.data.feeds import random_feeds
    from perfonnx.data.inputs import merged_inputs, parse_input_shapes
    from perfonnx.running.opened import open_model

    first, second = (open_model(model) for model in (options.model, target))
    shapes = parse_input_shapes(options.input_shape)
    specs = merged_inputs([first.inputs, second.inputs])
    source = random_feeds(specs, n=options.check, seed=options.seed or 0, shapes=shapes)
    with _progress(options, "comparing") as step:
        return compare(first, second, source, fallback=not options.no_fallback, progress=step)


_CHOICES = ("method", "rate", "mask", "interpolation", "center_gain", "repair", "open_share", "fill", "seed")
"""Choices of a command, as `perfonnx.Options` has them; the seed comes last."""


def _chosen(options: argparse.Namespace, *, seed: bool = True) -> Any:
    """The choices of `_add_choice`, None where there is a plan; `seed`: a plan has its own."""
    from perfonnx.passes import Options

    given = {name: getattr(options, name) for name in _CHOICES if getattr(options, name, None) is not None}
    if options.plan and not seed:
        given.pop("seed", None)
    if options.plan and (given or options.only or options.skip):
        names = [*given, *(n for n in ("only", "skip") if getattr(options, n))]
        raise PerfonnxError(f"--plan says everything; it does not go with --{names[0].replace('_', '-')}")
    for name in _NOT_FOR.get(given.get("method", "perforate"), ()):
        if name in given:
            flag = f"--{name.replace('_', '-')} {given[name]}"
            raise PerfonnxError(
                f"{flag}: has no meaning with --method {given.get('method', 'perforate')}; leave it out"
            )
    if given.get("seed", 0) < 0:
        raise PerfonnxError(f"--seed {given['seed']}: give a whole number from 0 up")
    return None if options.plan else Options(only=options.only, skip=options.skip, **given)


def _say_what_was_not_measured(options: argparse.Namespace, anything: bool) -> None:
    if not anything:
        print("Nothing was rewritten; the output is the model as it came.")
        return
    output = options.output or "OUT"
    print(
        "Accuracy was not measured. To measure it on your data:\n"
        f"  perfonnx check {options.model} {output} --data DIR_OR_NPZ\n"
        f"To measure the speed:\n  perfonnx bench {options.model} {output}"
    )


_ALL_SAMPLES = "All samples are used, in their order, unless --samples draws some."


# --- impact ----------------------------------------------------------------------------------------------------------


def _add_impact(commands: Any) -> None:
    parser = _add(
        commands, "impact", "measure how much each output position matters to a classifier's loss", _IMPACT_EXAMPLES
    )
    parser.add_argument("model", metavar="MODEL", help="the original, or a rewritten model with its function bodies")
    parser.add_argument("output", metavar="OUT", help="where the maps go, a .npz file with one per layer")
    add_data_arguments(parser, note=_ALL_SAMPLES)
    _add_shapes(parser)
    _add_library(parser)
    parser.add_argument("--threads", type=int, metavar="N", help="intra-op threads (default: all cores)")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    parser.set_defaults(run=_impact)


def _impact(options: argparse.Namespace) -> int:
    from perfonnx import impact

    if Path(options.output).suffix != ".npz":
        raise PerfonnxError(f"{options.output}: maps of impacts are written as .npz; give a name that ends so")
    samples = _required_samples(options, batch=1)
    with _progress(options, "measuring") as step:
        maps = impact.impact_maps(
            options.model, samples, threads=options.threads, progress=lambda done: step(done, len(samples))
        )
    impact.save_impact_maps(options.output, maps)
    if not options.quiet:
        judged = "given labels" if samples.labels is not None else "the model's own choices as labels"
        print(f"{options.output}: impacts of {len(maps)} layers, from {len(samples)} samples and {judged}")
    return OK


# --- alphas ----------------------------------------------------------------------------------------------------------


def _add_alphas(commands: Any) -> None:
    parser = _add(
        commands, "alphas", "show how much of their maps radius-adaptive layers leave closed", _ALPHAS_EXAMPLES
    )
    parser.add_argument("model", metavar="MODEL", help="a model with radius-adaptive layers")
    parser.add_argument("--images", metavar="FILE", help="write maps of alpha of the first 4 samples, a .png file")
    add_data_arguments(parser, note=_ALL_SAMPLES)
    _add_shapes(parser)
    _add_library(parser)
    parser.add_argument("--threads", type=int, metavar="N", help="intra-op threads (default: all cores)")
    _add_json(parser)
    parser.set_defaults(run=_alphas, quiet=False)


def _alphas(options: argparse.Namespace) -> int:
    from perfonnx.alphas import alphas, render_alphas, save_picture

    if options.images is not None and Path(options.images).suffix != ".png":
        raise PerfonnxError(f"{options.images}: maps of alpha are written as .png; give a name that ends so")
    samples = _required_samples(options, batch=1)
    with _progress(options, "measuring") as step:
        result = alphas(
            options.model,
            samples.feeds(),
            keep=4 if options.images else 0,
            threads=options.threads,
            progress=lambda done: step(done, len(samples)),
        )
    if options.images:
        save_picture(result, options.images)
    _show(options, result.to_json(), render_alphas(result))
    return OK


# --- check -----------------------------------------------------------------------------------------------------------


def _add_check(commands: Any) -> None:
    parser = _add(commands, "check", "run two models on the same inputs and compare their outputs", _CHECK_EXAMPLES)
    parser.add_argument("a", metavar="A", help="the reference")
    parser.add_argument("b", metavar="B", help="the model to judge")
    parser.add_argument("--tolerance", type=float, metavar="T", help="exit 1 if an output's relative error is above T")
    parser.add_argument(
        "--max-drop", metavar="D", help="exit 1 if more than this is lost, in the metric's terms, as in perfonnx tune"
    )
    _add_metric(parser)
    parser.add_argument(
        "--held-back",
        action="store_true",
        help="judge only the samples that perfonnx tune, given the same flags of data, kept out of its choice",
    )
    parser.add_argument("--no-fallback", action="store_true", help="do not compare kernels with function bodies")
    add_data_arguments(parser, note="Without --data, inputs are random, and --samples says how many (default 4).")
    _add_shapes(parser)
    _add_library(parser)
    parser.add_argument("--threads", type=int, metavar="N", help="intra-op threads (default: all cores)")
    _add_json(parser)
    parser.set_defaults(run=_check, quiet=False)


def _check(options: argparse.Namespace) -> int:
    from perfonnx.comparing.check_report import render_check

    report = _compare(options, options.a, options.b)
    _show(options, report.to_json(), render_check(report))
    return _status(report)


def _status(report: CheckReport | None) -> int:
    failures = () if report is None else report.failures
    for failure in failures:
        print(f"perfonnx: {failure}", file=sys.stderr)
    return CHECK_FAILED if failures else OK


def _compare(options: argparse.Namespace, a: Any, b: Any) -> CheckReport:
    from perfonnx.cli.data import samples_from
    from perfonnx.comparing.check import compare
    from perfonnx.data.feeds import random_feeds
    from perfonnx.data.inputs import merged_inputs, parse_input_shapes
    from perfonnx.running.opened import open_model

    first, second = (open_model(model, threads=options.threads) for model in (a, b))
    specs = merged_inputs([first.inputs, second.inputs])
    source: Any
    if options.data is None:
        if options.held_back:
            raise PerfonnxError("--held-back is about data; give --data")
        count, options.samples = options.samples, None  # of random inputs
        samples_from(options, specs)
        shapes = parse_input_shapes(options.input_shape)
        source = random_feeds(specs, n=4 if count is None else count, seed=options.seed, shapes=shapes)
    else:
        source = samples_from(options, specs, batch=1)
        if options.held_back:
            from perfonnx.search.tune import divided

            _, source = divided(source, options.seed)
    with _progress(options, "comparing") as step:
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


# --- bench -----------------------------------------------------------------------------------------------------------


def _add_bench(commands: Any) -> None:
    parser = _add(commands, "bench", "time models in turn and print ratios to the first", _BENCH_EXAMPLES)
    parser.add_argument("models", metavar="MODEL", nargs="+", help="the first one is what the others are compared with")
    parser.add_argument("--threads", type=int, metavar="N", help="intra-op threads (default: all cores)")
    parser.add_argument("--runs", type=int, default=20, metavar="N", help="timed runs of each model (default 20)")
    parser.add_argument(
        "--per-layer", action="store_true", help="also the time of each layer, from onnxruntime's profiler"
    )
    parser.add_argument(
        "--memory", action="store_true", help="also the peak of what the activations need in memory (Linux)"
    )
    add_data_arguments(
        parser,
        note="The first batch is what models are timed on; without --data, random numbers. Radius-adaptive layers are "
        "as fast as the data lets them be.",
    )
    _add_shapes(parser)
    _add_library(parser)
    _add_json(parser)
    parser.set_defaults(run=_bench, quiet=False)


def _bench(options: argparse.Namespace) -> int:
    from perfonnx.cli.data import samples_from
    from perfonnx.data.inputs import merged_inputs, model_inputs, parse_input_shapes
    from perfonnx.running import bench

    inputs = merged_inputs([model_inputs(model) for model in options.models])
    samples = samples_from(options, inputs, batch=1)
    with _progress(options, "timing") as step:
        report = bench.bench(
            options.models,
            threads=options.threads,
            runs=options.runs,
            feed=None if samples is None else next(iter(samples)).feeds,
            seed=options.seed,
            shapes=parse_input_shapes(options.input_shape),
            per_layer=options.per_layer,
            memory=options.memory,
            progress=step,
        )
    _show(options, report.to_json(), bench.render_bench(report))
    return OK


# --- tune ------------------------------------------------------------------------------------------------------------


def _add_tune(commands: Any) -> None:
    parser = _add(
        commands, "tune", "find the fastest model within a loss, by measuring on your data and machine", _TUNE_EXAMPLES
    )
    parser.add_argument("model", metavar="IN", help="the model; it is not changed")
    parser.add_argument("output", metavar="OUT", help="where the new model goes; the original where nothing is gained")
    goal = parser.add_argument_group("what is wanted")
    goal.add_argument(
        "--max-drop", metavar="D", help="largest loss, in the metric's terms (default 1%%, 0.02 for ssim; see below)"
    )
    goal.add_argument(
        "--speedup", type=float, metavar="S", help="how many times faster, with the smallest loss (within --max-drop)"
    )
    _add_metric(goal)
    _add_choices(parser)
    how = parser.add_argument_group("how it is searched")
    how.add_argument("--search", default="budget", metavar="NAME", help="budget (default) or greedy")
    how.add_argument(
        "--max-time",
        type=float,
        default=900.0,
        metavar="SECONDS",
        help="time to measure, roughly (default 900); the less it is, the fewer choices and images are looked at",
    )
    how.add_argument("--threads", type=int, metavar="N", help="intra-op threads (default: all cores)")
    how.add_argument("--state", metavar="FILE", help="keep measurements here; an interrupted search then goes on")
    how.add_argument(
        "--cache-dir", metavar="DIR", help="where timings are kept between searches (default: the user's cache)"
    )
    how.add_argument("--no-cache", action="store_true", help="time everything anew")
    add_data_arguments(parser)
    _add_shapes(parser)
    _add_library(parser)
    result = parser.add_argument_group("results")
    result.add_argument("--plan-out", metavar="FILE", help="write the plan, to edit and give to rewrite --plan")
    result.add_argument(
        "--report",
        metavar="FILE.html",
        help="write a report to read in a browser, one file that needs no other, and FILE.json beside it",
    )
    result.add_argument(
        "--report-json", metavar="FILE", help="write everything that was measured (default: beside --report)"
    )
    result.add_argument(
        "--no-fallback", action="store_true", help="leave out the function bodies, as in perfonnx rewrite"
    )
    _add_freeze(result)
    result.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    _add_json(result)  # type: ignore[arg-type]
    parser.set_defaults(run=_tune)


def _add_metric(parser: Any) -> None:
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="top1, agreement, loss, ssim, psnr or distance (default: by the model's output and whether there are "
        "labels)",
    )


def _add_choices(parser: argparse.ArgumentParser) -> None:
    choices = parser.add_argument_group("what is tried in each layer")
    choices.add_argument(
        "--masks",
        metavar="NAME,...",
        help="mask names or files (default lattice,uniform,pooling-structure; impact, for classifiers, measures what "
        "it needs on the data)",
    )
    choices.add_argument("--rates", metavar="R,...", help="fractions of positions to skip (default .25,.5,.75)")
    choices.add_argument("--interpolations", metavar="NAME,...", help="nearest (default), zero, barycentric")
    choices.add_argument("--repair", metavar="NAME,...", help="none, bias, predictor, full (default bias,predictor)")


def _space(options: argparse.Namespace) -> Any:
    from perfonnx.search import Space

    given: dict[str, Any] = {}
    for flag, name in (("masks", "masks"), ("interpolations", "interpolations"), ("repair", "repairs")):
        if getattr(options, flag) is not None:
            given[name] = tuple(part.strip() for part in getattr(options, flag).split(",") if part.strip())
    if options.rates is not None:
        try:
            given["rates"] = tuple(float(part) for part in options.rates.split(",") if part.strip())
        except ValueError as error:
            raise PerfonnxError(f"--rates {options.rates}: give numbers such as .25,.5,.75") from error
    return Space(**given)


def _required_samples(options: argparse.Namespace, *, batch: int | None = None) -> Any:
    """What the flags of data ask for; `batch`: samples at a time where the model leaves it open."""
    from perfonnx.cli.data import samples_from

    samples = samples_from(options, options.model, batch=batch)
    if samples is None:
        raise PerfonnxError(f"{options.command} measures on your data: add --data with a folder of images or a file")
    return samples


def _tune(options: argparse.Namespace) -> int:
    from perfonnx.data.inputs import parse_input_shapes
    from perfonnx.model.atomic import write_atomically
    from perfonnx.report import html_report
    from perfonnx.search import TimingCache, tune
    from perfonnx.search.render import render_tuned

    if options.report and not options.report_json:
        options.report_json = str(Path(options.report).with_suffix(".json"))
    if options.seed < 0:
        raise PerfonnxError(f"--seed {options.seed}: give a whole number from 0 up")
    if options.threads is not None and options.threads < 1:
        raise PerfonnxError(f"--threads {options.threads}: give 1 or more")
    cache = TimingCache(Path(options.cache_dir)) if options.cache_dir else TimingCache.default()
    with _search_progress(options) as step:
        tuned = tune(
            options.model,
            options.output,
            _required_samples(options),
            max_drop=options.max_drop,
            speedup=options.speedup,
            metric=options.metric,
            space=_space(options),
            search=options.search,
            max_time=options.max_time,
            threads=options.threads,
            input_shapes=parse_input_shapes(options.input_shape),
            freeze_weights=options.freeze_weights,
            fallback=not options.no_fallback,
            seed=options.seed,
            state=options.state,
            cache=None if options.no_cache else cache,
            progress=step,
        )
    if options.plan_out:
        tuned.save_plan(options.plan_out)
    data = tuned.to_json()
    if options.report_json:
        write_atomically(options.report_json, json.dumps(data, indent=2) + "\n")
    if options.report:
        write_atomically(options.report, html_report(tuned).encode("utf-8", "replace"))  # names may not be Unicode
    if not options.quiet:
        _show(options, data, render_tuned(tuned))
    return OK


# --- finetune --------------------------------------------------------------------------------------------------------


def _add_finetune(commands: Any) -> None:
    parser = _add(commands, "finetune", "rewrite a model and train it to do what it did before", _FINETUNE_EXAMPLES)
    parser.add_argument("model", metavar="IN", help="the model; it is not changed")
    parser.add_argument("output", metavar="OUT", help="where the new model goes")
    what = _add_choice(parser)
    what.add_argument(
        "--open-share",
        type=float,
        metavar="P",
        help="share of the 3x3 rings that radius-adaptive layers learn to get by with (default 1: all, which saves "
        "nothing)",
    )
    what.add_argument(
        "--speedup",
        type=float,
        metavar="S",
        help="perforate until one image is S times faster here: rates are chosen layer by layer, by measured time and "
        "loss, anew in each round on the weights as they are then; instead of all other choices",
    )
    what.add_argument(
        "--search-time", type=float, metavar="SECONDS", help="time to measure for --speedup in each round (default 300)"
    )
    add_data_arguments(parser, seed=False)
    _add_learning(parser)
    how = parser.add_argument_group("how it runs")
    how.add_argument("--precision", metavar="NAME", help="float32 (default) or bfloat16")
    how.add_argument("--device", metavar="NAME", help="cpu (default) or cuda")
    how.add_argument("--threads", type=int, metavar="N", help="threads (default: all cores)")
    how.add_argument(
        "--checkpoint", metavar="FILE", help="keep here where the training is, after each epoch and on Ctrl-C"
    )
    how.add_argument("--resume", action="store_true", help="go on from --checkpoint where it is there")
    model = parser.add_argument_group("the model")
    _add_shapes(model)  # type: ignore[arg-type]
    _add_library(model)  # type: ignore[arg-type]
    model.add_argument("--layout", metavar="NAME", help="rows (default) or nchw, as in perfonnx rewrite")
    model.add_argument(
        "--no-fallback", action="store_true", help="leave out the function bodies, as in perfonnx rewrite"
    )
    result = parser.add_argument_group("results")
    result.add_argument("--report-json", metavar="FILE", help="write everything that was measured")
    result.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    _add_json(result)  # type: ignore[arg-type]
    parser.set_defaults(run=_finetune)


_SETTINGS = {
    "epochs": (int, "N", "passes over the data (default 5)"),
    "batch": (int, "N", "samples per step (default 64)"),
    "lr": (float, "R", "highest learning rate (default 0.02 for sgd, 0.0003 for adamw)"),
    "optimizer": (str, "NAME", "sgd (default) or adamw"),
    "augment": (
        str,
        "NAME",
        "none (default), flip or crop+flip: mirror and move images at random; good for most photographs",
    ),
    "temperature": (float, "T", "of a classifier's probabilities when it learns from the original (default 2)"),
    "intermediate": (float, "W", "weight of the rewritten layers' own errors (default 1)"),
    "label_weight": (float, "W", "share of the labels in the loss, 0 to 1 (default 0: the original alone teaches)"),
    "batch_norm": (str, "NAME", "update (default) statistics of batch normalization, or keep them frozen"),
    "validate": (float, "P", "share of the samples that is held out, to measure on (default 0.05)"),
    "patience": (int, "N", "stop after N epochs that bring nothing (default 5)"),
}
"""Fields of `perfonnx.torch.Settings` with their type, placeholder and help."""


def _add_learning(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    for name, (kind, placeholder, text) in _SETTINGS.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=placeholder, help=text)
    group.add_argument(
        "--rounds",
        type=int,
        default=1,
        metavar="K",
        help="raise the rates, or the --speedup, in K steps and train all epochs after each (default 1)",
    )


def _finetune(options: argparse.Namespace) -> int:
    from perfonnx.data.inputs import parse_input_shapes
    from perfonnx.model.atomic import write_atomically
    from perfonnx.torch import Round, Settings, finetune_model, finetune_rounds
    from perfonnx.torch.render import render_finetuned, render_rounds
    from perfonnx.torch.rounds import rounds_to_json

    if options.resume and not options.checkpoint:
        raise PerfonnxError("--resume needs --checkpoint, the file to go on from")
    if options.threads is not None and options.threads < 1:
        raise PerfonnxError(f"--threads {options.threads}: give 1 or more")
    given = {name: getattr(options, name) for name in (*_SETTINGS, "precision", "device", "seed")}
    chosen = _chosen(options, seed=False)
    _check_speedup(options)
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    same: dict[str, Any] = {
        "model": options.model,
        "output": options.output,
        "samples": _required_samples(options),
        "settings": settings,
        "rounds": options.rounds,
        "input_shapes": parse_input_shapes(options.input_shape),
        "fallback": not options.no_fallback,
        "threads": options.threads,
        "checkpoint": options.checkpoint,
        "resume": options.resume,
    }
    rounds: list[Round] = []
    try:
        with _search_progress(options) as step:
            if options.speedup is not None:
                if options.search_time is not None:
                    same["search_time"] = options.search_time
                rounds = finetune_rounds(speedup=options.speedup, progress=step, **same)
                tuned = rounds[-1].finetuned
            else:
                same |= {"plan": options.plan, "options": chosen, "impact_maps": options.impact_maps}
                tuned = finetune_model(layout=options.layout, progress=step, **same)
    except KeyboardInterrupt:
        kept = f"; to go on from {options.checkpoint}, add --resume" if options.checkpoint else ""
        print(f"perfonnx: interrupted{kept}", file=sys.stderr)
        return 130
    if options.save_plan:
        tuned.result.save_plan(options.save_plan)
    data = rounds_to_json(rounds) if rounds else tuned.to_json()
    if options.report_json:
        write_atomically(options.report_json, json.dumps(data, indent=2) + "\n")
    if not options.quiet:
        _show(options, data, render_rounds(rounds) if rounds else render_finetuned(tuned))
    return OK


def _check_speedup(options: argparse.Namespace) -> None:
    """What --speedup goes with."""
    if options.speedup is None:
        if options.search_time is not None:
            raise PerfonnxError("--search-time: has a meaning with --speedup only")
        return
    names = ("plan", *_CHOICES[:-1], "impact_maps", "layout", "only", "skip")  # a seed goes with everything
    named = [name for name in names if getattr(options, name, None) not in (None, [])]
    if named:
        raise PerfonnxError(f"--speedup chooses everything; it does not go with --{named[0].replace('_', '-')}")


# --- sensitivity -----------------------------------------------------------------------------------------------------


def _add_sensitivity(commands: Any) -> None:
    parser = _add(
        commands, "sensitivity", "measure how much the output minds each layer being sampled", _SENSITIVITY_EXAMPLES
    )
    parser.add_argument("model", metavar="MODEL")
    _add_choices(parser)
    _add_metric(parser)
    parser.add_argument("--threads", type=int, metavar="N", help="intra-op threads (default: all cores)")
    add_data_arguments(parser)
    _add_freeze(parser)
    _add_shapes(parser)
    _add_library(parser)
    _add_json(parser)
    parser.set_defaults(run=_sensitivity, quiet=False)


def _sensitivity(options: argparse.Namespace) -> int:
    from perfonnx.data.inputs import parse_input_shapes
    from perfonnx.search import render_sensitivity, sensitivity

    if options.seed < 0:
        raise PerfonnxError(f"--seed {options.seed}: give a whole number from 0 up")
    if options.threads is not None and options.threads < 1:
        raise PerfonnxError(f"--threads {options.threads}: give 1 or more")
    with _progress(options, "measuring layers") as step:
        result = sensitivity(
            options.model,
            _required_samples(options),
            space=_space(options),
            metric=options.metric,
            input_shapes=parse_input_shapes(options.input_shape),
            freeze_weights=options.freeze_weights,
            threads=options.threads,
            seed=options.seed,
            progress=step,
        )
    _show(options, result.to_json(), render_sensitivity(result))
    return OK


# --- lib -------------------------------------------------------------------------------------------------------------


def _lib(options: argparse.Namespace) -> int:
    from perfonnx.runtime import get_library_path

    print(get_library_path())
    return OK


# --- output ----------------------------------------------------------------------------------------------------------


def _show(options: argparse.Namespace, data: Any, table: Any) -> None:
    if options.json:
        print(json.dumps(data, indent=2))
        return
    from rich.console import Console

    console = Console()
    if not console.is_terminal:  # piped: wide enough that no cell is cut
        console = Console(width=160)
    console.print(table)


def _stderr(options: argparse.Namespace) -> Console:
    from rich.console import Console

    return Console(stderr=True, quiet=options.quiet or not sys.stderr.isatty())


class _progress:  # noqa: N801
    """Context: a callback `step(done, total)` that moves a bar on a terminal, and does nothing elsewhere."""

    def __init__(self, options: argparse.Namespace, what: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=_stderr(options),
            transient=True,
        )
        self.task = self.bar.add_task(what, total=None)

    def __enter__(self) -> Any:
        self.bar.__enter__()
        return lambda done, total: self.bar.update(self.task, completed=done, total=total or None)

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)


class _search_progress:  # noqa: N801
    """Context: a callback that shows where a search is on a terminal, and does nothing elsewhere.

    What was found out stays there, a line for each step; what is being done is shown below.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self.bar = Progress(
            TextColumn("{task.description}", markup=False),  # layers' names are foreign text
            BarColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=_stderr(options),
            transient=True,
        )
        self.task = self.bar.add_task("reading", total=None, left="")

    def __enter__(self) -> Any:
        self.bar.__enter__()
        return self._step

    def _step(self, progress: Any) -> None:
        left = f"{progress.seconds_left:.0f} s left at most" + (f", best {progress.best}" if progress.best else "")
        total = progress.total or None
        if progress.news:
            self.bar.console.print(
                f"{progress.seconds_left:5.0f} s left: {progress.news}", markup=False, highlight=False
            )
        self.bar.update(self.task, description=progress.phase, completed=progress.done, total=total, left=left)

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)
