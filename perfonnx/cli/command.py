"""What a command of the command line is, and how any of them ends."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum


class ExitStatus(IntEnum):
    """How a command ends."""

    OK = 0
    CHECK_FAILED = 1
    BAD_INPUT = 2
    """Bad usage, or input that cannot be worked with."""
    NO_OUTPUT = 3
    """What was to be printed could not be written."""
    INTERRUPTED = 130
    """As shells say it of a program that Ctrl-C ended."""


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        name: What a user types.
        place: Commands are listed in the order of their places.
        summary: What it does, in a few words.
        examples: What else its help says.
        add_flags: Tells a parser what the command takes.
        run: Does it, given what was parsed.
    """

    name: str
    place: int
    summary: str
    examples: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], ExitStatus]
