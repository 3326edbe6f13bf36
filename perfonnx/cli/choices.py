"""The flags that choose what is done with which layers."""

from __future__ import annotations

import argparse
from typing import Any

from perfonnx.cli.named_files import Read, ReadPlan, WrittenPlan
from perfonnx.errors import PerfonnxError


def add_choices(parser: argparse.ArgumentParser) -> Any:
    """What is done with which layers; `choices_from` reads it. Returns the group of the former."""
    what = parser.add_argument_group("what is done")
    what.add_argument("--method", default=None, help="perforate (default), sparse or radius-adaptive")
    what.add_argument(
        "--rate", type=float, default=None, metavar="R", help="fraction of positions to skip (default 0.25)"
    )
    what.add_argument(
        "--mask",
        type=Read,
        default=None,
        metavar="NAME|FILE",
        help="uniform, grid, grid-square, lattice, stripes-rows, stripes-columns, pooling-structure, propagated, "
        "impact, or a .npy file (one mask) or .npz file (one mask per layer name); default: pooling-structure where a "
        "pool follows, else grid; propagated for sparse",
    )
    what.add_argument(
        "--impact-maps", type=Read, metavar="FILE", help="maps that perfonnx impact wrote, for the mask impact"
    )
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
    which.add_argument(
        "--plan", type=ReadPlan, metavar="FILE", help="do what this JSON plan says, instead of the options above"
    )
    which.add_argument(
        "--save-plan", type=WrittenPlan, metavar="FILE", help="write what was done as a plan, to edit and use again"
    )
    return what


_NOT_FOR = {
    "perforate": ("center_gain", "open_share", "fill"),
    "sparse": ("interpolation", "center_gain", "open_share"),
    "radius-adaptive": ("rate", "mask", "interpolation", "fill"),
}
"""Choices that a method does not read, by method."""


CHOICES = ("method", "rate", "mask", "interpolation", "center_gain", "repair", "open_share", "fill", "seed")
"""Choices of a command, as `perfonnx.Options` has them; the seed comes last."""


def choices_from(options: argparse.Namespace, *, seed: bool = True) -> Any:
    """The choices of `add_choices`, None where there is a plan; `seed`: a plan has its own."""
    from perfonnx.passes import Options

    given = {name: getattr(options, name) for name in CHOICES if getattr(options, name, None) is not None}
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
    return None if options.plan else Options(only=options.only, skip=options.skip, **given)
