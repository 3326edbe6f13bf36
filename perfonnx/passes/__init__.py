"""The passes, in the order in which `perfonnx.rewrite` runs them."""

from perfonnx.passes.absorb import Absorb
from perfonnx.passes.apply import Apply, Fit
from perfonnx.passes.base import Change, Pass, PassManager, Skip, State
from perfonnx.passes.finish import Finish
from perfonnx.passes.fold import Fold
from perfonnx.passes.lower import Lower
from perfonnx.passes.means import Means
from perfonnx.passes.normalize import Normalize
from perfonnx.passes.rebuild import Rebuild
from perfonnx.passes.select import Options, Select, negligible
from perfonnx.passes.weigh import Weigh

__all__ = [
    "Absorb",
    "Apply",
    "Change",
    "Finish",
    "Fit",
    "Fold",
    "Lower",
    "Means",
    "Normalize",
    "Options",
    "Pass",
    "PassManager",
    "Rebuild",
    "Select",
    "Skip",
    "State",
    "Weigh",
    "negligible",
]
