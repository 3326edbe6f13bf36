"""The commands: one file for each, which is found by being here."""

from importlib import import_module
from pkgutil import iter_modules

from perfonnx.cli.command import Command


def commands() -> list[Command]:
    """All commands, in the order in which they are listed."""
    found: list[Command] = [import_module(f"{__name__}.{module.name}").COMMAND for module in iter_modules(__path__)]
    return sorted(found, key=lambda command: command.place)
