"""Tools that people use beside perfonnx, before a rewrite and after it."""
