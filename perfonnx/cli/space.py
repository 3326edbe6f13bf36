"""The flags that say what a search tries in each layer."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from perfonnx.cli.named_files import ReadList
from perfonnx.errors import PerfonnxError

if TYPE_CHECKING:
    from perfonnx.search import Space


def add_space(parser: argparse.ArgumentParser) -> None:
    """What is tried; `space_from` reads it."""
    choices = parser.add_argument_group("what is tried in each layer")
    choices.add_argument("--methods", metavar="NAME,...", help="methods of perfonnx rewrite (default: all that can be)")
    choices.add_argument(
        "--masks",
        type=ReadList,
        metavar="NAME,...",
        help="mask names or files (default lattice,uniform,pooling-structure; impact, for classifiers, measures what "
        "it needs on the data)",
    )
    choices.add_argument("--rates", metavar="R,...", help="fractions of positions to skip (default .25,.5,.75)")
    choices.add_argument("--interpolations", metavar="NAME,...", help="nearest (default), zero, barycentric")
    choices.add_argument(
        "--repair", metavar="NAME,...", help="none, bias, weights, predictor, full (default bias,predictor)"
    )
    choices.add_argument(
        "--flips",
        action="store_true",
        help="refit regions on sublattices to the mirror images of --data too, from left to right, where these are as "
        "good; for few of them",
    )


def space_from(options: argparse.Namespace) -> Space:
    """What is to be tried.

    Raises:
        PerfonnxError: A value has no meaning.
    """
    from perfonnx.search import Space

    given: dict[str, Any] = {"flips": options.flips}
    for flag, name in (
        ("methods", "methods"),
        ("masks", "masks"),
        ("interpolations", "interpolations"),
        ("repair", "repairs"),
    ):
        if getattr(options, flag) is not None:
            given[name] = tuple(part.strip() for part in getattr(options, flag).split(",") if part.strip())
    if options.rates is not None:
        try:
            given["rates"] = tuple(float(part) for part in options.rates.split(",") if part.strip())
        except ValueError as error:
            raise PerfonnxError(f"--rates {options.rates}: give numbers such as .25,.5,.75") from error
    return Space(**given)
