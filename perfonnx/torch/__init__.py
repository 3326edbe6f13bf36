"""Training with PyTorch."""

from perfonnx.torch.importing import OnnxModule, from_onnx

__all__ = ["OnnxModule", "from_onnx"]
