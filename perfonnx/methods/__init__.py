"""Methods: how layers are replaced. One file each; a new one is its file and its test.

Whatever lies in this package is imported once, and so known by its name in `METHODS`.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
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
    KeepingMethod,
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
    "KeepingMethod",
    "Method",
    "Needs",
    "SampledMethod",
    "Space",
    "Spot",
    "StandardMethod",
    "Targets",
    "chained",
    "check_setting",
    "find_method",
    "markdown_list",
    "own_settings",
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
for _name in sorted(METHODS, key=lambda name: (METHODS[name].PLACE, name)):
    METHODS[_name] = METHODS.pop(_name)


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


def check_setting(name: str, value: Any, where: str) -> None:
    """Refuse a setting that has no meaning for the method it belongs to; `owners` has one."""
    owners(name)[0](**{name: value}).check(where)


def own_settings(method: type[Method], settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Those of the settings that a method has. Those of others say nothing here, but have to have a meaning there.

    Raises:
        PerfonnxError: Naming `where`: one has none, or is one of those that must not be overlooked.
    """
    own = method.settings()
    for name, value in settings.items():
        if name in own:
            continue
        check_setting(name, value, where)
        owner = owners(name)[0]
        field = owner.__dataclass_fields__[name]
        if field.metadata["said"] and value != field.default:
            said = field.metadata["said"]
            raise PerfonnxError(f"{where}: only {owner.ADJECTIVE} layers {said}, not {method.NAME} ones")
    return {name: value for name, value in settings.items() if name in own}


def markdown_list() -> str:
    """All methods, as the README lists them."""
    return "\n".join(f"- `{name}`: {METHODS[name].SUMMARY}" for name in METHODS)
