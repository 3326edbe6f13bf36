"""Names: made unique, and shortened for tables."""

from __future__ import annotations

from collections.abc import Container

LONGEST = 60
"""Characters of a name that a table shows; exporters write some of several hundred."""


def shortened(name: str, longest: int = LONGEST) -> str:
    """A name with its middle left out where it is longer; its end, which tells layers apart, keeps more than half."""
    if len(name) <= longest:
        return name
    before = (longest - 1) * 2 // 5
    return f"{name[:before]}…{name[before + 1 - longest :]}"


def unique(name: str, taken: Container[str]) -> str:
    """The name, with as many underscores behind it as it needs to be none of those that are taken."""
    while name in taken:
        name += "_"
    return name
