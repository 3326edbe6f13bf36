"""The flags that choose what is done with which layers: a method, and its settings."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterator
from dataclasses import Field, fields
from typing import TYPE_CHECKING, Any

from perfonnx.cli.named_files import Read, ReadPlan, WrittenPlan
from perfonnx.errors import PerfonnxError

if TYPE_CHECKING:
    from perfonnx.passes import Options


def add_choices(parser: argparse.ArgumentParser, *, without: Collection[str] = ()) -> Any:
    """What is done with which layers; `choices_from` reads it. Returns the group of the former.

    Args:
        parser: Of the command.
        without: Settings of methods that are no flags here, or that the command adds itself.
    """
    from perfonnx.methods import DEFAULT, METHODS, SAMPLING

    what = parser.add_argument_group("what is done")
    notes = {DEFAULT: " (default)", SAMPLING: " (default with --rate and other settings)"}
    names = ", ".join(name + notes.get(name, "") for name in METHODS)
    what.add_argument("--method", default=None, metavar="NAME", help=names)
    for field in _settings():
        if field.name not in without:
            flag, doc = f"--{field.name.replace('_', '-')}", field.metadata["doc"].replace("%", "%%")
            if field.default is False:
                what.add_argument(flag, action="store_const", const=True, default=None, help=doc)
            else:
                kind = _type_of(field)
                what.add_argument(flag, type=kind, default=None, metavar=field.metadata["placeholder"], help=doc)
    what.add_argument(
        "--impact-maps", type=Read, metavar="FILE", help="maps that perfonnx impact wrote, for the mask impact"
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


def choice_names() -> list[str]:
    """The flags that `perfonnx.Options` takes, except the seed."""
    return ["method", *(field.name for field in _settings())]


def _settings() -> Iterator[Field[Any]]:
    """The settings of all methods that are flags, each once."""
    from perfonnx.methods import METHODS

    found = {each.name: each for method in METHODS.values() for each in fields(method) if each.metadata["doc"]}
    return iter(found.values())


def _type_of(field: Field[Any]) -> Any:
    return Read if "FILE" in field.metadata["placeholder"] else type(field.default)


def choices_from(options: argparse.Namespace, *, seed: bool = True, exact: bool = True) -> Options | None:
    """The choices of `add_choices`, None where there is a plan.

    Args:
        options: The command line.
        seed: Whether a seed is a choice: a plan has its own.
        exact: Whether nothing need be chosen, since layers are then computed exactly.
    """
    from perfonnx.methods import DEFAULT, SAMPLING, find_method, owners
    from perfonnx.passes import Options

    names = [*choice_names(), "seed"]
    given = {name: getattr(options, name) for name in names if getattr(options, name, None) is not None}
    if options.plan and not seed:
        given.pop("seed", None)
    if options.plan and (given or options.only or options.skip):
        names = [*given, *(n for n in ("only", "skip") if getattr(options, n))]
        raise PerfonnxError(f"--plan says everything; it does not go with --{names[0].replace('_', '-')}")
    settings = [name for name in given if name not in ("method", "seed")]
    method = find_method(given.setdefault("method", DEFAULT if exact and not settings else SAMPLING), "--method")
    for name in settings:
        if name not in method.settings():
            value = "" if given[name] is True else f" {given[name]}"
            flag = f"--{name.replace('_', '-')}{value}"
            if options.method is None:
                methods = ", ".join(owner.NAME for owner in owners(name))
                raise PerfonnxError(f"{flag}: has no meaning without its --method: {methods}")
            raise PerfonnxError(f"{flag}: has no meaning with --method {method.NAME}; leave it out")
    return None if options.plan else Options(only=options.only, skip=options.skip, **given)
