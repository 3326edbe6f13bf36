"""ONNX models as PyTorch modules: `from_onnx`, then train, then `OnnxModule.to_onnx`."""

from perfonnx.torch.importing.module import OnnxModule, from_onnx

__all__ = ["OnnxModule", "from_onnx"]
