"""perfonnx: rewrite the convolutions of ONNX models so that most of their output positions are never computed.

import perfonnx

perfonnx.rewrite("model.onnx", "fast.onnx", rate=0.5)
session = perfonnx.session("fast.onnx")

Importing the package is quick: what a name needs, onnx and onnxruntime among it, is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perfonnx.corrections import TrainedGate
    from perfonnx.errors import PerfonnxError
    from perfonnx.inspection import Inspection, inspect
    from perfonnx.methods import METHODS, Method
    from perfonnx.methods.perforate import Perforate
    from perfonnx.methods.radius_adaptive import RadiusAdaptive
    from perfonnx.methods.sparse import Sparse
    from perfonnx.passes import Options
    from perfonnx.plan import Plan
    from perfonnx.rewriting import Report, Rewritten, rewrite
    from perfonnx.runtime import get_library_path, register, session, with_libraries

__all__ = [
    "METHODS",
    "Inspection",
    "Method",
    "Options",
    "PerfonnxError",
    "Perforate",
    "Plan",
    "RadiusAdaptive",
    "Report",
    "Rewritten",
    "Sparse",
    "TrainedGate",
    "get_library_path",
    "inspect",
    "register",
    "rewrite",
    "session",
    "with_libraries",
]

_MODULES = {
    "corrections": ("TrainedGate",),
    "errors": ("PerfonnxError",),
    "inspection": ("Inspection", "inspect"),
    "passes": ("Options",),
    "methods": ("METHODS", "Method"),
    "methods.perforate": ("Perforate",),
    "methods.radius_adaptive": ("RadiusAdaptive",),
    "methods.sparse": ("Sparse",),
    "plan": ("Plan",),
    "rewriting": ("Report", "Rewritten", "rewrite"),
    "runtime": ("get_library_path", "register", "session", "with_libraries"),
}
"""Where the public names live."""


def __getattr__(name: str) -> object:
    """A public name, on its first use (PEP 562)."""
    for module, names in _MODULES.items():
        if name in names:
            value: object = getattr(import_module(f"perfonnx.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What is there and what can be."""
    return sorted({*globals(), *__all__})
