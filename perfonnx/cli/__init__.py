"""The command line: commands and their flags; the work is done elsewhere.

What a command needs is imported when it runs: parsing the line, --help and --version wait for nothing.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

from perfonnx.cli.command import ExitStatus
from perfonnx.cli.flags import check_flags
from perfonnx.cli.named_files import check_files
from perfonnx.cli.parser import as_line, make_parser
from perfonnx.errors import PerfonnxError, PerfonnxWarning

__all__ = ["ExitStatus", "main"]


def main(arguments: Sequence[str] | None = None) -> ExitStatus:
    """Run the command line and return the exit status."""
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()  # here, where it can still be said that it failed
    except BrokenPipeError:  # the reader of our output has gone, as in `perfonnx inspect m.onnx | head`
        _drop_output()
        return ExitStatus.OK
    except OSError as error:
        if error.errno not in _NO_OUTPUT:
            raise
        _drop_output()
        print(f"perfonnx: the output cannot be written: {error.strerror}", file=sys.stderr)
        return ExitStatus.NO_OUTPUT


_NO_OUTPUT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _drop_output() -> None:
    """What could not be written is not tried again when the interpreter ends."""
    with suppress(OSError, ValueError):  # ValueError: an output that is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: Sequence[str] | None) -> ExitStatus:
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = make_parser(given).parse_args(given)
    try:
        check_files(options)
        check_flags(options)
        with _libraries(options), _provider(options), _notes():
            status: ExitStatus = options.run(options)
            return status
    except PerfonnxError as error:
        print(f"perfonnx: {as_line(str(error))}", file=sys.stderr)
        return ExitStatus.BAD_INPUT
    except KeyboardInterrupt:
        print("perfonnx: interrupted", file=sys.stderr)
        return ExitStatus.INTERRUPTED


@contextmanager
def _notes() -> Iterator[None]:
    """Context in which our own warnings are a line of stderr."""
    with warnings.catch_warnings():
        other = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
            if issubclass(category, PerfonnxWarning):
                print(f"perfonnx: {as_line(str(message))}", file=sys.stderr)
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


def _provider(options: argparse.Namespace) -> AbstractContextManager[None]:
    """Context in which models run on the provider of --provider."""
    name = getattr(options, "provider", "cpu")
    if name == "cpu":
        return nullcontext()
    from perfonnx.runtime import with_provider

    return with_provider(name)
