"""The parser of the command line, made from the commands that there are."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from perfonnx.cli.command import ExitStatus
from perfonnx.cli.commands import commands

_MAIN_EXAMPLES = """examples:
  perfonnx inspect model.onnx
  perfonnx rewrite model.onnx fast.onnx --rate 0.5
  perfonnx check model.onnx fast.onnx --data images/ --samples 100
  perfonnx bench model.onnx fast.onnx
  perfonnx tune model.onnx fast.onnx --data photos/ --max-drop 1%

exit status: 0 done, 1 a check failed, 2 bad usage or input, 3 the output could not be written
"""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(ExitStatus.BAD_INPUT, f"{self.prog}: {as_line(message)} (see {self.prog} --help)\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        if message and file is not None:  # argparse itself says nothing where it cannot write
            file.write(message)


class _Version(argparse.Action):
    """Prints the version of the installed package; to look it up takes longer than all the parsing."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"perfonnx {version('perfonnx')}")
        parser.exit()


def as_line(message: str) -> str:
    """As one line, whatever names are in it."""
    return "\\n".join(message.splitlines())


def make_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of all commands; what it gives has the command's function as `run`.

    Args:
        arguments: What will be parsed. Commands that it does not name have no flags: those of some take long to gather.
    """
    parser = _Parser(
        prog="perfonnx",
        description="Rewrite the convolutions of ONNX models so that most of their positions are never computed.",
        epilog=_MAIN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show program's version number and exit")
    added = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")
    for command in commands():
        flags: argparse.ArgumentParser = added.add_parser(
            command.name,
            help=command.summary,
            description=command.summary[0].upper() + command.summary[1:] + ".",
            epilog=command.examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if command.name in arguments:
            command.add_flags(flags)
        flags.set_defaults(run=command.run)
    return parser
