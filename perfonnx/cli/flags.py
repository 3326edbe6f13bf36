"""Flags that several commands have, and what their values must be."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeAlias

from perfonnx.cli.named_files import Read
from perfonnx.errors import PerfonnxError

Flags: TypeAlias = "argparse._ActionsContainer"
"""What takes flags: a parser, or a group of one."""


def add_shapes(parser: Flags) -> None:
    """Sizes of open dimensions; `input_shapes` reads them."""
    parser.add_argument(
        "--input-shape",
        action="append",
        default=[],
        metavar="NAME:D,D,...",
        help="sizes of an input whose dimensions are symbolic, such as image:1,3,224,224; a name such as N in place "
        "of a number keeps that dimension symbolic",
    )


def add_freeze(parser: Flags) -> None:
    """Weights that are inputs too."""
    parser.add_argument(
        "--freeze-weights", action="store_true", help="make weights constant that are also listed as graph inputs"
    )


def add_library(parser: Flags) -> None:
    """Other libraries of operators; every command that has the flag runs with them."""
    parser.add_argument(
        "--library",
        type=Read,
        action="append",
        default=[],
        metavar="FILE",
        help="a shared library of other custom operators that the model uses; repeatable",
    )


def add_provider(parser: Flags) -> None:
    """Where models run; every command that has the flag runs there."""
    parser.add_argument(
        "--provider",
        choices=("cpu", "cuda"),
        default="cpu",
        help="onnxruntime's execution provider (default cpu); cuda needs onnxruntime-gpu and the build "
        "option PERFONNX_CUDA",
    )


def add_json(parser: Flags) -> None:
    """What is printed; `perfonnx.cli.output.show` asks."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def add_metric(parser: Flags) -> None:
    """What loss is measured by."""
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="top1, agreement, loss, ssim, psnr or distance (default: by the model's output and whether there are "
        "labels)",
    )


def add_threads(parser: Flags) -> None:
    """How many threads onnxruntime uses."""
    parser.add_argument("--threads", type=int, metavar="N", help="intra-op threads (default: all cores)")


def add_no_fallback(parser: Flags) -> None:
    """Function bodies, for commands that rewrite on the way."""
    parser.add_argument(
        "--no-fallback", action="store_true", help="leave out the function bodies, as in perfonnx rewrite"
    )


def add_quiet(parser: Flags) -> None:
    """Nothing on standard output, and no bar on a terminal."""
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")


def input_shapes(options: argparse.Namespace) -> dict[str, tuple[int | str, ...]]:
    """What --input-shape gives, by input name; empty for a command without it."""
    from perfonnx.data.inputs import parse_input_shapes

    return parse_input_shapes(getattr(options, "input_shape", ()))


def check_suffix(path: str, suffix: str, what: str) -> None:
    """Check that a file to write is called what it will be.

    Raises:
        PerfonnxError: It is not.
    """
    if Path(path).suffix != suffix:
        raise PerfonnxError(f"{path}: {what} are written as {suffix}; give a name that ends so")


def check_flags(options: argparse.Namespace) -> None:
    """Check the values of flags that several commands have.

    Raises:
        PerfonnxError: One has no meaning.
    """
    seed, threads = getattr(options, "seed", None), getattr(options, "threads", None)
    if seed is not None and seed < 0:
        raise PerfonnxError(f"--seed {seed}: give a whole number from 0 up")
    if threads is not None and threads < 1:
        raise PerfonnxError(f"--threads {threads}: give 1 or more")
