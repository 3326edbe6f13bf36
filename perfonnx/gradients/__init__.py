"""Gradients of a loss with respect to any tensor of an ONNX model, in onnxruntime, without a training framework.

The model runs forward as it is, with the tensors that are needed as further outputs. A second model, made of standard
operators only, runs backward: it is built by reverse mode from one rule per operator (`perfonnx.gradients.rules`), for
the shapes of the batch at hand. perfonnx's own operators are replaced by their function bodies first, so that all
positions filled from a site add up at that site, and skipped positions get 0.
"""

from perfonnx.gradients.losses import BoundLoss, Labels, LogLoss, Loss, OutputDistance, log_loss, output_distance
from perfonnx.gradients.network import Network
from perfonnx.gradients.reverse import Gradients, Tensors

__all__ = [
    "BoundLoss",
    "Gradients",
    "Labels",
    "LogLoss",
    "Loss",
    "Network",
    "OutputDistance",
    "Tensors",
    "log_loss",
    "output_distance",
]
