"""The core: words and decisions. Nothing here opens a socket; only ``onnx_model`` opens a model."""
