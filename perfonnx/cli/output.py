"""What a command prints: JSON or tables to read, and how far it is, on a terminal."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from perfonnx.cli.command import ExitStatus
from perfonnx.model.atomic import write_atomically

if TYPE_CHECKING:
    from rich.console import Console

    from perfonnx.comparing.check_report import CheckReport


def show(options: argparse.Namespace, data: Any, table: Any) -> None:
    """Print the data, with --json, or else the table."""
    if options.json:
        print(json.dumps(data, indent=2))
        return
    from rich.console import Console

    console = Console()
    if not console.is_terminal:  # piped: wide enough that no cell is cut
        console = Console(width=160)
    console.print(table)


def exit_status(report: CheckReport) -> ExitStatus:
    """What a comparison of models comes to; what failed is said."""
    for failure in report.failures:
        print(f"perfonnx: {failure}", file=sys.stderr)
    return ExitStatus.CHECK_FAILED if report.failures else ExitStatus.OK


def write_json(path: str, data: Any) -> None:
    """Write what was measured."""
    write_atomically(path, json.dumps(data, indent=2) + "\n")


def stderr(options: argparse.Namespace) -> Console:
    """Where a terminal shows how far a command is; silent elsewhere and with --quiet."""
    from rich.console import Console

    return Console(stderr=True, quiet=getattr(options, "quiet", False) or not sys.stderr.isatty())


class Bar:
    """Context: a callback `step(done, total)` that moves a bar on a terminal, and does nothing elsewhere."""

    def __init__(self, options: argparse.Namespace, what: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=stderr(options),
            transient=True,
        )
        self.task = self.bar.add_task(what, total=None)

    def __enter__(self) -> Any:
        self.bar.__enter__()
        return lambda done, total: self.bar.update(self.task, completed=done, total=total or None)

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)


class SearchBar:
    """Context: a callback that shows where a search is on a terminal, and does nothing elsewhere.

    What was found out stays there, a line for each step; what is being done is shown below.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self.bar = Progress(
            TextColumn("{task.description}", markup=False),  # layers' names are foreign text
            BarColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=stderr(options),
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
