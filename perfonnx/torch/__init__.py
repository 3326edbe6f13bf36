"""Training: networks learn to do without the positions that their plan takes away.

Needs PyTorch: `pip install "perfonnx[train]"`.

import perfonnx.torch

perfonnx.torch.apply(model, "plan.json", torch.zeros(1, 3, 224, 224))
...  # the training loop, as it was
perfonnx.torch.export(model, "fast.onnx")
"""

from perfonnx.errors import PerfonnxError

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise PerfonnxError('training needs PyTorch; install it with pip install "perfonnx[train]"') from error

from perfonnx.torch.applying import Applied, apply, dense_onnx, export, sampled_modules
from perfonnx.torch.finetuning import Finetuned, finetune_model
from perfonnx.torch.importing import OnnxModule, from_onnx
from perfonnx.torch.modules import Conv2d, PerforatedConv2d, RadiusAdaptiveConv2d, SparseConv2d
from perfonnx.torch.radius import OpenShareBudget, start_gates
from perfonnx.torch.rounds import Round, finetune_rounds
from perfonnx.torch.sparsity import SparsitySchedule
from perfonnx.torch.training import Epoch, History, Schedule, Settings, finetune

__all__ = [
    "Applied",
    "Conv2d",
    "Epoch",
    "Finetuned",
    "History",
    "OnnxModule",
    "OpenShareBudget",
    "PerforatedConv2d",
    "RadiusAdaptiveConv2d",
    "Round",
    "Schedule",
    "Settings",
    "SparseConv2d",
    "SparsitySchedule",
    "apply",
    "dense_onnx",
    "export",
    "finetune",
    "finetune_model",
    "finetune_rounds",
    "from_onnx",
    "sampled_modules",
    "start_gates",
]
