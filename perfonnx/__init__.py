"""perfonnx: rewrite the convolutions of ONNX models so that most of their output positions are never computed.

import perfonnx

perfonnx.rewrite("model.onnx", "fast.onnx", rate=0.5)
session = perfonnx.session("fast.onnx")
"""

from perfonnx.corrections import TrainedGate
from perfonnx.errors import PerfonnxError
from perfonnx.inspection import Inspection, inspect
from perfonnx.passes import Options
from perfonnx.plan import LayerPlan, Plan
from perfonnx.rewriting import Report, Rewritten, rewrite
from perfonnx.runtime import get_library_path, register, session

__all__ = [
    "Inspection",
    "LayerPlan",
    "Options",
    "PerfonnxError",
    "Plan",
    "Report",
    "Rewritten",
    "TrainedGate",
    "get_library_path",
    "inspect",
    "register",
    "rewrite",
    "session",
]
