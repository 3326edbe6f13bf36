"""The passes, in the order in which `perfonnx.rewrite` runs them."""

from perfonnx.passes.absorb import Absorb
from perfonnx.passes.base import Change, Decision, Pass, PassManager, PassResult, Skip, State
from perfonnx.passes.convert import Perforate, RadiusAdaptive, Sparsify
from perfonnx.passes.finish import Finish
from perfonnx.passes.fold import Fold
from perfonnx.passes.gate import FitGates, TrainedGates
from perfonnx.passes.lower import Lower
from perfonnx.passes.normalize import Normalize
from perfonnx.passes.repair import Repair
from perfonnx.passes.select import Options, Select, negligible
from perfonnx.passes.weigh import Weigh

__all__ = [
    "Absorb",
    "Change",
    "Decision",
    "Finish",
    "FitGates",
    "Fold",
    "Lower",
    "Normalize",
    "Options",
    "Pass",
    "PassManager",
    "PassResult",
    "Perforate",
    "RadiusAdaptive",
    "Repair",
    "Select",
    "Skip",
    "Sparsify",
    "State",
    "TrainedGates",
    "Weigh",
    "negligible",
]
