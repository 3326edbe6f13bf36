"""Tests of the operator library inside onnxruntime."""
