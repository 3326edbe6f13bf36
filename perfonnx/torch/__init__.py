"""Training of rewritten networks; needs PyTorch (`pip install "perfonnx[train]"`)."""

from perfonnx.torch.training import History, Schedule, Settings, finetune

__all__ = ["History", "Schedule", "Settings", "finetune"]
