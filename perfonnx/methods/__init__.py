"""Methods: how layers are replaced. One file each; a new one is its file and its test.

Whatever lies in this package is imported once, and so known by its name in `METHODS`.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any

from perfonnx.errors import PerfonnxError
from perfonnx.methods.base import (
    DENSE,
    METHODS,
    Affine,
    Chain,
    Context,
    Decision,
    Feeds,
    Fitted,
    Method,
    Needs,
    SampledMethod,
    Space,
    Spot,
    StandardMethod,
    Targets,
    setting,
    standard_conv,
)

__all__ = [
    "DEFAULT",
    "DENSE",
    "METHODS",
    "SAMPLING",
    "Affine",
    "Chain",
    "Context",
    "Decision",
    "Feeds",
    "Fitted",
    "Method",
    "Needs",
    "SampledMethod",
    "Space",
    "Spot",
    "StandardMethod",
    "Targets",
    "chained",
    "check_foreign",
    "find_method",
    "markdown_list",
    "owners",
    "setting",
    "standard_conv",
]

DEFAULT = "exact"
"""The method where nobody says anything."""

SAMPLING = "perforate"
"""The method where nobody names one, but a setting of it."""

for _module in pkgutil.walk_packages(__path__, f"{__name__}."):
    import_module(_module.name)


def find_method(name: Any, where: str, *others: str) -> type[Method]:
    """The method of a name.

    Raises:
        PerfonnxError: Naming `where`: there is none. `others` are names that may stand in its place.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise PerfonnxError(f"{where}: unknown method {name!r}; choose from {', '.join((*METHODS, *others))}")
    return METHODS[name]


def chained(steps: tuple[Method, ...]) -> Method:
    """The steps as what a plan has for a layer."""
    return steps[0] if len(steps) == 1 else Chain(steps)


def owners(name: str) -> list[type[Method]]:
    """The methods with a setting of this name."""
    return [method for method in METHODS.values() if name in method.settings()]


def check_foreign(method: type[Method], name: str, value: Any, where: str) -> None:
    """Refuse a setting that a method does not have, but another: what says nothing here has to have a meaning there.

    Raises:
        PerfonnxError: Naming `where`: it has none, or it is one of those that must not be overlooked.
    """
    owner = owners(name)[0]
    owner(**{name: value}).check(where)
    field = owner.__dataclass_fields__[name]
    if field.metadata["said"] and value != field.default:
        raise PerfonnxError(f"{where}: only {owner.ADJECTIVE} layers {field.metadata['said']}, not {method.NAME} ones")


def markdown_list() -> str:
    """All methods, as the README lists them."""
    return "\n".join(f"- `{name}`: {METHODS[name].SUMMARY}" for name in METHODS)
